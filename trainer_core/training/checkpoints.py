"""Writing, finding and reading checkpoints.

A checkpoint is a folder that appears whole or not at all. Random draws and the position in the data follow from seed
and step (data/batches.py), so the step is all that has to be stored of them.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import TrainerError
from ..files import write_json_atomically, write_safetensors_atomically

logger = logging.getLogger(__name__)

STATE_TENSORS = "training_state.safetensors"
STATE_JSON = "training_state.json"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    exported: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    adapter_file: str,
) -> None:
    """Write everything that is needed to go on from a step.

    Args:
        folder: Its final path; written beside it and renamed.
        step: Optimizer steps done.
        parameters: What is trained, in the optimizer's order.
        optimizer: With its state.
        exported: The adapter with ComfyUI's keys.
        metadata: Of the adapter file.
        adapter_file: Name of the adapter file.
    """
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {f"parameter/{name}": parameter for name, parameter in parameters.items()}
    plain: dict[str, dict[str, Any]] = {}
    for name, index in zip(parameters, _parameter_indices(state), strict=True):
        for key, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]
    try:
        write_safetensors_atomically(temporary / STATE_TENSORS, tensors)
        write_json_atomically(temporary / STATE_JSON, {"step": step, "param_groups": groups, "state": plain})
        write_safetensors_atomically(temporary / adapter_file, exported, metadata)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _parameter_indices(state: Mapping[str, Any]) -> list[int]:
    return [index for group in state["param_groups"] for index in group["params"]]


def list_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    whole = (path for path in checkpoints_dir.glob("step-*") if (path / STATE_JSON).exists())
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def prune_checkpoints(checkpoints_dir: Path, num_kept: int) -> None:
    """Delete all but the newest, and what a crash left behind; what another program holds open stays for now."""
    for path in [*list_checkpoints(checkpoints_dir)[:-num_kept], *checkpoints_dir.glob(".step-*.tmp")]:
        try:
            shutil.rmtree(path)
        except OSError as error:
            logger.warning("%s cannot be deleted now: %s", path, error)


def load_checkpoint(folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's values into parameters and optimizer, in place.

    Returns:
        The optimizer steps done.

    Raises:
        TrainerError: The files are damaged or belong to another adapter.
    """
    try:
        tensors = load_file(folder / STATE_TENSORS)
        record = json.loads((folder / STATE_JSON).read_text(encoding="utf-8"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise TrainerError(
            f"checkpoint {folder.name} is damaged ({error}): delete it to resume from the one before"
        ) from error
    stored = {name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")}
    if stored != set(parameters):
        raise TrainerError(f"checkpoint {folder.name} belongs to another adapter: delete it or choose another run_name")
    state: dict[int, dict[str, Any]] = {}
    with torch.no_grad():
        for index, (name, parameter) in enumerate(parameters.items()):
            parameter.copy_(tensors[f"parameter/{name}"])
            prefix = f"optimizer/{name}/"
            state[index] = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            state[index].update(record["state"].get(name, {}))
    groups = optimizer.state_dict()["param_groups"]
    groups = [
        {**stored, "params": group["params"]} for stored, group in zip(record["param_groups"], groups, strict=True)
    ]
    optimizer.load_state_dict({"state": {k: v for k, v in state.items() if v}, "param_groups": groups})
    return int(record["step"])
