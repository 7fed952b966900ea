"""What each kind of adapter file does to a weight, by the formulas of ComfyUI's loaders (comfy/weight_adapter).

Shape suffixes: O outputs, I inputs, R rank, K blocks, N size of a block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TrainerError

PARTS = (
    r"lora_[AB]\.weight|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|[ab][12]\.weight|oft_blocks|rescale|diff|alpha|dora_scale"
)
ADAPTER_KEY = re.compile(rf"diffusion_model\.(.+)\.({PARTS})")
"""Native module and part of it."""

Parts = Mapping[str, Tensor]
"""A module's tensors in a file, by the end of their keys."""


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """One kind of adapter in a file."""

    marker: str
    """The part that every module of this kind has, and no other."""
    change: Callable[[Parts, Tensor, float], Tensor]
    """What is added to the weight [O, I] float32 at a strength."""
    num_dims: int | None = None
    """Dimensions of the marker, where two kinds share its name."""


def split_by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors of a file by native module and part.

    Raises:
        TrainerError: A key is not one that ComfyUI reads for Lumina2.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = ADAPTER_KEY.fullmatch(key)
        if match is None:
            raise TrainerError(f"the file is not an adapter for Lumina2 with ComfyUI's names: unexpected key {key!r}")
        modules.setdefault(match[1], {})[match[2]] = tensor
    return modules


def is_native(tensors: Mapping[str, Tensor]) -> bool:
    """Whether every key is native, in the spelling that this project writes, with alpha folded or for no LoRA."""
    matches = [ADAPTER_KEY.fullmatch(key) for key in tensors]
    has_lora_alpha = any(f"{key.removesuffix('.alpha')}.lora_A.weight" in tensors for key in tensors if ".alpha" in key)
    return bool(matches) and all(matches) and not has_lora_alpha


def find_kind(module: str, parts: Parts) -> FileKind:
    """Which kind of adapter a module's tensors are.

    Raises:
        TrainerError: They are none that is known.
    """
    for kind in FILE_KINDS.values():
        marked = parts.get(kind.marker)
        if marked is not None and kind.num_dims in (None, marked.ndim):
            return kind
    raise TrainerError(f"the file has no adapter of a known kind for {module}: only {', '.join(sorted(parts))}")


def change_of_weight(module: str, parts: Parts, weight_OI: Tensor, strength: float) -> Tensor:
    """What ComfyUI adds to a weight.

    Args:
        module: For messages.
        parts: Of this module.
        weight_OI: Floating point.
        strength: 1 is as trained.

    Returns:
        [O, I] float32 on the weight's device.

    Raises:
        TrainerError: The adapter was trained on another size of Lumina2.
    """
    weight_OI = weight_OI.float()
    parts = {name: tensor.to(weight_OI.device, torch.float32) for name, tensor in parts.items()}
    kind = find_kind(module, parts)
    try:
        if "dora_scale" in parts:
            return _decomposed_change(parts, weight_OI, kind.change(parts, weight_OI, 1.0), strength)
        change_OI = kind.change(parts, weight_OI, strength)
    except (RuntimeError, KeyError) as error:
        raise _misfit(module, weight_OI, str(error).partition("\n")[0]) from error
    if change_OI.shape != weight_OI.shape:
        raise _misfit(module, weight_OI, f"{tuple(change_OI.shape)} there")
    return change_OI


def _misfit(module: str, weight_OI: Tensor, detail: str) -> TrainerError:
    return TrainerError(
        f"the adapter was trained on another size of Lumina2, or is damaged: {module} is {tuple(weight_OI.shape)} here"
        f" ({detail})"
    )


def host_norm(weight_OI: Tensor) -> Tensor:
    """Length of each row of a float32 weight, [O, 1], as ComfyUI divides by it."""
    return weight_OI.norm(dim=1, keepdim=True) + torch.finfo(torch.float32).eps


def _decomposed_change(parts: Parts, weight_OI: Tensor, change_OI: Tensor, strength: float) -> Tensor:
    """DoRA. ComfyUI divides by the length of the rows of W, not of W + change; `dora_scale` is written for that."""
    scale_O1 = parts["dora_scale"] / host_norm(weight_OI)
    return strength * ((weight_OI + change_OI) * scale_O1 - weight_OI)


def _scale(parts: Parts, rank: int) -> float:
    return parts["alpha"].item() / rank if "alpha" in parts else 1.0


def _lora_change(parts: Parts, weight_OI: Tensor, strength: float) -> Tensor:
    up_OR, down_RI = parts["lora_B.weight"], parts["lora_A.weight"]
    return strength * _scale(parts, len(down_RI)) * (up_OR @ down_RI)


