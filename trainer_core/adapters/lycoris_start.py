"""Initial values of a LyCORIS adapter from a file that this or another run saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import TrainerError
from .export import read_adapter
from .file_kinds import FILE_KINDS, find_kind, split_by_module
from .lycoris_settings import WITH_MAGNITUDES, LyCORISSettings
from .targets import LayerPlan

FILE_KINDS_OF: dict[str, tuple[str, ...]] = {
    "lokr": ("lokr", "lokr with a whole second factor"),
    "locon": ("lora",),
    "dylora": ("lora",),
}
"""The kinds of FILE_KINDS that an algorithm starts from, where that is not its own name."""
SCALED_PARTS = {"lora_A.weight": "lora_B.weight", "hada_w1_b": "hada_w1_a", "a2.weight": "a1.weight"}
"""The part whose rows are the rank, and the part that alpha / rank is put into."""


def read_lycoris_start(settings: LyCORISSettings, plans: Sequence[LayerPlan]) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer in start_from, float32 without alpha; nothing if there is no such file.

    Raises:
        TrainerError: The file is of another kind, or adapts layers that are not trained.
    """
    if not settings.start_from:
        return {}
    path = Path(settings.start_from)
    try:
        modules = split_by_module(read_adapter(path).tensors)
    except TrainerError as error:
        raise TrainerError(f"start_from: {error}") from error
    planned = {plan.name for plan in plans}
    for name, parts in modules.items():
        if name not in planned:
            raise TrainerError(
                f"start_from: {path.name} adapts {name}, which is not among the layers trained here: choose targets"
                ' that include it, such as "all_linear"'
            )
        _check_kind(path.name, name, parts, settings)
    return {name: _fold_alpha(path.name, name, parts) for name, parts in modules.items()}


def check_start_shapes(
    settings: LyCORISSettings, name: str, found: Mapping[str, Tensor], here: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare a file's parts of a layer with those that are trained.

    Args:
        settings: With start_from.
        name: Of the layer.
        found: Parts in the file.
        here: Shapes of the parts that an export would give.

    Raises:
        TrainerError: They differ.
    """
    there = {part: tuple(tensor.shape) for part, tensor in found.items() if part != "dora_scale"}
    if there == dict(here):
        return
    part = min(part for part in {*there, *here} if there.get(part) != here.get(part))
    raise TrainerError(
        f"start_from: {Path(settings.start_from).name} has {_describe(part, there)} for {name}, but"
        f" {_describe(part, here)} is trained here: set rank, factor and the other sizes as they were when the file was"
        " trained"
    )


def _describe(part: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    return f"{part} of shape {list(shapes[part])}" if part in shapes else f"no {part}"


def _check_kind(file: str, name: str, parts: Mapping[str, Tensor], settings: LyCORISSettings) -> None:
    kind = find_kind(name, parts)
    found = next(known for known, other in FILE_KINDS.items() if other is kind)
    if found not in FILE_KINDS_OF.get(settings.algorithm, (settings.algorithm,)):
        fitting = [a for a in (*FILE_KINDS_OF, *FILE_KINDS) if found in FILE_KINDS_OF.get(a, (a,)) and a != "lora"]
        raise TrainerError(
            f"start_from: {file} holds {found} for {name}, but algorithm is {settings.algorithm}: choose algorithm"
            f" {' or '.join(dict.fromkeys(fitting))}, or another file"
        )
    if "dora_scale" in parts and not settings.weight_decompose:
        can = settings.algorithm in WITH_MAGNITUDES
        raise TrainerError(
            f"start_from: {file} has lengths of rows (DoRA) for {name}:"
            f" {'turn weight_decompose on' if can else 'choose another file'}"
        )


def _fold_alpha(file: str, name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parts as this project writes them: alpha / rank within a weight."""
    folded = {part: tensor.to("cpu", torch.float32) for part, tensor in parts.items() if part != "alpha"}
    alpha = float(parts["alpha"]) if "alpha" in parts else None
    if alpha is None:
        return folded
    if "oft_blocks" in parts:
        if alpha:
            raise TrainerError(
                f"start_from: {file} keeps a constraint of {alpha:g} for {name} in another unit than it is trained in:"
                " choose a file without one"
            )
        return folded
    ranked = {"lokr_w1_b": "lokr_w1_a", "lokr_w2_b": "lokr_w2_a", **SCALED_PARTS}
    for rank_part, scaled in ranked.items():
        if rank_part in folded:
            folded[scaled] = folded[scaled] * (alpha / len(folded[rank_part]))
            break
    return folded
