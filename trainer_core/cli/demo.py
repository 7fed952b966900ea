"""The bundled example: train a LoRA on the demo model, and show what it learned."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ..adapters.export import read_adapter
from ..adapters.lora import LoRASettings
from ..adapters.merge import merge_adapter
from ..context import DEMO_DIR, StepContext
from ..data.cache import join_samples, read_embed_index, read_latent_index
from ..data.folder import DatasetFolderSettings
from ..device import free_memory, peak_memory_gib
from ..lumina2.models.base_files import find_model_files, load_base_transformer
from ..lumina2.models.model_files import LoadSettings, Lumina2Model
from ..lumina2.timesteps import NoiseSettings
from ..run.held_out import to_held_out_sample
from ..run.job import TrainLoRASettings
from ..stages import caches, save, train
from ..stages.dataset import read_dataset_folder
from ..stages.validate import validate
from ..training.optim.settings import OptimizerSettings
from ..validation.comparison import draw_comparison
from ..validation.confidence import estimate_change
from ..validation.held_out_loss import HeldOutSample, held_out_losses
from ..validation.settings import ValidateSettings, ValidationSettings

TRIGGER_WORDS = "fluent3d style"
RESOLUTION = 128
NUM_DRAWS = 64
"""Noise and times drawn for each held-out picture."""
TRAIN = TrainLoRASettings(
    steps=200,
    batch_size=8,
    learning_rate=5e-4,
    rank=16,
    alpha=16.0,
    run_name="demo",
    gradient_checkpointing=False,
)
LORA = LoRASettings(targets="attention_mlp_modulation", dropout=0.1)
OPTIMIZER = OptimizerSettings(lr_schedule="cosine", num_warmup_steps=10)


@dataclass(frozen=True, kw_only=True)
class HeldOutSamples:
    """Captioned pictures in the new style that are not trained on."""

    samples: list[HeldOutSample]
    captions: tuple[str, ...]
    """With trigger words."""


def run_demo(context: StepContext) -> str:
    """Cache, train about 200 steps, validate and save.

    Returns:
        A table and where the picture and the adapter lie, for the terminal.
    """
    started = time.perf_counter()
    model = find_model_files(LoadSettings(base="demo", precision="fp32"), context=context)
    held_out = read_held_out(model, context)
    prompts = "\n".join(held_out.captions)
    validation = ValidationSettings(prompts=prompts, width=RESOLUTION, height=RESOLUTION, every_num_steps=0)
    dataset = read_dataset_folder(demo_folder("dataset"), context=context).dataset
    latents = caches.cache_latents(caches.CacheLatentsSettings(), model=model, dataset=dataset, context=context)
    embeds = caches.cache_text_embeds(
        caches.CacheTextEmbedsSettings(system_prompt="none"),
        model=model,
        dataset=dataset,
        validation=validation,
        context=context,
    )
    trained = train.train_lora(
        TRAIN,
        model=model,
        latents=latents,
        embeds=embeds,
        adapter_settings=LORA,
        optimizer_settings=OPTIMIZER,
        context=context,
    )
    drawn = ValidateSettings(prompts=prompts, width=RESOLUTION, height=RESOLUTION, system_prompt="none")
    before = validate(drawn, model=model, context=context).images
    after = validate(drawn, model=model, adapter=trained.adapter, context=context).images
    comparison_path = Path(trained.adapter.run_dir) / "before_after.png"
    draw_comparison({"before": before, "after": after}, held_out.captions, comparison_path)
    losses = measure_adapter(model, held_out, Path(trained.adapter.path), context)
    saved = save.save_adapter(save.SaveAdapterSettings(name="demo_fluent3d"), adapter=trained.adapter, context=context)
    seconds = time.perf_counter() - started
    return _describe(losses, seconds, peak_memory_gib(context.device), trained.reused, comparison_path, saved[0])


def demo_folder(name: str) -> DatasetFolderSettings:
    """One of the two folders of pictures, "dataset" or "held_out"."""
    return DatasetFolderSettings(
        folder=str(DEMO_DIR / name), resolution=RESOLUTION, aspect="square", trigger_words=TRIGGER_WORDS
    )


def read_held_out(model: Lumina2Model, context: StepContext) -> HeldOutSamples:
    """Cache and read what is not trained on."""
    dataset = read_dataset_folder(demo_folder("held_out"), context=context).dataset
    latents = caches.cache_latents(caches.CacheLatentsSettings(), model=model, dataset=dataset, context=context)
    embeds = caches.cache_text_embeds(
        caches.CacheTextEmbedsSettings(system_prompt="none"), model=model, dataset=dataset, context=context
    )
    samples = join_samples(read_latent_index(latents), read_embed_index(embeds))
    return HeldOutSamples(
        samples=[to_held_out_sample(sample) for sample in samples],
        captions=tuple(sample.caption for sample in samples),
    )


def measure_adapter(
    model: Lumina2Model, held_out: HeldOutSamples, adapter_path: Path, context: StepContext
) -> tuple[dict[str, float], dict[str, float]]:
    """Held-out loss of each picture before and after, with the same noise and times."""
    return measure(model, held_out, context), measure(model, held_out, context, adapter_path)


def measure(
    model: Lumina2Model, held_out: HeldOutSamples, context: StepContext, adapter_path: Path | None = None
) -> dict[str, float]:
    """Held-out loss of each picture, with the base or with the base and an adapter."""
    transformer = load_base_transformer(model, context.device)
    if adapter_path is not None:
        merge_adapter(transformer, read_adapter(adapter_path).tensors, 1.0)
    losses = held_out_losses(
        transformer,
        held_out.samples,
        noise_settings=NoiseSettings(),
        precision=model.precision,
        num_draws=NUM_DRAWS,
        seed=TRAIN.seed,
        batch_size=TRAIN.batch_size,
    )
    free_memory(context.device)
    return losses


def _describe(
    losses: tuple[dict[str, float], dict[str, float]],
    seconds: float,
    peak_gib: float,
    was_reused: bool,
    comparison_path: Path,
    adapter_path: Path,
) -> str:
    before, after = (fmean(of_pictures.values()) for of_pictures in losses)
    change = estimate_change(*losses)
    rows = [
        ("held-out loss before", f"{before:.4f}"),
        ("held-out loss after", f"{after:.4f}  ({(after / before - 1) * 100:+.1f}%)"),
        ("its change, 95%", f"{change.mean:+.4f} +- {change.margin:.4f} over {len(losses[0])} pictures"),
        ("seconds", f"{seconds:.0f}{' (training was done before)' if was_reused else ''}"),
        ("peak memory", f"{peak_gib:.2f} GiB"),
        ("before and after", str(comparison_path)),
        ("adapter", str(adapter_path)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["", *(f"{name:<{width}}  {value}" for name, value in rows)])
