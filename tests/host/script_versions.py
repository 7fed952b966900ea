"""Runs in the host: which libraries it has, and whether it took its command line."""

from __future__ import annotations

from typing import Any

import comfy.cli_args
import lumina2_trainer
import torch


def main(word: str) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "cpu": comfy.cli_args.args.cpu,
        "web_directory": lumina2_trainer.WEB_DIRECTORY,
        "word": word,
    }
