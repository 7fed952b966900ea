"""The surroundings of steps outside of ComfyUI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..context import StepContext
from ..data.folder import DEMO_FOLDER
from ..errors import TrainerError
from ..events import Event
from ..launch import local_index, num_launched
from ..lumina2.models.base_files import DEMO_BASE, FROM_BASE
from ..processes import Processes

MODEL_KINDS = ("checkpoints", "diffusion_models", "diffusers", "text_encoders", "vae", "loras")
"""Subfolders of a ComfyUI models folder."""
PATH_INPUTS = (
    ".folder",
    ".mask_folder",
    ".prompt_library",
    ".base",
    ".text_encoder",
    ".vae",
    ".clip_model",
    ".start_from",
)
"""Inputs whose values, typed on the command line, are allowed paths."""
NO_PATHS = ("", DEMO_FOLDER, DEMO_BASE, FROM_BASE)
"""Values of theirs that stand for something else."""


def make_context(
    *,
    output_dir: Path,
    device: str = "",
    roots: Sequence[Path] = (),
    models: Sequence[Path] = (),
    trusted: Iterable[str] = (),
    emit: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    workflow: str = "",
) -> StepContext:
    """Build a context from the command line's arguments.

    Args:
        output_dir: Where runs, caches and adapters go.
        device: Name of a torch device; the fastest there is if empty.
        roots: Folders that datasets may lie in.
        models: ComfyUI models folders.
        trusted: Paths typed on the command line; what lies there is allowed.
        emit: Takes every event.
        should_stop: Asked between steps.
        workflow: JSON text of the workflow.

    Raises:
        TrainerError: The device is unknown or not there.
    """
    typed = [Path(value).expanduser().absolute() for value in trusted]
    model_dirs = {
        kind: (*(folder / kind for folder in models), *(path.parent for path in typed)) for kind in MODEL_KINDS
    }
    return StepContext(
        output_dir=output_dir.absolute(),
        loras_dir=output_dir.absolute() / "loras",
        device=_find_device(device),
        roots=(*(root.absolute() for root in roots), *typed),
        model_dirs=model_dirs,
        emit=emit,
        should_stop=should_stop,
        workflow=workflow,
    )


def taking_part(context: StepContext, processes: Processes) -> StepContext:
    """The same surroundings for one of several processes, of which only the main one reports."""
    return replace(context, processes=processes, emit=context.emit if processes.is_main else lambda event: None)


def _find_device(name: str) -> torch.device:
    if num_launched() > 1:
        return _device_of_its_own(name)
    if not name:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainerError(f"device {name!r} cannot be used: {error}") from error
    return device


def _device_of_its_own(name: str) -> torch.device:
    """For one of several processes: a GPU each, or the CPU for all."""
    if name == "cpu" or not (name or torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("", "cuda"):
        raise TrainerError(
            f"--device {name} is one device for {num_launched()} processes: leave it out, and each takes its own GPU"
        )
    num_gpus = torch.cuda.device_count()
    if local_index() >= num_gpus:
        raise TrainerError(
            f"{local_index() + 1} processes on a machine with {num_gpus} GPUs: start no more than it has"
            " (--num_processes of accelerate launch)"
        )
    return torch.device("cuda", local_index())


def split_assignments(texts: Sequence[str]) -> dict[str, str]:
    """`NODE.INPUT=VALUE` texts as a mapping.

    Raises:
        TrainerError: A text has no "=" or no ".".
    """
    assignments = {}
    for text in texts:
        target, equals, value = text.partition("=")
        if not equals or "." not in target:
            raise TrainerError(f"--set {text!r}: write NODE.INPUT=VALUE, such as 5.steps=200")
        assignments[target] = value
    return assignments


def find_typed_paths(assignments: Mapping[str, str]) -> dict[str, str]:
    """The assignments that are paths, absolute if they lead somewhere from the current folder.

    Args:
        assignments: Text by "NODE.INPUT".
    """
    typed = {}
    for target, value in assignments.items():
        if target.endswith(PATH_INPUTS) and value not in NO_PATHS:
            path = os.path.abspath(os.path.expanduser(value))
            typed[target] = path if os.path.exists(path) else value
    return typed
