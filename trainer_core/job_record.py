"""job.json and the fingerprint that tells whether two jobs are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from .adapters.kinds import AdapterSettings
from .lumina2.models.checkpoint import fingerprint_files
from .run.job import TrainJob

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")
IDENTITY_EXCLUDES = frozenset({"run_name", "gradient_checkpointing", "memory", "optimizer_state"})
"""Widgets of Train and Optimizer that change neither data, objective nor result."""


def fingerprint_job(job: TrainJob, num_processes: int = 1) -> str:
    """Identifies what is learned: base, data, adapter, optimizer, noise, rollout.

    How a run is watched is left out (validation except the share held out, checkpoints, recomputation, tracking, hub),
    so that changing it resumes the run. So is how the batches of a step are shared out: two processes go on with what
    one began with twice the gradient_accumulation_steps.
    """
    optimizer = _identity_of(job.optimizer)
    optimizer["gradient_accumulation_steps"] *= num_processes
    identity: dict[str, Any] = {
        "model": [job.model.fingerprint, job.model.precision, job.model.text_attention],
        "data": [job.latents.fingerprint, job.embeds.fingerprint],
        "train": _identity_of(job.train),
        "adapter": None if job.adapter is None else _adapter_identity(job.adapter),
        "optimizer": optimizer,
        "noise": dataclasses.asdict(job.noise),
        **({} if job.rollout is None else {"rollout": dataclasses.asdict(job.rollout)}),  # not in older versions
        "ema": [job.checkpoints.ema_decay, job.checkpoints.ema_step_interval] if job.checkpoints.use_ema else None,
    }
    if job.validation is not None and job.validation.held_out_share:
        identity["held_out_share"] = job.validation.held_out_share
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _identity_of(settings: Any) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in IDENTITY_EXCLUDES}


def _adapter_identity(settings: AdapterSettings) -> dict[str, Any]:
    """Its settings, with the content of the file it starts from instead of the name."""
    identity = dataclasses.asdict(settings)
    if identity.get("start_from"):
        identity["start_from"] = fingerprint_files([Path(identity["start_from"])])
    return identity


def describe_job(job: TrainJob, num_samples: int, device: str, num_processes: int = 1) -> dict[str, Any]:
    """What job.json holds: every setting, the versions, the fingerprints."""
    return {
        **dataclasses.asdict(job),
        "fingerprint": fingerprint_job(job, num_processes),
        "num_samples": num_samples,
        "device": device,
        "num_processes": num_processes,
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what comes out."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
