"""A table of a dataset's captions, to read them before they are trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..context import StepContext
from ..data.caption_rows import CaptionCounter, count_marks, list_caption_rows, to_view, without_shuffles, write_tsv
from ..data.folder import Dataset
from ..data.scan import scan_dataset
from ..lumina2.encoders.prompts import MAX_PROMPT_TOKENS, build_prompt, check_system_prompt, resolve_system_prompt
from ..lumina2.models.model_files import Lumina2Model
from ..settings import check_settings, same_as
from .caches import CacheTextEmbedsSettings

logger = logging.getLogger(__name__)

MAX_SHOWN_ROWS = 300
"""Rows of the table on the canvas; the text has all."""


@dataclass(frozen=True, kw_only=True)
class CaptionTableSettings:
    """Widgets of Caption Table."""

    system_prompt: str = same_as(CacheTextEmbedsSettings, "system_prompt")
    custom_system_prompt: str = same_as(CacheTextEmbedsSettings, "custom_system_prompt")

    def __post_init__(self) -> None:
        check_settings(self)
        check_system_prompt(self.system_prompt, self.custom_system_prompt)


@dataclass(frozen=True, kw_only=True)
class CaptionTable:
    """What Caption Table gives."""

    dataset: Dataset
    """As it came."""
    text: str
    """Tab-separated, a line for each picture of each folder."""
    view: Mapping[str, Any]
    """Its beginning as JSON, see `caption_rows.to_view`."""


def read_caption_table(
    settings: CaptionTableSettings, *, dataset: Dataset, model: Lumina2Model | None = None, context: StepContext
) -> CaptionTable:
    """List every picture's captions as training reads them, before dropout and shuffles.

    Args:
        settings: The system prompt, which counts.
        dataset: Read again.
        model: Its tokenizer counts; without one, characters are counted.
        context: Where folders may lie.

    Raises:
        TrainerError: A folder is gone, or the model's tokenizer cannot be read.
    """
    counter = _make_counter(settings, model)
    rows = list_caption_rows(scan_dataset(without_shuffles(dataset), context), counter)
    marks = ", ".join(f"{count} {mark}" for mark, count in count_marks(rows).items() if count)
    logger.info("Captions: %d pictures, %s", len(rows), marks or "nothing wrong")
    return CaptionTable(
        dataset=dataset, text=write_tsv(rows, counter), view=to_view(rows, counter, max_rows=MAX_SHOWN_ROWS)
    )


def _make_counter(settings: CaptionTableSettings, model: Lumina2Model | None) -> CaptionCounter:
    system_prompt = resolve_system_prompt(settings.system_prompt, settings.custom_system_prompt)
    count_tokens = None
    if model is not None:
        from ..lumina2.encoders.text_encoder import load_token_counter

        count_tokens = load_token_counter(Path(model.text_encoder_path))
    return CaptionCounter(
        limit=MAX_PROMPT_TOKENS,
        build_prompt=lambda caption: build_prompt(caption, system_prompt),
        count_tokens=count_tokens,
    )
