"""Make a large GPU a smaller one: a process holds the rest of its memory, and torch is told another total."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SMALLER_CARD_DIR = Path(__file__).parent / "smaller_card"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU as people have it."""

    total_gib: float
    """The memory that CUDA reports."""
    free_gib: float
    """With a desktop on it."""


CARDS = {
    "4": Card(total_gib=3.8, free_gib=3.4),
    "6": Card(total_gib=5.77, free_gib=5.2),
    "8": Card(total_gib=7.65, free_gib=6.9),
    "10": Card(total_gib=9.65, free_gib=8.9),
    "12": Card(total_gib=11.76, free_gib=11.0),
    "16": Card(total_gib=15.6, free_gib=14.8),
    "24": Card(total_gib=23.6, free_gib=23.0),
}
"""By their GB on the box."""


@contextmanager
def emulated(card: Card) -> Iterator[dict[str, str]]:
    """The GPU is this card within the block, for processes started with the variables given."""
    command = [sys.executable, str(SMALLER_CARD_DIR / "hold.py"), str(card.free_gib)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None and holder.stdout is not None
    try:
        if not holder.stdout.readline():
            raise RuntimeError(f"the GPU has no {card.free_gib} GiB to leave free")
        yield variables(card, os.environ)
    finally:
        holder.stdin.close()
        holder.wait()


def variables(card: Card, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that shall see the card."""
    paths = os.pathsep.join(filter(None, [str(SMALLER_CARD_DIR), environment.get("PYTHONPATH")]))
    return {**environment, "PYTHONPATH": paths, "SMALLER_CARD_GIB": str(card.total_gib)}
