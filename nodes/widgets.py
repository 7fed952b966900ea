"""Widgets generated from a settings dataclass: node and command line share one default and one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy_api.latest import io

from ..trainer_core.settings import SettingField, check_known, describe_settings
from . import host


def build_widgets(
    settings_class: type, *, only: Sequence[str] = (), choices: Mapping[str, Sequence[str]] | None = None
) -> list[io.Input]:
    """One widget for each setting, in order; the input id is the field's name.

    Args:
        settings_class: A settings dataclass of trainer_core.
        only: Names of the settings wanted; all if empty.
        choices: Combo entries of fields whose choices only this machine knows, such as model files.
    """
    extra = choices or {}
    fields = [field for field in describe_settings(settings_class) if not only or field.name in only]
    return [_build_widget(field, extra.get(field.name, field.choices)) for field in fields]


def check_widgets(settings_class: type, inputs: Mapping[str, Any]) -> bool:
    """Refuse a prompt whose widgets no step would take; for `validate_inputs`, where it takes the place of the limits.

    It raises, for ComfyUI 0.3.64 and 0.33 show a sentence that is returned once for each input.

    Args:
        settings_class: A settings dataclass of trainer_core.
        inputs: Of the node; None where another node gives the value.

    Returns:
        True.

    Raises:
        ValueError: What is wrong.
    """
    with host.readable_errors():
        check_known(settings_class, inputs)
    return True


def _build_widget(field: SettingField, choices: Sequence[str]) -> io.Input:
    shared = {
        "id": field.name,
        "default": field.default,
        "tooltip": field.docstring,
        "optional": field.is_optional,
    }
    is_combo = bool(choices)
    widget = (
        io.Combo.Input(options=list(choices), **shared) if is_combo else WIDGETS[type(field.default)](field, shared)
    )
    if field.is_advanced:  # no argument in ComfyUI 0.3, whose frontend shows these widgets like the others
        widget.extra_dict["advanced"] = True
    return widget


def _int_widget(field: SettingField, shared: dict) -> io.Input:
    # The frontend adds "randomize after generate" to every INT called seed unless told not to: that would train anew
    # at each queueing.
    limits = {"min": _whole(field.minimum), "max": _whole(field.maximum), "step": _whole(field.step)}
    return io.Int.Input(control_after_generate=False, **limits, **shared)


def _float_widget(field: SettingField, shared: dict) -> io.Input:
    return io.Float.Input(min=field.minimum, max=field.maximum, step=field.step, **shared)


def _string_widget(field: SettingField, shared: dict) -> io.Input:
    # Dynamic prompts would turn "{a|b}" in a caption into a random choice in the browser.
    return io.String.Input(multiline=field.multiline, dynamic_prompts=False, **shared)


def _boolean_widget(field: SettingField, shared: dict) -> io.Input:
    return io.Boolean.Input(**shared)


WIDGETS = {int: _int_widget, float: _float_widget, str: _string_widget, bool: _boolean_widget}
"""By the type of a setting's default."""


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
