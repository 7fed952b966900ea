"""What is said of a dataset after it was named: a report and a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .context import StepContext
from .data.caption_rows import CaptionCounter
from .data.contact_sheet import draw_contact_sheet
from .data.folder import Dataset
from .data.report import write_report
from .data.scan import scan_dataset
from .lumina2.encoders.prompts import MAX_PROMPT_TOKENS, SYSTEM_PROMPTS, build_prompt

GUESS = CaptionCounter(
    limit=MAX_PROMPT_TOKENS, build_prompt=lambda caption: build_prompt(caption, SYSTEM_PROMPTS["superior"])
)
"""No model is known yet, so captions are measured by their bytes, behind the usual system prompt."""


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What the nodes that name a dataset found."""

    dataset: Dataset
    text: str
    """Counts, buckets, warnings; for people."""
    contact_sheet_path: Path
    """PNG with thumbnails, captions and buckets."""


def report_dataset(dataset: Dataset, context: StepContext) -> DatasetReport:
    """Read a dataset's folders and report on them.

    Raises:
        TrainerError: A folder is gone, or holds nothing that can be used.
        StopTraining: The user asked to stop.
    """
    scanned = scan_dataset(dataset, context)
    sheet_path = draw_contact_sheet(scanned, context.cache_dir / "contact_sheets")
    return DatasetReport(dataset=dataset, text=write_report(scanned, GUESS), contact_sheet_path=sheet_path)
