"""The memory plan of a job: what it will train, on what batches and device, and how much it may take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..data.sample_sizes import SampleSize
from ..device import available_memory
from ..launch import num_launched
from ..lumina2.encoders.prompts import UNCONDITIONAL_TOKENS
from ..lumina2.memory.estimate import Measures, StepEstimate
from ..lumina2.memory.plan import GIB, Budget, Freedom, MemoryPlan, choose_plan, describe, smallest_peak
from ..lumina2.memory.sizes import DeviceFacts, ModelSize, SampleTokens, largest_batch, measure_model
from ..lumina2.models.checkpoint import read_config
from ..lumina2.network.transformer import Lumina2Transformer
from ..lumina2.ops.attention import has_padded_attention
from ..lumina2.ops.ops import is_fused
from ..lumina2.quant.precision import PRECISIONS
from ..training.low_resolution import num_low_resolution_tokens
from ..training.optim.optimizers import OPTIMIZERS, state_bytes_on_device
from ..training.updates import MAX_EXCHANGED_BYTES
from .job import TrainJob, parse_memory
from .trained_weights import TrainedWeights

RESERVED_SHARE = 1 / 16
MIN_RESERVE = GIB / 2
"""Left free of a GPU by "auto": a sixteenth of its memory and at least this, for what the allocator cannot use."""
MAX_RESERVED_SHARE = 1 / 8
"""The reserve is never more than this share of what is free: on a large GPU that others fill, too."""
NEXT_SHARE = 15 / 16
"""The plan after one that ran out of memory takes this share of its predicted peak at most."""
WORKSPACE_BYTES = {9: 32 * 2**20, 10: 32 * 2**20, 12: 32 * 2**20}
"""cuBLAS's workspace as PyTorch sets it, by major compute capability; Hopper and later have larger ones."""
SMALL_WORKSPACE = 2**23 + 2**17


def plan_memory(
    job: TrainJob, weights: TrainedWeights, samples: Sequence[SampleSize], device: torch.device
) -> MemoryPlan:
    """Choose what is done to save memory in a run, before a weight is read.

    Raises:
        TrainerError: It cannot fit.
    """
    allowed = parse_memory(job.train.memory)
    if allowed is None and device.type == "cpu":
        return _plain_plan(job)
    freedom = _freedom(job, device)
    return choose_plan(estimate_step(job, weights, samples, device), _budget(allowed, device, freedom), freedom)


def plan_less_memory(
    job: TrainJob,
    weights: TrainedWeights,
    samples: Sequence[SampleSize],
    device: torch.device,
    failed: MemoryPlan,
) -> MemoryPlan | None:
    """Choose the plan to go on with after one ran out of memory.

    Args:
        job: The run.
        weights: What of it is trained.
        samples: What is trained on.
        device: Where; what the failed plan held is free again.
        failed: The plan that ran out.

    Returns:
        The fastest that takes noticeably less and fits into what is free now, or the smallest where none does; None if
        the failed plan was the smallest.
    """
    estimate, freedom = estimate_step(job, weights, samples, device), _freedom(job, device)
    failed_peak = estimate.peak(failed.measures)
    smallest = smallest_peak(estimate, freedom)
    if smallest >= failed_peak:
        return None
    usable = math.inf if device.type == "cpu" else _budget(parse_memory(job.train.memory), device, freedom).num_bytes
    budget = Budget(
        num_bytes=max(smallest, min(failed_peak * NEXT_SHARE, usable)),
        reason=f"a plan of {failed_peak / GIB:.1f} GiB ran out of memory",
        remedy="",
    )
    return choose_plan(estimate, budget, freedom)


def _freedom(job: TrainJob, device: torch.device) -> Freedom:
    return Freedom(
        recompute=job.train.gradient_checkpointing,
        slice_feed=job.adapter is not None,
        keep_results=device.type in ("cuda", "cpu"),
        move=device.type == "cuda",
    )


def memory_remedies(job: TrainJob, plan: MemoryPlan) -> list[str]:
    """What would make a run smaller that took more than its plan said."""
    remedies = []
    if not job.train.gradient_checkpointing:
        remedies.append("turn gradient_checkpointing on")
    elif plan.peak_bytes is not None:
        remedies.append(f"set memory to less than {plan.peak_bytes / GIB:.1f}")
    if job.train.batch_size > 1:
        remedies.append("lower batch_size")
    remedies.append("lower the resolution of the dataset")
    if job.adapter is not None and PRECISIONS[job.model.precision].matrix_dtype is None:
        remedies.append("choose precision fp8, int8 or nf4 in Load Lumina2")
    return remedies


def memory_limit(job: TrainJob) -> float:
    """Bytes that the job may take on its device; infinite if it may take what is free."""
    allowed = parse_memory(job.train.memory)
    return math.inf if allowed is None else allowed * GIB


