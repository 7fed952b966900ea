"""Checks stored tensors against a module and gives them to it, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...errors import TrainerError
from .weight_files import WEIGHT_DTYPES, TensorEntry
from .weight_reader import WeightReader

Plan = Mapping[str, Sequence[TensorEntry]]
"""The stored tensors of each parameter; several are stacked by rows."""


Shapes = Mapping[str, tuple[int, ...]]
"""Shape by tensor name."""


def parameter_shapes(module: nn.Module) -> Shapes:
    """What a module, which may be on the meta device, needs."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def check_names_and_shapes(what: str, expected: Shapes, shapes: Shapes) -> None:
    """Compare stored tensors with what is needed.

    Args:
        what: The file and its part, for the message.
        expected: Needed, see `parameter_shapes`.
        shapes: Stored.

    Raises:
        TrainerError: A tensor is missing, unknown or misshapen.
    """
    missing = [name for name in expected if name not in shapes]
    if missing:
        raise TrainerError(
            f"{what} lacks {_count(missing)}: the file is damaged or of another model, download it again"
        )
    extra = [name for name in shapes if name not in expected]
    if extra:
        raise TrainerError(f"{what} has {_count(extra)} too many: it is another model, or one with additions")
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise TrainerError(
                f"{what} has {name} of shape {list(shapes[name])} where {list(shape)} is needed: it is another model"
            )


def check_storage(what: str, plan: Plan) -> None:
    """Refuse weights stored in a way that cannot be read exactly.

    Raises:
        TrainerError: A weight is neither floating point nor fp8 with at most one scale.
    """
    for name, parts in plan.items():
        for entry in parts:
            has_block_scales = entry.scale is not None and math.prod(entry.scale.shape) != 1
            if entry.dtype not in WEIGHT_DTYPES or has_block_scales:
                raise TrainerError(
                    f"{what} stores {name} as {entry.dtype}{' in scaled blocks' if has_block_scales else ''}:"
                    " use a bf16, fp16, fp32 or fp8 file of the same model"
                )


def set_parameter(module: nn.Module, name: str, weight: Tensor) -> None:
    """Make a tensor the frozen parameter of that name."""
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(weight, requires_grad=False))


def fill_parameters(
    module: nn.Module,
    plan: Plan,
    *,
    device: torch.device,
    dtype: torch.dtype,
    place: Callable[[nn.Module, str, Tensor], None] = set_parameter,
) -> None:
    """Give every parameter of a module its weight, straight from the file to the device, one after another.

    Args:
        module: On the meta device.
        plan: The stored tensors of each parameter.
        device: Where the parameters go.
        dtype: What they are read as.
        place: Puts each into the module.
    """
    with WeightReader(entry for entries in plan.values() for entry in entries) as reader:
        # In the order of the file, so that a hard disk reads it once from end to end.
        for name, entries in sorted(plan.items(), key=lambda item: (str(item[1][0].path), item[1][0].start)):
            weight = torch.empty(module.get_parameter(name).shape, device=device, dtype=dtype)
            for entry, rows in zip(entries, _split_rows(weight, entries), strict=True):
                reader.read(entry, rows)
            place(module, name, weight)
            del weight, rows  # before memory for the next one is asked for


def _split_rows(weight: Tensor, entries: Sequence[TensorEntry]) -> Sequence[Tensor]:
    """The part of a parameter that each stored tensor fills."""
    return (weight,) if len(entries) == 1 else weight.split([entry.shape[0] for entry in entries])


def _count(names: list[str]) -> str:
    return f"the tensor {names[0]}" if len(names) == 1 else f"{len(names)} tensors ({names[0]} and others)"
