"""The trainers that are compared, by what they train.

Each prepares itself for a setup in a process of its own. Their modules import nothing heavy before they are called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..material import Setup
from . import comfyui, diffusers_peft, ours, sd_scripts
from .prepared import PreparedTrainer

TRAINERS: dict[str, dict[str, Callable[[Setup], PreparedTrainer]]] = {
    "lora": {
        "ours": ours.train_lora,
        "ours-fp8": functools.partial(ours.train_lora, precision="fp8"),
        "ours-int8": functools.partial(ours.train_lora, precision="int8"),
        "ours-nf4": functools.partial(ours.train_lora, precision="nf4"),
        "diffusers": diffusers_peft.train_lora,
        "comfyui": comfyui.train_lora,
        "sd-scripts": sd_scripts.train_lora,
    },
    "full": {
        "ours": ours.train_full,
        "ours-host": functools.partial(ours.train_full, optimizer_state="host"),
        "diffusers": diffusers_peft.train_full,
    },
}
"""By `Case.trained`, then by name; the first one of a case that works is the reference of its rows."""

TRAINER_NAMES = tuple(dict.fromkeys(name for by_name in TRAINERS.values() for name in by_name))
NEED_CHECKOUT = {"comfyui": "comfyui", "sd-scripts": "sd_scripts"}
"""The field of Checkouts that a trainer needs."""
