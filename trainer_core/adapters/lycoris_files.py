"""From the parameters of each kind of LyCORIS to the parts of a file, and back; alpha / rank is within a weight.

Shape suffixes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def export_locon(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    return {"lora_A.weight": values["lora_down.weight"], "lora_B.weight": scale * values["lora_up.weight"]}


def load_locon(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    return {"lora_down.weight": parts["lora_A.weight"], "lora_up.weight": parts["lora_B.weight"] / scale}


def export_dylora(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    count = len(values) // 2
    down_RI = torch.cat([values[f"down_list.{i}"] for i in range(count)])
    up_OR = torch.cat([values[f"up_list.{i}"] for i in range(count)], dim=1)
    return {"lora_A.weight": down_RI, "lora_B.weight": scale * up_OR}


def load_dylora(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    sizes = [len(own[f"down_list.{i}"]) for i in range(len(own) // 2)]
    downs, ups = parts["lora_A.weight"].split(sizes), (parts["lora_B.weight"] / scale).split(sizes, dim=1)
    named = {f"down_list.{i}": down for i, down in enumerate(downs)}
    return named | {f"up_list.{i}": up for i, up in enumerate(ups)}


def export_loha(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    return {**values, "hada_w1_a": scale * values["hada_w1_a"]}


def load_loha(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    return {**parts, "hada_w1_a": parts["hada_w1_a"] / scale}


def export_lokr(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    scaled = "lokr_w1" if "lokr_w1" in values else "lokr_w1_a"
    return {**values, scaled: scale * values[scaled]}


def load_lokr(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    scaled = "lokr_w1" if "lokr_w1" in parts else "lokr_w1_a"
    return {**parts, scaled: parts[scaled] / scale}


def export_glora(values: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parts from parameters by name and the scale."""
    return {**values, **{name: scale * values[name] for name in ("a1.weight", "b1.weight")}}


def load_glora(parts: Mapping[str, Tensor], own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters from parts, those that are there, and the scale."""
    return {**parts, **{name: parts[name] / scale for name in ("a1.weight", "b1.weight")}}
