"""What surrounds a step: folders it may read and write, the device, and a way to talk back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath

import torch

from .errors import TrainerError
from .events import Event, Request
from .processes import ALONE, Processes

PACK_DIR = Path(__file__).resolve().parent.parent
DEMO_DIR = PACK_DIR / "demo"
RUNS_FOLDER = "lumina2_trainer"
"""Folder below the output folder that holds caches and runs; also the prefix of events and routes."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Given to every step by the node or by the command line."""

    output_dir: Path
    """Where runs and caches are written, below `lumina2_trainer/`."""
    loras_dir: Path
    """Where Save Adapter puts its files."""
    device: torch.device
    """Where models run."""
    model_output_dirs: Mapping[str, Path] = field(default_factory=dict)
    """Where Save Model puts models of a kind (checkpoints, diffusion_models, diffusers); below the output folder if
    it is not said."""
    roots: tuple[Path, ...] = ()
    """Folders that datasets may lie in; the demo folder is always one."""
    model_dirs: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Where model files of a kind lie: checkpoints, diffusion_models, diffusers, text_encoders, vae, loras."""
    emit: Callable[[Event], None] = lambda event: None
    """Takes every event; must not block."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked between steps and between cache entries."""
    take_requests: Callable[[str], frozenset[Request]] = lambda run: frozenset()
    """What was asked of this run since the last call."""
    before_encoding: Callable[[], None] = lambda: None
    """Called when pictures or captions must be encoded, so that the runs they are for have to wait."""
    processes: Processes = ALONE
    """Who works on the same workflow, each on a GPU of its own."""
    workflow: str = ""
    """The workflow as JSON text, kept beside the run; empty if unknown."""

    @property
    def alone(self) -> StepContext:
        """The same for what one process does without the others."""
        return replace(self, processes=ALONE)

    @property
    def runs_dir(self) -> Path:
        """Parent of all run folders."""
        return self.output_dir / RUNS_FOLDER

    @property
    def cache_dir(self) -> Path:
        """Parent of the latent and text caches."""
        return self.runs_dir / "cache"

    def model_output_dir(self, kind: str) -> Path:
        """Where models of a kind are saved."""
        return self.model_output_dirs.get(kind, self.output_dir / kind)

    def resolve_inside_roots(self, path: str, what: str) -> Path:
        """The real path of something a workflow names, if it lies in an allowed folder.

        Args:
            path: Absolute, or relative to one of the roots.
            what: Name of the setting, for the message.

        Raises:
            TrainerError: The path does not exist or lies outside of every root.
        """
        if "\x00" in path or PureWindowsPath(path).drive.startswith("\\\\"):
            raise TrainerError(f"{what} {path!r} is not a path on this machine")
        roots = [root.resolve() for root in (*self.roots, DEMO_DIR)]
        allowed = ", ".join(str(root) for root in roots)
        try:
            typed = Path(path).expanduser()
            candidates = [typed] if typed.is_absolute() else [root / path for root in roots]
            inside = [c.resolve() for c in candidates if any(c.resolve().is_relative_to(root) for root in roots)]
            found = next((c for c in inside if c.exists()), None)
        except (OSError, RuntimeError) as error:  # a name too long, an unknown user after "~", a loop of links
            raise TrainerError(f"{what} {path!r} cannot be opened: {error}") from error
        if found is not None:
            return found
        if len(inside) == len(candidates):
            raise TrainerError(f"{what} {path!r} does not exist; looked in {allowed}")
        raise TrainerError(f"{what} {path!r} lies outside of the allowed folders: move it into one of {allowed}")

    def find_model(self, kinds: tuple[str, ...], name: str, what: str) -> Path:
        """A model file or folder by the name the combo shows.

        Links inside the models folder are followed wherever they lead: the user put them there.

        Args:
            kinds: Keys of `model_dirs`, searched in this order.
            name: Relative to such a folder, or an absolute path inside one.
            what: Name of the setting, for the message.

        Raises:
            TrainerError: No folder of these kinds holds it.
        """
        folders = [Path(os.path.abspath(folder)) for kind in kinds for folder in self.model_dirs.get(kind, ())]
        for folder in folders:
            path = Path(os.path.abspath(folder / os.path.expanduser(name)))
            if path.is_relative_to(folder) and path.exists():
                return path
        searched = ", ".join(str(folder) for folder in folders) or "no folder: none is configured"
        raise TrainerError(f"{what} {name!r} was not found; searched {searched}")
