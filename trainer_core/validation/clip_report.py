"""CLIP scores of a set of validation pictures, and what they say of each kind of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from ..context import StepContext
from ..processes import ALONE, Processes
from ..run_names import BASE, weights_of
from .clip_score import clip_scores
from .confidence import estimate_change, estimate_mean
from .pictures import plan_pictures
from .settings import PictureSettings


@dataclass(frozen=True, kw_only=True)
class ClipReport:
    """Scores of pictures, 0 to 100; higher fits the prompt better."""

    scores: tuple[float | None, ...]
    """In the order of the files; None for the bare empty prompt."""
    by_weights: Mapping[str, Mapping[str, float]]
    """By name of the weights and of the picture."""

    def summary(self) -> dict[str, float]:
        """For log.jsonl: of each kind of weights the mean, with its margin and its change from the base where there are
        two pictures or more."""
        numbers: dict[str, float] = {}
        base = self.by_weights.get(BASE)
        for weights, scores in self.by_weights.items():
            numbers[weights] = fmean(scores.values())
            if len(scores) > 1:
                numbers[f"{weights}_margin"] = estimate_mean(list(scores.values())).margin
                if base is not None and weights != BASE:
                    change = estimate_change(base, scores)
                    numbers |= {f"{weights}_change": change.mean, f"{weights}_change_margin": change.margin}
        return numbers


def report_clip_scores(
    settings: PictureSettings, paths: Sequence[Path], context: StepContext, processes: Processes = ALONE
) -> ClipReport | None:
    """Score pictures that were drawn with these settings; None if clip_model is empty or no prompt has words.

    Args:
        settings: Of the pictures.
        paths: Their files.
        context: Whose device may be taken.
        processes: Who share the pictures among them; all get all scores.
    """
    pictures = plan_pictures(settings)
    shown = {picture.stem: picture.prompt for picture in pictures if not picture.is_unconditional}
    stems = [path.stem.removesuffix(f"_{weights_of(path)}") for path in paths]
    scored = [(path, stem) for path, stem in zip(paths, stems, strict=True) if stem in shown]
    if not settings.clip_model or not scored:
        return None
    device = context.device if settings.clip_device == "device" else torch.device("cpu")
    own = processes.share(scored)
    scores = clip_scores([path for path, _ in own], [shown[stem] for _, stem in own], Path(settings.clip_model), device)
    shares = processes.gather({path: score for (path, _), score in zip(own, scores, strict=True)})
    by_path = {path: score for share in shares for path, score in share.items()}
    by_weights: dict[str, dict[str, float]] = {}
    for path, stem in scored:
        by_weights.setdefault(weights_of(path), {})[stem] = by_path[path]
    return ClipReport(scores=tuple(by_path.get(path) for path in paths), by_weights=by_weights)


def describe_clip_scores(summary: Mapping[str, float], step: int | None = None) -> str:
    """A sentence for each kind of weights."""
    when = "" if step is None else f" at step {step}"
    return "\n".join(_describe(summary, weights, when) for weights in summary if "_" not in weights)


def _describe(summary: Mapping[str, float], weights: str, when: str) -> str:
    text = f"CLIP score{when} ({weights} weights, of 100): {summary[weights]:.2f}"
    if (margin := summary.get(f"{weights}_margin")) is not None:
        text += f" +- {margin:.2f}"
    if (change := summary.get(f"{weights}_change")) is not None:
        text += f"; base to now: {change:+.2f} +- {summary[f'{weights}_change_margin']:.2f}"
    return f"{text}."
