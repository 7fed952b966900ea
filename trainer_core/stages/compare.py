"""A run's checkpoints at several strengths, side by side for every prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..context import StepContext
from ..errors import TrainerError
from ..lumina2.models.model_files import Lumina2Model
from ..run.folder import ADAPTER_FILE
from ..run.job import Adapter
from ..run_names import BEST, EMA, list_step_folders, name_of, step_of
from ..settings import setting
from ..validation.comparison import draw_comparison
from ..validation.settings import SamplerSettings, ValidateSettings

ALL, FINAL = "all", "final"
COMPARISONS_FOLDER = "comparisons"
MAX_TILE = 512
"""Longer side in pixels of a picture in the grid."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings(SamplerSettings):
    """Widgets of Compare."""

    checkpoints: str = setting(ALL)
    """Steps of the run to compare, such as `250, 500, final`, and `ema` and `best` where the run has them. "all" takes
    every checkpoint that was kept, and the finished adapter."""
    strengths: str = setting("0, 1")
    """Strengths of the adapter, such as `0, 0.6, 1`; 0 is the base alone, drawn once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_strengths(self.strengths)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What Compare gives."""

    grid_path: Path
    """PNG with a row for each prompt and a column for each version, both labelled."""
    images: tuple[Path, ...]
    """The pictures of the grid, column by column."""


def compare(settings: CompareSettings, *, model: Lumina2Model, adapter: Adapter, context: StepContext) -> Comparison:
    """Draw every prompt with each checkpoint at each strength.

    Raises:
        TrainerError: A checkpoint is not there, a strength is no number, or there is no prompt.
        StopTraining: The user asked to stop.
    """
    from .validate import draw_validation

    strengths, adapters = parse_strengths(settings.strengths), find_checkpoints(settings.checkpoints, adapter)
    columns = {
        title: draw_validation(_at_strength(settings, strength), model, chosen, context)
        for title, chosen, strength in _columns(adapters, strengths)
    }
    images = tuple(picture for pictures in columns.values() for picture in pictures)
    name = hashlib.sha256(json.dumps([str(picture) for picture in images]).encode()).hexdigest()[:16]
    grid_path = Path(adapter.run_dir) / COMPARISONS_FOLDER / f"{name}.png"
    tile = min(MAX_TILE, max(settings.width, settings.height))
    draw_comparison(columns, settings.typed_prompts, grid_path, tile=tile)
    return Comparison(grid_path=grid_path, images=images)


def parse_strengths(text: str) -> tuple[float, ...]:
    """The numbers of a list such as "0, 0.6, 1", each once.

    Raises:
        TrainerError: There is none, or one is no number.
    """
    numbers = tuple(dict.fromkeys(_parse_strength(part) for part in _parts(text)))
    if not numbers:
        raise TrainerError("strengths is empty: write numbers such as 0, 0.6, 1")
    return numbers


def find_checkpoints(wanted: str, adapter: Adapter) -> dict[str, Adapter]:
    """Adapters of a run by what they are called in the grid, in the order asked for.

    Args:
        wanted: As in `CompareSettings.checkpoints`.
        adapter: The finished one.

    Raises:
        TrainerError: One is not there; says which are.
    """
    run_dir = Path(adapter.run_dir)
    kept = [folder for folder in list_step_folders(run_dir / "checkpoints") if (folder / ADAPTER_FILE).exists()]
    known = {
        str(step_of(folder)): Adapter(path=str(folder / ADAPTER_FILE), run_dir=adapter.run_dir, step=step_of(folder))
        for folder in kept
        if step_of(folder) != adapter.step
    }
    known[FINAL] = adapter
    for weights in (EMA, BEST):
        path = Path(adapter.path).with_name(name_of(Path(adapter.path).name, weights))
        if path.exists():
            known[weights] = dataclasses.replace(adapter, path=str(path))
    if wanted.strip().lower() == ALL:
        return known
    chosen = {part.lower(): part for part in _parts(wanted)}
    if not chosen:
        raise TrainerError(f'checkpoints is empty: write "{ALL}", or steps of {", ".join(known)}')
    for name in chosen:
        if name not in known and name != str(adapter.step):
            raise TrainerError(
                f"checkpoints asks for {name!r} of {run_dir.name}, which has {', '.join(known)}: choose of these (a run"
                " keeps num_checkpoints_kept of Checkpoints and EMA)"
            )
    return {name: known.get(name, adapter) for name in chosen}


def _columns(adapters: dict[str, Adapter], strengths: tuple[float, ...]) -> Iterator[tuple[str, Adapter, float]]:
    """Title, adapter and strength of each column; the base has the system prompt of the adapters too."""
    if 0 in strengths:
        yield "base", next(iter(adapters.values())), 0.0
    used = [strength for strength in strengths if strength != 0]
    for name, adapter in adapters.items():
        for strength in used:
            title = f"step {name}" if name.isdigit() else name
            yield (title if used == [1.0] else f"{title} x {strength:g}"), adapter, strength


def _at_strength(settings: CompareSettings, strength: float) -> ValidateSettings:
    shared = {field.name: getattr(settings, field.name) for field in dataclasses.fields(SamplerSettings)}
    return ValidateSettings(**shared, strength=strength)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]


def _parse_strength(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not -10 <= number <= 10:
        raise TrainerError(f"strengths has {text!r}: write numbers from -10 to 10, such as 0, 0.6, 1")
    return number