def _plain_plan(job: TrainJob) -> MemoryPlan:
    """On a CPU there is no memory of its own to fill: what gradient_checkpointing says."""
    num_blocks = len(describe_network(job).blocks)
    measures = Measures(num_recomputed=num_blocks if job.train.gradient_checkpointing else 0)
    asked = "on" if job.train.gradient_checkpointing else "off"
    sentence = f"memory: on the CPU, {describe(measures, num_blocks)}, for gradient_checkpointing is {asked}"
    return MemoryPlan(measures=measures, sentence=sentence)


def _budget(allowed: float | None, device: torch.device, freedom: Freedom) -> Budget:
    free, total = available_memory(device)
    reserve = min(max(MIN_RESERVE, total * RESERVED_SHARE), free * MAX_RESERVED_SHARE) if freedom.recompute else 0
    if allowed is not None and (device.type == "cpu" or allowed * GIB <= free):
        return Budget(num_bytes=allowed * GIB, reason=f"{allowed:g} GiB allowed", remedy="raise memory")
    if allowed is not None:
        return Budget(
            num_bytes=free - reserve,
            reason=f"{allowed:g} GiB allowed, but only {free / GIB:.1f} free",
            remedy="close what else uses the GPU",
        )
    return Budget(
        num_bytes=free - reserve,
        reason=f"{free / GIB:.1f} GiB free" + (f", {reserve / GIB:.1f} of them reserved" if reserve else ""),
        remedy="close what else uses the GPU",
    )


def estimate_step(
    job: TrainJob, weights: TrainedWeights, samples: Sequence[SampleSize], device: torch.device
) -> StepEstimate:
    """Predict the memory of a job's steps."""
    most = job.train.batch_size  # of one sample in a batch, where small folders are drawn often
    has_second_loss = job.noise.low_resolution_weight > 0  # each picture comes once more, shrunk
    dropped = (UNCONDITIONAL_TOKENS,) if job.train.caption_dropout else ()
    tokens = [
        SampleTokens(
            captions=tuple(count * (2 if has_second_loss else 1) for count in (*s.caption_tokens, *dropped)),
            image=s.image_tokens + (num_low_resolution_tokens(s.width, s.height) if has_second_loss else 0),
            repeats=s.repeats if s.folder_weight is None else most,
        )
        for s in samples
    ]
    batch = largest_batch(tokens, job.train.batch_size, pads=_pads(job, device) and not has_second_loss)
    return StepEstimate(
        model=measure_job(job, weights, device),
        batch=replace(batch, is_ragged=batch.is_ragged or has_second_loss),
        device=device_facts(device),
    )


def measure_job(job: TrainJob, weights: TrainedWeights, device: torch.device) -> ModelSize:
    """Sizes of a job's model with what is trained on it, from the headers of its files."""
    network = describe_network(job)
    with torch.device("meta"):
        weights.attach(network)
    is_whole = job.adapter is None
    ema_bytes = 4 if job.checkpoints.use_ema and job.checkpoints.ema_device == "device" else 0
    accumulates = job.optimizer.gradient_accumulation_steps > 1
    updates_in_backward = is_whole and OPTIMIZERS[job.train.optimizer].updates_in_backward and not accumulates
    return measure_model(
        network,
        PRECISIONS[job.model.precision],
        is_whole=is_whole,
        has_dropout=job.adapter is not None and not job.adapter.is_plain,
        state_bytes=lambda numel, itemsize: (
            state_bytes_on_device(job.train.optimizer, numel, itemsize, job.optimizer) + ema_bytes * numel
        ),
        updates_in_backward=updates_in_backward,
        gradients_stay=accumulates or device.type == "cuda",  # a CUDA graph keeps them
        exchanged_bytes=MAX_EXCHANGED_BYTES if updates_in_backward and num_launched() > 1 else 0,
    )


def device_facts(device: torch.device) -> DeviceFacts:
    """What the estimate must know of a device."""
    if device.type != "cuda":
        return DeviceFacts(is_fused=False, workspace_bytes=0)
    major, _ = torch.cuda.get_device_capability(device)
    return DeviceFacts(
        is_fused=is_fused(torch.empty(0, device=device)), workspace_bytes=WORKSPACE_BYTES.get(major, SMALL_WORKSPACE)
    )


def _pads(job: TrainJob, device: torch.device) -> bool:
    """Whether batches of many sizes are filled up, see `ShapeLimiter`."""
    if device.type != "cuda" or PRECISIONS[job.model.precision].dtype is not torch.bfloat16:
        return False
    config = read_config(Path(job.model.base_path))
    return has_padded_attention(device, config.num_attention_heads, config.num_kv_heads, config.head_size)


def describe_network(job: TrainJob) -> Lumina2Transformer:
    """The job's network without weights."""
    config = read_config(Path(job.model.base_path))
    with torch.device("meta"):
        return Lumina2Transformer(config).requires_grad_(False)
