"""What crosses a socket as JSON and back, for a process that has not the same objects: settings, paths and numbers.

A dataclass is written with the name of its module inside this package, so that two processes that imported the package
under different names understand each other.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

CLASS, PATH, TUPLE = "$class", "$path", "$tuple"
"""Keys of objects that stand for what JSON has no word for."""
ROOT = __name__.rpartition(".")[0]
"""The package that all classes come from, under the name it has in this process."""


def to_json(value: Any) -> Any:
    """Write a value as JSON's types.

    Args:
        value: A dataclass of this package, a path, a number, a text or None; or a tuple, list or dict of these.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        module = type(value).__module__.removeprefix(f"{ROOT}.")
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return {CLASS: f"{module}:{type(value).__qualname__}", **fields}
    if isinstance(value, Path):
        return {PATH: str(value)}
    if isinstance(value, tuple):
        return {TUPLE: [to_json(item) for item in value]}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    assert value is None or isinstance(value, (bool, int, float, str)), f"{type(value)} cannot cross a process"
    return value


def from_json(value: Any) -> Any:
    """Read what `to_json` wrote. Dataclasses check their settings anew.

    Raises:
        TrainerError: A setting is wrong.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if PATH in value:
        return Path(value[PATH])
    if TUPLE in value:
        return tuple(from_json(item) for item in value[TUPLE])
    fields = {key: from_json(item) for key, item in value.items() if key != CLASS}
    return _find_class(value[CLASS])(**fields) if CLASS in value else fields


def _find_class(name: str) -> type:
    module, _, class_name = name.partition(":")
    found: type = getattr(importlib.import_module(f"{ROOT}.{module}"), class_name)
    assert dataclasses.is_dataclass(found), f"{name} is no dataclass"
    return found
