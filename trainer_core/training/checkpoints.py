"""Writing, finding and reading checkpoints.

A checkpoint is a folder that appears whole or not at all. Random draws and the position in the data follow from seed
and step (data/batches.py), so the step is all that has to be stored of them.
"""

from __future__ import annotations

import copy
import functools
import json
import operator
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import TrainerError
from ..files import delete_folders, write_json_atomically, write_safetensors_atomically
from ..run_names import list_step_folders

STATE_TENSORS = "training_state.safetensors"
STATE_JSON = "training_state.json"
PARAMETER, OPTIMIZER, GROUP, AVERAGE = "parameter/", "optimizer/", "group/", "average/"
"""What names in STATE_TENSORS begin with."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of trained weights for other programs."""

    name: str
    opened: Callable[[], AbstractContextManager[Mapping[str, Tensor]]]
    """Its tensors, which hold within the context."""
    metadata: Mapping[str, str]
    is_trained: bool
    """Parameters among its tensors have the values that training goes on from."""


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    files: Sequence[WeightsFile],
    average: Mapping[str, Tensor] | None = None,
) -> None:
    """Write everything that is needed to go on from a step, one tensor at a time.

    Where a file holds the parameters themselves, they are not written a second time. Of the whole Lumina2 trained by
    adamw8bit, weights and state take 5.2 GB each.

    Args:
        folder: Its final path; written beside it and renamed.
        step: Optimizer steps done.
        parameters: What is trained.
        optimizer: Of these parameters, with its state.
        files: What other programs read.
        average: Running average of the parameters, by their names.
    """
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {f"{AVERAGE}{name}": value for name, value in (average or {}).items()}
    plain: dict[str, dict[str, Any]] = {}
    for name, index in _parameter_indices(parameters, optimizer).items():
        values = state["state"].get(index, {})
        tensors.update({f"{OPTIMIZER}{name}/{kind}": value for kind, value in _tensors_within(values)})
        if values:
            plain[name] = _without_tensors(values)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    for number, group in enumerate(groups):
        tensors.update({f"{GROUP}{number}/{k}": v for k, v in group.items() if isinstance(v, Tensor)})
        groups[number] = {k: v for k, v in group.items() if not isinstance(v, Tensor)}
    try:
        exact_weights = _write_files(temporary, files, parameters)
        if exact_weights is None:
            tensors.update({f"{PARAMETER}{name}": parameter for name, parameter in parameters.items()})
        write_safetensors_atomically(temporary / STATE_TENSORS, tensors)
        record = {"step": step, "param_groups": groups, "state": plain, "exact_weights": exact_weights}
        write_json_atomically(temporary / STATE_JSON, record)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tensors_within(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a parameter's state, whose parts may be states themselves (bitsandbytes); paths have slashes."""
    for key, value in values.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors_within(value, f"{prefix}{key}/")


def _without_tensors(values: Mapping[str, Any]) -> dict[str, Any]:
    """The rest of such a state."""
    return {
        key: _without_tensors(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not isinstance(value, Tensor)
    }


def _write_files(folder: Path, files: Sequence[WeightsFile], parameters: Mapping[str, nn.Parameter]) -> str | None:
    """Write them; the name of the one that training can go on from."""
    exact_weights = None
    for file in files:
        with file.opened() as tensors:
            if file.is_trained and all(tensors.get(name) is parameter for name, parameter in parameters.items()):
                exact_weights = file.name
            write_safetensors_atomically(folder / file.name, tensors, file.metadata)
    return exact_weights


def _parameter_indices(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """By name, what an optimizer's state calls each parameter: groups may have another order."""
    ordered = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(ordered) == len(parameters), "the optimizer has other parameters"
    places = {identity: index for index, identity in enumerate(ordered)}
    return {name: places[id(parameter)] for name, parameter in parameters.items()}


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return [path for path in list_step_folders(checkpoints_dir) if (path / STATE_JSON).exists()]


def prune_checkpoints(checkpoints_dir: Path, num_kept: int) -> None:
    """Delete all but the newest, and what a crash left behind; what another program holds open stays for now."""
    delete_folders([*list_checkpoints(checkpoints_dir)[:-num_kept], *checkpoints_dir.glob(".step-*.tmp")])


def load_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor] | None = None,
) -> int:
    """Put a checkpoint's values into parameters, optimizer and average, in place, one tensor at a time.

    Returns:
        The optimizer steps done.

    Raises:
        TrainerError: The files are damaged or belong to another run.
    """
    try:
        record = json.loads((folder / STATE_JSON).read_text(encoding="utf-8"))
        exact_weights = record.get("exact_weights")
        with (
            safe_open(folder / STATE_TENSORS, "pt") as state,
            safe_open(folder / (exact_weights or STATE_TENSORS), "pt") as weights,
        ):
            prefix = "" if exact_weights else PARAMETER
            stored = {name.removeprefix(prefix) for name in weights.keys() if name.startswith(prefix)}  # noqa: SIM118
            if stored != set(parameters):
                raise TrainerError(
                    f"checkpoint {folder.name} belongs to another run: delete it or choose another run_name"
                )
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(weights.get_tensor(f"{prefix}{name}"))
                for name, value in (average or {}).items():
                    value.copy_(state.get_tensor(f"{AVERAGE}{name}"))
            groups = [
                {**kept, **_group_tensors(state, number), "params": group["params"]}
                for number, (kept, group) in enumerate(
                    zip(record["param_groups"], optimizer.state_dict()["param_groups"], strict=True)
                )
            ]
            indices = _parameter_indices(parameters, optimizer)
            states = _StoredStates(state, sorted(indices, key=indices.__getitem__), record["state"])
            optimizer.load_state_dict({"state": states, "param_groups": groups})
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise TrainerError(
            f"checkpoint {folder.name} is damaged ({error}): delete it to resume from the one before"
        ) from error
    return int(record["step"])


def _group_tensors(file: Any, number: int) -> dict[str, Tensor]:
    prefix = f"{GROUP}{number}/"
    # Copies, for the file's tensors are views of the mapped file, which must not stay open.
    return {k.removeprefix(prefix): file.get_tensor(k).clone() for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118


class _StoredStates(Mapping[int, dict[str, Any]]):
    """The optimizer's state of each parameter by its index, read when it is asked for."""

    def __init__(self, file: Any, names: list[str], plain: Mapping[str, Mapping[str, Any]]) -> None:
        self._file = file
        self._names = names
        self._plain = plain
        self._keys: dict[str, list[str]] = {}
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            if key.startswith(OPTIMIZER):
                name, _, kind = key.removeprefix(OPTIMIZER).partition("/")
                self._keys.setdefault(name, []).append(kind)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self._names[index]
        values: dict[str, Any] = copy.deepcopy(dict(self._plain.get(name, {})))
        for kind in self._keys.get(name, []):
            *path, key = kind.split("/")
            part = functools.reduce(operator.getitem, path, values)
            part[key] = self._file.get_tensor(f"{OPTIMIZER}{name}/{kind}").clone()
        return values

    def __iter__(self) -> Iterator[int]:
        return (i for i, name in enumerate(self._names) if name in self._keys or name in self._plain)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[int, dict[str, Any]]:
        """All of it at once, for optimizers that want a copy of their own (bitsandbytes 0.50)."""
        return dict(self)
