"""Settings fields: one default, one range and one sentence for nodes, command line and checks."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from .errors import TrainerError


def setting(
    default: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    step: float | None = None,
    choices: Iterable[str] | Callable[[], Iterable[str]] = (),
    multiline: bool = False,
    is_optional: bool = False,
    is_advanced: bool = False,
) -> Any:
    """A dataclass field that a node shows as a widget.

    Args:
        default: The value used everywhere; its type decides the widget.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
        step: What one click on the widget's arrow changes.
        choices: Allowed strings: the keys of a registry, or a function that gives them.
        multiline: A text box instead of one line.
        is_optional: Prompts may lack it, because an earlier version of the node did not have it.
        is_advanced: Few need it: the canvas shows it on request only.
    """
    flags = {"is_optional": is_optional, "is_advanced": is_advanced}
    limits = {"minimum": minimum, "maximum": maximum, "step": step, "choices": choices, "multiline": multiline}
    return dataclasses.field(default=default, metadata={**limits, **flags})


def same_as(source: type, name: str) -> Any:
    """A field with the default, the limits and the sentence of another dataclass's setting of the same name.

    Args:
        source: The dataclass that declares it with `setting`.
        name: Its name there, which must be its name here.
    """
    field = next(field for field in dataclasses.fields(source) if field.name == name)
    return dataclasses.field(default=field.default, metadata={**field.metadata, "source": source})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingField:
    """One field of a settings dataclass, as nodes and docs need it."""

    name: str
    default: Any
    docstring: str
    minimum: float | None
    maximum: float | None
    step: float | None
    choices: tuple[str, ...]
    multiline: bool
    is_optional: bool
    is_advanced: bool


@functools.cache
def _docstrings(cls: type) -> dict[str, str]:
    """The string literal under each field of a class and of the dataclasses it extends."""
    found: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            found.update(_docstrings(base))
    body = _top_level_classes(cls.__module__).get(cls.__qualname__) or _parse_class(cls)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


@functools.cache
def _top_level_classes(module: str) -> dict[str, ast.ClassDef]:
    """Parsed once for all classes of a module: to find and parse each on its own takes five times as long."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _parse_class(cls: type) -> ast.ClassDef:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    return body


def describe_settings(cls: type) -> list[SettingField]:
    """The fields of a settings dataclass that were declared with `setting`, in order."""
    docstrings = _docstrings(cls)
    fields = []
    for field in dataclasses.fields(cls):
        if "choices" not in field.metadata:
            continue
        limits = dict(field.metadata)
        choices = limits.pop("choices")
        source = limits.pop("source", None)
        fields.append(
            SettingField(
                name=field.name,
                default=field.default,
                docstring=(_docstrings(source) if source else docstrings)[field.name],
                choices=tuple(choices() if callable(choices) else choices),
                **limits,
            )
        )
    return fields


def check_settings(instance: Any) -> None:
    """Check type, range and choice of every field, and make whole numbers floats where a float is meant.

    Call it from `__post_init__`.

    Raises:
        TrainerError: A value is of the wrong type, out of range or not a choice.
    """
    for field in describe_settings(type(instance)):
        value = getattr(instance, field.name)
        _check_value(field, value)
        if isinstance(field.default, float):  # 16 and 16.0 are one setting: the canvas sends the former
            object.__setattr__(instance, field.name, float(value))


def check_known(settings_class: type, values: Mapping[str, Any]) -> None:
    """Check settings as far as their values are known: together if all are, else each on its own.

    Args:
        settings_class: A settings dataclass.
        values: By name; None is a value that is not known yet. Those left out are at their defaults, and names that
            are no settings do not count.

    Raises:
        TrainerError: A known value is wrong, or they contradict each other.
    """
    fields = [field for field in describe_settings(settings_class) if field.name in values]
    known = {field.name: values[field.name] for field in fields if values[field.name] is not None}
    if len(known) == len(fields):
        settings_class(**known)
        return
    for field in fields:
        if field.name in known:
            _check_value(field, known[field.name])


def check_unused(instance: Any, names: Iterable[str], *, used: Collection[str], chooser: str) -> None:
    """Refuse values of settings that the choice of another setting leaves without meaning.

    Args:
        instance: Of a settings dataclass.
        names: Settings that only some choices use.
        used: Those that the present choice uses.
        chooser: The setting that was chosen.

    Raises:
        TrainerError: One that is not used is not at its default.
    """
    defaults = {field.name: field.default for field in describe_settings(type(instance))}
    for name in names:
        value, default = getattr(instance, name), defaults[name]
        if name not in used and value != default:
            raise TrainerError(
                f"{name} is {value!r}, which {chooser} {getattr(instance, chooser)} does not use:"
                f" set it to {default!r} or choose another {chooser}"
            )


def check_file_name(what: str, name: str) -> None:
    """Check a name that becomes a file or folder, on any system and without leaving its parent.

    Args:
        what: Name of the setting, for the message.
        name: As typed.

    Raises:
        TrainerError: It has other characters than letters, digits, '.', '-' and '_', or is a device on Windows.
    """
    is_device = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)
    if not re.fullmatch(r"[A-Za-z0-9]([\w.-]{0,98}[\w-])?", name, re.ASCII) or is_device:
        raise TrainerError(
            f"{what} is {name!r}: use letters, digits, '.', '-' and '_', starting with a letter or digit and not ending"
            " with '.'; names of Windows devices such as nul are taken"
        )


def _check_value(field: SettingField, value: Any) -> None:
    _check_type(field, value)
    if field.choices and value not in field.choices:
        raise TrainerError(f"{field.name} is {value!r}: choose one of {', '.join(field.choices)}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise TrainerError(f"{field.name} is {value}: it must be a finite number")
        if field.minimum is not None and value < field.minimum:
            raise TrainerError(f"{field.name} is {value}: it must be at least {field.minimum}")
        if field.maximum is not None and value > field.maximum:
            raise TrainerError(f"{field.name} is {value}: it must be at most {field.maximum}")


def _check_type(field: SettingField, value: Any) -> None:
    wanted = type(field.default)
    accepted: tuple[type, ...] = (int, float) if wanted is float else (wanted,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise TrainerError(f"{field.name} is {value!r}: it must be of type {wanted.__name__}")
