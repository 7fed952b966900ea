"""Which layers an adapter is put on, and with which numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from ..errors import TrainerError

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("attention.qkv", "attention.out"),
    "attention_mlp": ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    "attention_mlp_modulation": (
        "attention.qkv",
        "attention.out",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
        "adaLN_modulation.1",
    ),
    "all_linear": (),
    "pattern": (),
}
"""Module name endings by choice; "all_linear" is every Linear, "pattern" a regular expression over whole names."""

OVERRIDE_LIMITS: dict[str, tuple[float, float]] = {"rank": (1, 512), "alpha": (0.001, 4096.0), "factor": (-1, 512)}
"""Smallest and largest value of what a line of overrides may set; all but alpha are whole numbers."""


class TargetSettings(Protocol):
    """The part of every adapter's settings that chooses layers."""

    @property
    def targets(self) -> str: ...
    @property
    def target_pattern(self) -> str: ...
    @property
    def overrides(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one layer gets."""

    name: str
    """Native name, such as `layers.0.attention.qkv`."""
    rank: int
    alpha: float
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Whatever else the overrides set for this layer."""


def check_targets(settings: TargetSettings, override_names: tuple[str, ...]) -> None:
    """Check what can be checked without a network.

    Args:
        settings: As typed.
        override_names: Keys of OVERRIDE_LIMITS that a line of overrides may set.

    Raises:
        TrainerError: The pattern is missing or no regular expression, or a line of overrides cannot be read.
    """
    if settings.targets == "pattern":
        if not settings.target_pattern:
            raise TrainerError(
                'target_pattern is empty: targets is "pattern", so name the layers by a regular expression'
            )
        _compile("target_pattern", settings.target_pattern)
    read_overrides(settings.overrides, override_names)


def target_modules(transformer: nn.Module, settings: TargetSettings) -> list[str]:
    """Names of the Linear layers that are adapted.

    Raises:
        TrainerError: No layer matches the pattern, or it is not a regular expression.
    """
    linears = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    if settings.targets == "all_linear":
        return linears
    if settings.targets == "pattern":
        compiled = _compile("target_pattern", settings.target_pattern)
        return _matching("target_pattern", compiled, linears)
    return [name for name in linears if name.endswith(TARGETS[settings.targets]) and _is_in_block(name)]


def plan_layers(
    transformer: nn.Module, settings: TargetSettings, *, rank: int, alpha: float, override_names: tuple[str, ...]
) -> list[LayerPlan]:
    """Every adapted layer with its rank and alpha; of several lines of overrides that match, the first counts.

    Raises:
        TrainerError: As `target_modules` and `check_targets`, or a line of overrides matches no adapted layer.
    """
    names = target_modules(transformer, settings)
    lines = read_overrides(settings.overrides, override_names)
    for pattern, _ in lines:
        _matching("overrides:", pattern, names)
    plans = []
    for name in names:
        numbers = next((dict(numbers) for pattern, numbers in lines if pattern.fullmatch(name)), {})
        plans.append(
            LayerPlan(
                name=name, rank=int(numbers.pop("rank", rank)), alpha=numbers.pop("alpha", alpha), numbers=numbers
            )
        )
    return plans


def read_overrides(text: str, names: tuple[str, ...]) -> list[tuple[re.Pattern[str], dict[str, float]]]:
    """Lines such as `.*feed_forward.* rank=8 alpha=4`, empty ones left out.

    Raises:
        TrainerError: A line is not a regular expression and then name=number, or a number is out of range.
    """
    lines = []
    for line in filter(None, map(str.strip, text.splitlines())):
        pattern, *assignments = line.split()
        if not assignments:
            raise TrainerError(
                f"overrides: {line!r} sets nothing: write a regular expression, then one or more of"
                f" {', '.join(f'{name}=NUMBER' for name in names)}"
            )
        numbers = dict(_read_assignment(line, assignment, names) for assignment in assignments)
        lines.append((_compile("overrides:", pattern), numbers))
    return lines


def _read_assignment(line: str, assignment: str, names: tuple[str, ...]) -> tuple[str, float]:
    name, _, value = assignment.partition("=")
    if name not in names:
        raise TrainerError(f"overrides: {line!r} sets {name!r}: only {', '.join(names)} can be set by layer")
    low, high = OVERRIDE_LIMITS[name]
    try:
        number = float(value) if name == "alpha" else int(value)
    except ValueError:
        raise TrainerError(f"overrides: {line!r}: {value!r} is not a number for {name}") from None
    if not low <= number <= high or (name == "factor" and number == 0):
        raise TrainerError(f"overrides: {line!r}: {name} must be from {low} to {high}")
    return name, number


def _is_in_block(name: str) -> bool:
    return name.split(".")[0] in ("layers", "noise_refiner", "context_refiner")


def _compile(what: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise TrainerError(f"{what} {pattern!r} is not a regular expression: {error}") from error


def _matching(what: str, pattern: re.Pattern[str], names: list[str]) -> list[str]:
    matching = [name for name in names if pattern.fullmatch(name)]
    if not matching:
        examples = ", ".join(names[8:11] or names[:3])
        raise TrainerError(f"{what} {pattern.pattern!r} matches no layer: names look like {examples}")
    return matching
