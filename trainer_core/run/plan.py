"""What a run will take in memory and time, before its weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data.sample_sizes import SampleSize
from ..lumina2.memory.plan import GIB, MemoryPlan
from ..run_time import estimate_seconds
from .job import TrainJob
from .memory import plan_memory
from .trained_weights import TrainedWeights


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """How a run is made to fit, and how long it will take."""

    memory: MemoryPlan
    seconds: float
    """From the first step to the end; see `estimate_seconds`."""
    first_step: int
    """Steps done before."""
    num_steps: int

    def to_json(self) -> dict[str, Any]:
        """As the events `planned` and `forecast` say it."""
        peak = self.memory.peak_bytes
        return {
            "step": self.first_step,
            "total": self.num_steps,
            "memory_plan": self.memory.sentence,
            "predicted_peak_gib": None if peak is None else peak / GIB,
            "predicted_seconds": self.seconds,
        }


def plan_run(
    job: TrainJob,
    weights: TrainedWeights,
    samples: Sequence[SampleSize],
    held_out: Sequence[SampleSize],
    device: torch.device,
    first_step: int = 0,
    memory: MemoryPlan | None = None,
) -> RunPlan:
    """Choose what is done to save memory, and guess the time.

    Args:
        job: The run.
        weights: What of it is trained.
        samples: What is trained on.
        held_out: What is measured on.
        device: Where.
        first_step: Steps done before.
        memory: The memory plan, if it is settled.

    Raises:
        TrainerError: It cannot fit, or the weights do not suit the base.
    """
    memory = memory or plan_memory(job, weights, samples, device)
    seconds = estimate_seconds(job, memory, samples, held_out, device, first_step)
    return RunPlan(memory=memory, seconds=seconds, first_step=first_step, num_steps=job.train.steps)
