"""What a run will take in memory and time, before its weights are read.

The time is guessed from the arithmetic; the first steps tell better.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.sample_sizes import TOKEN_PIXELS, SampleSize
from ..lumina2.memory.plan import GIB, MemoryPlan, relative_time
from ..lumina2.network.transformer import Lumina2Transformer
from ..lumina2.ops.cpu_matmul import multiply
from ..lumina2.quant.precision import PRECISIONS
from ..run_names import VALIDATED_WEIGHTS
from ..validation.pictures import plan_pictures
from ..validation.settings import ValidationSettings
from .held_out import NUM_DRAWS
from .job import TrainJob, count_due
from .memory import describe_network, plan_memory
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


SHARE_OF_RATE = 0.6
"""Of the rate of one large product, what steps reach on the whole: 0.55 to 0.64 on an H100 (benchmarks/RESULTS.md)."""
SHARE_OF_RATE_WHOLE = 0.4
"""The same where the model's own weights are trained, whose update moves them all."""
SHARE_OF_RATE_OF_CPU = 0.25
"""On a CPU, where networks that can be trained are small, and so are their products: the demo reaches 0.2 to 0.4."""
ATTENTION_BACKWARD = 2.5
"""Of its forward pass: five products in place of two."""
PROBE_SIDE, PROBE_SIDE_OF_CPU = 4096, 1024
NUM_PROBES = 3
MAX_COUNTED_SAMPLES = 256
"""Of a large dataset, so many stand for all."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Operations of one forward pass over one sample."""

    products: float
    """With weights."""
    attention: float

    @property
    def total(self) -> float:
        return self.products + self.attention


def estimate_seconds(
    job: TrainJob,
    plan: MemoryPlan,
    samples: Sequence[SampleSize],
    held_out: Sequence[SampleSize],
    device: torch.device,
    first_step: int,
) -> float:
    """Seconds from a step of a run to its end.

    Counts the training steps, the validation pictures and the held-out loss; not the loading, rollouts, and the model
    that scores pictures.

    Args:
        job: The run.
        plan: What is computed twice to save memory.
        samples: What is trained on.
        held_out: What is measured on.
        device: Where; its rate is measured by a few products, which takes a moment.
        first_step: Steps done before.
    """
    network = describe_network(job)
    operations = (job.train.steps - first_step) * _step_operations(job, plan, network, samples)
    if job.validation is not None:
        operations += _picture_operations(job, job.validation, network, samples, first_step)
        operations += _held_out_operations(job, job.validation, network, held_out, first_step)
    share = SHARE_OF_RATE_WHOLE if job.adapter is None else SHARE_OF_RATE
    if device.type == "cpu":
        share = SHARE_OF_RATE_OF_CPU
    return operations / (share * measure_rate(device, PRECISIONS[job.model.precision].dtype))


def measure_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    side = PROBE_SIDE_OF_CPU if device.type == "cpu" else PROBE_SIDE
    generator = torch.Generator(device).manual_seed(0)  # GPUs are faster with equal values, and slower with real ones
    a, b = (torch.rand(side, side, device=device, dtype=dtype, generator=generator) for _ in range(2))
    seconds = []
    for _ in range(1 + NUM_PROBES):  # the first one starts the library
        started = time.perf_counter()
        multiply(a, b)[0, 0].item()  # waits for it on every kind of device
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / min(seconds[1:])


def count_pass(network: Lumina2Transformer, caption_tokens: int, image_tokens: int) -> Pass:
    """Operations of one forward pass: two a weight and token, and four a value for each pair of tokens."""
    hidden, joint_tokens = network.config.hidden_size, caption_tokens + image_tokens
    parts = (
        (network.context_refiner, caption_tokens),
        (network.noise_refiner, image_tokens),
        (network.layers, joint_tokens),
    )
    return Pass(
        products=sum(2.0 * _count_weights(block) * tokens for blocks, tokens in parts for block in blocks),
        attention=sum(4.0 * hidden * len(blocks) * tokens**2 for blocks, tokens in parts),
    )


def _count_weights(block: nn.Module) -> int:
    """Of the matrices that every token is multiplied with; modulation has one row a sample."""
    return sum(p.numel() for name, p in block.named_parameters() if p.ndim == 2 and "adaLN" not in name)


def _step_operations(
    job: TrainJob, plan: MemoryPlan, network: Lumina2Transformer, samples: Sequence[SampleSize]
) -> float:
    """Of one optimizer step over samples as they come on the average."""
    again = relative_time(plan.measures) / len(network.blocks)
    backward = 2 if job.adapter is None else 1
    total, num_samples = 0.0, 0
    for sample in samples[:: max(1, len(samples) // MAX_COUNTED_SAMPLES)]:
        one = _pass_of(network, sample)
        operations = one.products * (1 + backward + again) + one.attention * (1 + ATTENTION_BACKWARD + again)
        total += sample.repeats * operations
        num_samples += sample.repeats
    return total / num_samples * job.train.batch_size * job.optimizer.gradient_accumulation_steps


def _picture_operations(
    job: TrainJob,
    settings: ValidationSettings,
    network: Lumina2Transformer,
    samples: Sequence[SampleSize],
    first_step: int,
) -> float:
    caption_tokens = samples[0].caption_tokens[0]  # a prompt is about as long as a caption
    once = 0.0
    for picture in plan_pictures(settings):
        is_guided = settings.guidance_scale != 1 and not picture.is_unconditional
        one = count_pass(network, caption_tokens, picture.width * picture.height // TOKEN_PIXELS).total
        once += one * settings.num_inference_steps * (2 if is_guided else 1)
    times = count_due(settings.every_num_steps, first_step, job.train.steps) * _num_views(job)
    return once * (times + (settings.draw_base and first_step == 0))


def _held_out_operations(
    job: TrainJob,
    settings: ValidationSettings,
    network: Lumina2Transformer,
    held_out: Sequence[SampleSize],
    first_step: int,
) -> float:
    once = NUM_DRAWS * sum(_pass_of(network, sample).total for sample in held_out)
    times = count_due(settings.held_out_step_interval, first_step, job.train.steps) * _num_views(job)
    return once * (times + (first_step == 0))


def _num_views(job: TrainJob) -> int:
    """Kinds of weights that are looked at."""
    return len(VALIDATED_WEIGHTS[job.checkpoints.ema_validation]) if job.checkpoints.use_ema else 1


def _pass_of(network: Lumina2Transformer, sample: SampleSize) -> Pass:
    return count_pass(network, sample.caption_tokens[0], sample.image_tokens)


def format_duration(seconds: float) -> str:
    """Minutes and seconds as 14:30, from an hour on with hours."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
