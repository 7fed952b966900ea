"""Finds entries of the data backend file by what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .rules import Options, flag, text


def read_entries(where: str, entries: Sequence[Mapping[str, Any]]) -> tuple[Options, ...]:
    """Every entry with what messages call it."""
    named = []
    for number, entry in enumerate(entries, start=1):
        name = text(Options(where=f"{where}, entry {number}", given=entry), "id") or f"entry {number}"
        named.append(Options(where=f"{where}, {name}", given=entry))
    return tuple(named)


def kind_of(entry: Options) -> str:
    """Its dataset_type."""
    return text(entry, "dataset_type").strip().lower() or "image"


def place_of(entry: Options) -> str:
    """Its type: "local" is a folder of this machine."""
    return text(entry, "type").strip().lower() or "local"


def is_folder(entry: Options) -> bool:
    """Whether it is a folder of this machine that is in use."""
    return place_of(entry) == "local" and not flag(entry, "disabled")


def holds(entries: Iterable[Options], kind: str) -> bool:
    """Whether an entry of this kind is in use."""
    return any(kind_of(entry) == kind and not flag(entry, "disabled") for entry in entries)
