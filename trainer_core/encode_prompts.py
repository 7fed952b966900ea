"""Encoding captions and prompts with Gemma2, through the text cache."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .context import StepContext
from .data.cache import EmbedCache
from .data.cache_text_embeds import PromptEncoder, PromptPlan, fill_embed_cache
from .data.entry_writer import AUTOMATIC_BATCH_SIZE
from .data.folder import Dataset
from .device import free_memory
from .lumina2.encoders.prompts import MAX_PROMPT_TOKENS, UNCONDITIONAL, build_prompt
from .lumina2.models.model_files import Lumina2Model
from .lumina2.quant.precision import PRECISIONS


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
        from .lumina2.encoders.fitting_text_encoder import FittingTextEncoder

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
