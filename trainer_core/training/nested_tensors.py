"""The tensors of nested dataclasses, such as a batch with its token layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")


def list_tensors(value: Any) -> list[Tensor]:
    """All tensors, in the order of the fields."""
    if isinstance(value, Tensor):
        return [value]
    if not dataclasses.is_dataclass(value):
        return []
    return [x for field in dataclasses.fields(value) for x in list_tensors(getattr(value, field.name))]


def change_tensors(value: Value, change: Callable[[Tensor], Tensor]) -> Value:
    """A copy with every tensor changed."""
    changed: dict[str, object] = {}
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        inner = getattr(value, field.name)
        if isinstance(inner, Tensor):
            changed[field.name] = change(inner)
        elif dataclasses.is_dataclass(inner):
            changed[field.name] = change_tensors(inner, change)
    return dataclasses.replace(value, **changed)  # type: ignore[type-var]
