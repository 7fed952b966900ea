"""Filling the caches: pictures as latents, captions and prompts as Gemma2 reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..context import StepContext
from ..data.cache import EmbedCache, LatentCache
from ..data.cache_latents import PictureEncoder, fill_latent_cache
from ..data.cache_text_embeds import PromptEncoder, PromptPlan, fill_embed_cache
from ..data.entries import AUTOMATIC_BATCH_SIZE
from ..data.folder import Dataset
from ..device import explained_out_of_memory, free_memory
from ..lumina2.encoders.prompts import (
    CUSTOM,
    MAX_PROMPT_TOKENS,
    SYSTEM_PROMPTS,
    UNCONDITIONAL,
    build_prompt,
    check_system_prompt,
    resolve_system_prompt,
)
from ..lumina2.models.model_files import Lumina2Model
from ..lumina2.quant.precision import PRECISIONS
from ..settings import check_settings, setting
from ..validation.pictures import with_prompt_library
from ..validation.settings import ValidationSettings


@dataclass(frozen=True, kw_only=True)
class CacheLatentsSettings:
    """Widgets of Cache Latents."""

    batch_size: int = setting(AUTOMATIC_BATCH_SIZE, minimum=AUTOMATIC_BATCH_SIZE, maximum=256)
    """Pictures of equal size encoded at once; 0 takes what is fastest and fits in memory. Pictures of 1024 x 1024 need
    about 3 GiB each."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class CacheTextEmbedsSettings:
    """Widgets of Cache Text Embeds."""

    system_prompt: str = setting("superior", choices=(*SYSTEM_PROMPTS, CUSTOM))
    """Text put before every caption; use the one your base model was trained with, and the same when you generate.
    "anime" suits Neta and NetaYume Lumina; "none" adds nothing."""
    custom_system_prompt: str = setting("", multiline=True)
    """The system prompt when system_prompt is "custom"."""
    batch_size: int = setting(AUTOMATIC_BATCH_SIZE, minimum=AUTOMATIC_BATCH_SIZE, maximum=1024)
    """Most captions encoded at once; 0 takes as many as are fastest, by their length."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_system_prompt(self.system_prompt, self.custom_system_prompt)


@explained_out_of_memory(
    "encoding pictures", ["set batch_size of Cache Latents to 1", "lower the resolution of the dataset"]
)
def cache_latents(
    settings: CacheLatentsSettings, *, model: Lumina2Model, dataset: Dataset, context: StepContext
) -> LatentCache:
    """Encode every picture that is not cached yet."""

    def load_encoder() -> PictureEncoder:
        context.before_encoding()
        from ..lumina2.encoders.vae import load_latent_encoder

        return load_latent_encoder(Path(model.vae_path), device=context.device)

    try:
        return fill_latent_cache(
            dataset,
            load_encoder=load_encoder,
            encoder_fingerprint=model.fingerprint,
            dtype=PRECISIONS[model.precision].dtype,
            batch_size=settings.batch_size,
            context=context,
        )
    finally:
        free_memory(context.device)


@explained_out_of_memory("encoding captions", ["set batch_size of Cache Text Embeds to 1"])
def cache_text_embeds(
    settings: CacheTextEmbedsSettings,
    *,
    model: Lumina2Model,
    dataset: Dataset,
    validation: ValidationSettings | None = None,
    context: StepContext,
) -> EmbedCache:
    """Encode every caption, the validation prompts and the unconditional prompt that are not cached yet."""
    validation = validation and with_prompt_library(validation, context)

    return encode_prompts(
        model,
        system_prompt=resolve_system_prompt(settings.system_prompt, settings.custom_system_prompt),
        dataset=dataset,
        validation_prompts=validation.prompt_list if validation else (),
        negative_prompt=validation.negative_prompt if validation else UNCONDITIONAL,
        batch_size=settings.batch_size,
        context=context,
    )


def encode_prompts(
    model: Lumina2Model,
    *,
    system_prompt: str,
    context: StepContext,
    dataset: Dataset | None = None,
    validation_prompts: tuple[str, ...] = (),
    negative_prompt: str = UNCONDITIONAL,
    batch_size: int = AUTOMATIC_BATCH_SIZE,
) -> EmbedCache:
    """Encode what is not cached yet; Gemma2 is loaded only if something is missing, and freed.

    Args:
        model: Whose text encoder is used.
        system_prompt: Put before captions and validation prompts.
        context: Where the cache lies.
        dataset: Its captions are encoded.
        validation_prompts: As typed; encoded with the system prompt.
        negative_prompt: As typed; encoded bare, as the unconditional prompt always is.
        batch_size: Most prompts encoded at once, or AUTOMATIC_BATCH_SIZE.
    """
    dtype = PRECISIONS[model.precision].dtype
    plan = PromptPlan(
        system_prompt=system_prompt,
        build_prompt=partial(build_prompt, system_prompt=system_prompt),
        validation_prompts=validation_prompts,
        negative_prompt=negative_prompt,
    )

    def load_encoder() -> PromptEncoder:
        context.before_encoding()
        from ..lumina2.encoders.fitting_text_encoder import FittingTextEncoder

        path = Path(model.text_encoder_path)
        return FittingTextEncoder(path, device=context.device, dtype=dtype, text_attention=model.text_attention)

    try:
        return fill_embed_cache(
            dataset or Dataset(folders=()),
            plan,
            load_encoder=load_encoder,
            encoder_fingerprint=f"{model.fingerprint} {model.text_attention} {MAX_PROMPT_TOKENS}",
            dtype=dtype,
            batch_size=batch_size,
            context=context,
        )
    finally:
        free_memory(context.device)