def _loha_change(parts: Parts, weight_OI: Tensor, strength: float) -> Tensor:
    first_OI, second_OI = (parts[f"hada_w{i}_a"] @ parts[f"hada_w{i}_b"] for i in (1, 2))
    return strength * _scale(parts, len(parts["hada_w1_b"])) * first_OI * second_OI


def _lokr_change(parts: Parts, weight_OI: Tensor, strength: float) -> Tensor:
    factors, rank = [], None
    for number in (1, 2):
        if f"lokr_w{number}" in parts:
            factors.append(parts[f"lokr_w{number}"])
        else:
            rank = len(parts[f"lokr_w{number}_b"])
            factors.append(parts[f"lokr_w{number}_a"] @ parts[f"lokr_w{number}_b"])
    return strength * (1.0 if rank is None else _scale(parts, rank)) * torch.kron(*factors)


def _glora_change(parts: Parts, weight_OI: Tensor, strength: float) -> Tensor:
    a1_IR, a2_RI, b1_OR, b2_RI = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    return strength * _scale(parts, len(a2_RI)) * (weight_OI @ a1_IR @ a2_RI + b1_OR @ b2_RI)


def _oft_change(parts: Parts, weight_OI: Tensor, strength: float) -> Tensor:
    """ComfyUI multiplies by the strength twice."""
    blocks_KNN = rotations(parts["oft_blocks"])
    identity = torch.eye(blocks_KNN.shape[-1], device=weight_OI.device)
    weight_KNI = weight_OI.unflatten(0, blocks_KNN.shape[:2])
    return strength**2 * torch.einsum("knm,kni->kmi", blocks_KNN - identity, weight_KNI).flatten(0, 1)


def _boft_change(parts: Parts, weight_OI: Tensor, strength: float) -> Tensor:
    """ComfyUI mixes each stage with the identity by the strength, then multiplies by it."""
    identity = torch.eye(parts["oft_blocks"].shape[-1], device=weight_OI.device)
    rotated_OI = weight_OI
    for stage, blocks_KNN in enumerate(rotations(parts["oft_blocks"])):
        mixed_KNN = strength * (blocks_KNN - identity) + identity
        rotated_OI = apply_butterfly(rotated_OI.t(), mixed_KNN, stage).t()
    if "rescale" in parts:
        rotated_OI = rotated_OI * parts["rescale"]
    return strength * (rotated_OI - weight_OI)


def _diff_change(parts: Parts, weight_OI: Tensor, strength: float) -> Tensor:
    return strength * parts["diff"]


def apply_butterfly(x: Tensor, blocks_KNN: Tensor, stage: int) -> Tensor:
    """One stage of a butterfly (Liu et al., arXiv:2311.06243): the blocks act on outputs that lie 2^stage N/2 apart.

    Args:
        x: [..., O].
        blocks_KNN: Of this stage.
        stage: Counted from 0.
    """
    num, size = blocks_KNN.shape[:2]
    distance = 2**stage * size // 2
    x = x.unflatten(-1, (-1, 2, distance)).transpose(-2, -1).flatten(-3).unflatten(-1, (num, size))
    x = torch.einsum("kij,...kj->...ki", blocks_KNN, x)
    return x.flatten(-2).unflatten(-1, (-1, distance, 2)).transpose(-2, -1).flatten(-3)


def rotations(blocks: Tensor) -> Tensor:
    """Orthogonal matrices (I + Q)(I - Q)^-1 with Q = B - B^T (Cayley), of the last two dimensions."""
    skew = blocks - blocks.transpose(-1, -2)
    identity = torch.eye(blocks.shape[-1], device=blocks.device)
    return (identity + skew) @ torch.linalg.inv_ex(identity - skew).inverse  # always exists, so no error to wait for


FILE_KINDS: dict[str, FileKind] = {
    "lora": FileKind(marker="lora_A.weight", change=_lora_change),
    "loha": FileKind(marker="hada_w1_a", change=_loha_change),
    "lokr with a whole second factor": FileKind(marker="lokr_w2", change=_lokr_change),
    "lokr": FileKind(marker="lokr_w2_a", change=_lokr_change),
    "glora": FileKind(marker="a1.weight", change=_glora_change),
    "diag-oft": FileKind(marker="oft_blocks", num_dims=3, change=_oft_change),
    "boft": FileKind(marker="oft_blocks", num_dims=4, change=_boft_change),
    "full": FileKind(marker="diff", change=_diff_change),
}
"""Every kind that ComfyUI 0.3.64 and later read for a Linear layer."""
