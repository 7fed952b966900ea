"""Validate: prompts drawn with a base model and, if given, a trained adapter."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..adapters.export import AdapterFile, read_adapter
from ..adapters.merge import merge_adapter
from ..adapters.metadata import system_prompt_of
from ..context import StepContext
from ..data.cache import load_embeds, read_embed_index
from ..device import explained_out_of_memory, free_memory
from ..errors import TrainerError
from ..lumina2.encoders.prompts import SYSTEM_PROMPTS, resolve_system_prompt
from ..lumina2.models.base_files import load_base_transformer
from ..lumina2.models.model_files import Lumina2Model
from ..lumina2.weights.weight_files import read_weights
from ..run.folder import RunFolder, describe_run_losses
from ..run.job import Adapter
from ..run_names import BASE, suffix_of
from ..validation.clip_report import describe_clip_scores, report_clip_scores
from ..validation.pictures import load_prompt_embeds, plan_pictures, with_files
from ..validation.render import render_pictures
from ..validation.settings import FROM_ADAPTER, ValidateSettings
from .caches import encode_prompts

VALIDATIONS_FOLDER = "validations"
"""Pictures of Validate without an adapter, beside the runs."""
DEFAULT_SYSTEM_PROMPT = SYSTEM_PROMPTS["superior"]


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What Validate gives."""

    images: tuple[Path, ...]
    scores: str
    """What was measured, for people; empty if nothing was."""


def validate(
    settings: ValidateSettings, *, model: Lumina2Model, adapter: Adapter | None = None, context: StepContext
) -> ValidationResult:
    """Draw the prompts with the model and, if given, the adapter."""
    settings = with_files(settings, context)
    images = draw_validation(settings, model, adapter, context)
    report = report_clip_scores(settings, images, context)
    free_memory(context.device)
    texts = [
        describe_clip_scores(report.summary()) if report else "",
        describe_run_losses(RunFolder(path=Path(adapter.run_dir))) if adapter else "",
    ]
    return ValidationResult(images=images, scores="\n".join(filter(None, texts)))


@explained_out_of_memory(
    "drawing pictures", ["lower width and height", "choose precision fp8, int8 or nf4 in Load Lumina2"]
)
def draw_validation(
    settings: ValidateSettings, model: Lumina2Model, adapter: Adapter | None, context: StepContext
) -> tuple[Path, ...]:
    """Draw every prompt; pictures lie in the adapter's run folder, or beside the runs without one.

    Raises:
        TrainerError: There is no prompt, or the adapter does not fit the base.
        StopTraining: The user asked to stop.
    """
    if not plan_pictures(settings):
        raise TrainerError("prompts is empty: write one prompt a line, or name a prompt_library")
    if settings.draw_base and adapter is None:
        raise TrainerError("draw_base is on, but without an adapter all pictures are the base's: turn it off")
    content = read_adapter(Path(adapter.path)) if adapter else None
    cache = encode_prompts(
        model,
        system_prompt=_system_prompt(settings, model, content),
        validation_prompts=settings.prompt_list,
        negative_prompt=settings.negative_prompt,
        context=context,
    )
    index = read_embed_index(cache)
    try:
        transformer = load_base_transformer(model, context.device)
        folder = _folder(settings, model, adapter, context)
        render = partial(
            render_pictures,
            settings,
            transformer=transformer,
            vae_path=Path(model.vae_path),
            prompt_embeds=load_prompt_embeds(settings, index),
            negative_embeds=load_embeds(index.negative_path(settings.negative_prompt)),
            precision=model.precision,
            should_stop=context.should_stop,
        )
        beside = {}
        if settings.draw_base:
            beside[suffix_of(BASE)] = folder.with_name(f"{folder.name}{suffix_of(BASE)}")
            render(folder=beside[suffix_of(BASE)])
        if content is not None:
            merge_adapter(transformer, content.tensors, settings.strength)
        return render(folder=folder, beside=beside)
    finally:
        free_memory(context.device)


def _system_prompt(settings: ValidateSettings, model: Lumina2Model, adapter: AdapterFile | None) -> str:
    if settings.system_prompt != FROM_ADAPTER:
        return resolve_system_prompt(settings.system_prompt, settings.custom_system_prompt)
    if adapter is None:
        base_path = Path(model.base_path)
        trained_with = None if base_path.is_dir() else system_prompt_of(read_weights(base_path).metadata)
        return DEFAULT_SYSTEM_PROMPT if trained_with is None else trained_with
    trained_with = system_prompt_of(adapter.metadata)
    if trained_with is None:
        raise TrainerError(
            'the adapter does not say which system prompt it was trained with: choose one instead of "from adapter"'
        )
    return trained_with


def _folder(settings: ValidateSettings, model: Lumina2Model, adapter: Adapter | None, context: StepContext) -> Path:
    """A folder of its own for each combination, so that older pictures stay what they were."""
    base = [model.fingerprint, model.precision, model.text_attention]
    facts = [dataclasses.asdict(settings), base, adapter and [adapter.path, adapter.step]]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return (Path(adapter.run_dir) if adapter else context.runs_dir) / VALIDATIONS_FOLDER / name
