"""This project: the session that the Train nodes run, on cached samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from lumina2_trainer.trainer_core.adapters.lora import LoRASettings, attach_lora
from lumina2_trainer.trainer_core.data.cache import TrainingSample
from lumina2_trainer.trainer_core.data.entries import entry_name, write_entry
from lumina2_trainer.trainer_core.lumina2.memory.recompute import RecomputeBlocks
from lumina2_trainer.trainer_core.lumina2.models.checkpoint import place_weight
from lumina2_trainer.trainer_core.lumina2.network.transformer import Lumina2Config, Lumina2Transformer
from lumina2_trainer.trainer_core.lumina2.objective import flow_matching_loss, make_noisy_batch
from lumina2_trainer.trainer_core.lumina2.quant.precision import PRECISIONS, computation
from lumina2_trainer.trainer_core.lumina2.timesteps import NoiseSettings
from lumina2_trainer.trainer_core.run.job import TrainFullSettings
from lumina2_trainer.trainer_core.run.trained_weights import FullWeights
from lumina2_trainer.trainer_core.training.optim.optimizers import make_optimizer
from lumina2_trainer.trainer_core.training.optim.settings import OptimizerSettings
from lumina2_trainer.trainer_core.training.session import StepPlan, TrainingSession
from lumina2_trainer.trainer_core.training.updates import WeightUpdate
from torch import nn

from ..cases import LEARNING_RATE, RANK
from ..material import FIXED_TIME, PIXELS_PER_LATENT, Sample, Setup, fixed_noise, make_samples, random_weights
from .prepared import PreparedTrainer, repeat


def train_lora(setup: Setup, *, precision: str | None = None) -> PreparedTrainer:
    """Train LoRA's session.

    Args:
        setup: The case and where it runs.
        precision: Key of PRECISIONS; by default the one of the case's dtype.
    """
    case = setup.case
    precision = precision or next(name for name, known in PRECISIONS.items() if known.dtype is case.dtype)
    transformer = build_transformer(setup.config, precision, setup.device, has_recomputation=case.has_recomputation)
    samples = make_samples(case)
    loss = _loss_of_fixed_batch(transformer, samples, precision, setup.device)
    session = start_lora_session(
        transformer, samples, setup.scratch_dir, batch_size=case.batch_size, precision=precision
    )
    return PreparedTrainer(loss=loss, train=repeat(session.train_step))


def train_full(setup: Setup, *, optimizer_state: str = "device") -> PreparedTrainer:
    """Train Full Model's session, with its default optimizer.

    Args:
        setup: The case and where it runs.
        optimizer_state: Where the optimizer keeps its moments, see OptimizerSettings.
    """
    case = setup.case
    precision = next(name for name, known in PRECISIONS.items() if known.dtype is case.dtype)
    transformer = build_transformer(setup.config, precision, setup.device, has_recomputation=case.has_recomputation)
    samples = make_samples(case)
    loss = _loss_of_fixed_batch(transformer, samples, precision, setup.device)
    weights, settings = FullWeights(), OptimizerSettings(optimizer_state=optimizer_state)
    parameters = weights.attach(transformer)
    optimizer = make_optimizer(
        TrainFullSettings().optimizer, parameters, learning_rate=LEARNING_RATE, settings=settings, seed=0
    )
    session = _start_session(
        transformer,
        parameters,
        optimizer,
        samples,
        setup.scratch_dir,
        batch_size=case.batch_size,
        precision=precision,
        update=weights.make_update(parameters, optimizer, settings.max_grad_norm),
        settings=settings,
    )
    return PreparedTrainer(loss=loss, train=repeat(session.train_step))


def build_transformer(
    config: Lumina2Config, precision: str, device: torch.device, *, has_recomputation: bool
) -> Lumina2Transformer:
    """Our network with the random weights that every trainer gets, frozen."""
    with torch.device("meta"):
        transformer = Lumina2Transformer(config)
    known = PRECISIONS[precision]
    for name, weight in random_weights(config, known.dtype, device).items():
        place_weight(transformer, name, weight, matrix_dtype=known.matrix_dtype)
    if has_recomputation:
        num_blocks = config.num_layers + 2 * config.num_refiner_layers
        transformer.run_block = RecomputeBlocks(num_recomputed=num_blocks, num_keeping=num_blocks)
    return transformer.requires_grad_(False)


def start_lora_session(
    transformer: Lumina2Transformer,
    samples: Sequence[Sample],
    folder: Path,
    *,
    batch_size: int,
    precision: str,
    seed: int = 0,
) -> TrainingSession:
    """A session before its first step, with a LoRA on attention.

    Args:
        transformer: From `build_transformer`; gets the adapter.
        samples: What is trained on; read from cache entries as in a run.
        folder: Where the entries go.
        batch_size: Samples a step.
        precision: Key of PRECISIONS.
        seed: Decides the order of samples.
    """
    parameters = attach_lora(transformer, LoRASettings(targets="attention"), rank=RANK, alpha=float(RANK), seed=0)
    is_cuda = next(transformer.parameters()).is_cuda
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, fused=is_cuda)
    return _start_session(
        transformer, parameters, optimizer, samples, folder, batch_size=batch_size, precision=precision, seed=seed
    )


def _start_session(
    transformer: Lumina2Transformer,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    folder: Path,
    *,
    batch_size: int,
    precision: str,
    seed: int = 0,
    update: WeightUpdate | None = None,
    settings: OptimizerSettings | None = None,
) -> TrainingSession:
    return TrainingSession(
        transformer=transformer.train(),
        parameters=parameters,
        optimizer=optimizer,
        update=update,
        samples=[_cache_sample(folder, i, sample) for i, sample in enumerate(samples)],
        unconditional=samples[0].prompt_embeds,
        plan=StepPlan(
            num_steps=100_000,
            batch_size=batch_size,
            learning_rate=LEARNING_RATE,
            caption_dropout=0.0,
            seed=seed,
            precision=precision,
            optimizer=settings or OptimizerSettings(),
            noise=NoiseSettings(),
        ),
        device=next(transformer.parameters()).device,
    )


def _cache_sample(folder: Path, index: int, sample: Sample) -> TrainingSample:
    latents_path, embeds_path = (folder / entry_name(kind, index) for kind in ("latents", "embeds"))
    write_entry(latents_path, sample.latents)
    write_entry(embeds_path, sample.prompt_embeds)
    height, width = sample.latents.shape[-2:]
    return TrainingSample(
        id=str(index),
        file_name=str(index),
        latents_path=latents_path,
        embeds_path=embeds_path,
        caption="",
        width=width * PIXELS_PER_LATENT,
        height=height * PIXELS_PER_LATENT,
        repeats=1,
    )


@torch.no_grad()
def _loss_of_fixed_batch(
    transformer: Lumina2Transformer, samples: list[Sample], precision: str, device: torch.device
) -> float:
    batch = make_noisy_batch(
        [sample.latents for sample in samples],
        fixed_noise(samples),
        torch.full((len(samples),), FIXED_TIME),
        [sample.prompt_embeds for sample in samples],
        transformer.config.axes_dims,
        device,
    )
    with computation(precision, device):
        return flow_matching_loss(transformer, batch).mean().item()
