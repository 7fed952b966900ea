"""Held-out losses of a run, one line a measurement, and what they say: the lowest, and whether the run overfits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..files import write_bytes_atomically
from ..run_names import BASE
from .confidence import Estimate, estimate_change, estimate_mean


@dataclass(frozen=True, kw_only=True)
class HeldOutLine:
    """One measurement."""

    step: int
    """Optimizer steps done; 0 for the base."""
    weights: str
    """Name of the weights, or BASE."""
    losses: Mapping[str, float]
    """Of each picture."""

    @property
    def loss(self) -> float:
        """Mean over the pictures."""
        return fmean(self.losses.values())


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a measurement says."""

    line: HeldOutLine
    loss: Estimate
    best: HeldOutLine
    """The lowest of its weights so far, which may be this one."""
    change: Estimate | None
    """From the base; None if the base was not measured."""
    rise: Estimate
    """From the lowest."""

    @property
    def is_overfit(self) -> bool:
        """The loss has risen since its lowest by more than chance explains."""
        return self.rise.mean > self.rise.margin

    def to_json(self) -> dict[str, Any]:
        """For a line of log.jsonl."""
        facts = {"loss": self.loss.mean, "margin": self.loss.margin, "best_step": self.best.step}
        if self.change is not None:
            facts |= {"change": self.change.mean, "change_margin": self.change.margin}
        return {**facts, "is_overfit": self.is_overfit}


@dataclass(frozen=True, kw_only=True)
class HeldOutLog:
    """The file and its lines."""

    path: Path

    def read(self) -> list[HeldOutLine]:
        """All lines in the order of measuring; what a crash cut short is left out."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_bytes().splitlines():
            try:
                lines.append(HeldOutLine(**json.loads(text)))
            except ValueError:
                break
        return lines

    def find(self, step: int, weights: str) -> HeldOutLine | None:
        """The measurement of some weights after a step."""
        return next((line for line in self.read() if (line.step, line.weights) == (step, weights)), None)

    def append(self, line: HeldOutLine) -> None:
        """Add a measurement, on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate(self, step: int) -> None:
        """Drop what was measured after the checkpoint a run resumes from: it will be measured again.

        The lowest stays, for its weights were kept.
        """
        lines = self.read()
        best = find_best(lines)
        kept = [line for line in lines if line.step <= step or line == best]
        write_bytes_atomically(self.path, "".join(json.dumps(asdict(line)) + "\n" for line in kept).encode())


def find_best(lines: list[HeldOutLine], weights: str | None = None) -> HeldOutLine | None:
    """The lowest measurement of a trained state, of these weights or of any; None before the first."""
    trained = [line for line in lines if line.weights != BASE and weights in (None, line.weights)]
    return min(trained, key=lambda line: (line.loss, line.step), default=None)


def judge(lines: list[HeldOutLine], line: HeldOutLine) -> Verdict:
    """What a measurement says, beside those before it.

    Args:
        lines: Of the run.
        line: One of them.
    """
    best = find_best([other for other in lines if other.step <= line.step], line.weights)
    assert best is not None, "the measurement is not among the lines"
    base = next((other for other in lines if other.weights == BASE), None)
    return Verdict(
        line=line,
        loss=estimate_mean(list(line.losses.values())),
        best=best,
        change=None if base is None else estimate_change(base.losses, line.losses),
        rise=estimate_change(best.losses, line.losses),
    )


def describe_held_out(lines: list[HeldOutLine]) -> str:
    """The last measurement of each kind of weights in sentences; empty if there is none."""
    last = {line.weights: line for line in lines if line.weights != BASE}
    return "\n".join(_describe(judge(lines, line)) for line in last.values())


def _describe(verdict: Verdict) -> str:
    line = verdict.line
    sentences = [
        f"Held-out loss of {len(line.losses)} pictures at step {line.step} ({line.weights} weights, 95% intervals):"
        f" {verdict.loss}"
    ]
    if verdict.change is not None:
        sentences.append(f"base to now: {verdict.change.mean:+.4f} +- {verdict.change.margin:.4f}")
    if verdict.best.step != line.step:
        sentences.append(f"lowest: {verdict.best.loss:.4f} at step {verdict.best.step}")
    text = "; ".join(sentences)
    return f"{text}. {describe_overfit(verdict)}" if verdict.is_overfit else f"{text}."


def describe_overfit(verdict: Verdict) -> str:
    """What to make of a loss that has risen."""
    return (
        f"OVERFIT: the held-out loss has risen by {verdict.rise} since step {verdict.best.step}:"
        ' prefer the weights of that step ("best", which keep_best keeps), or train fewer steps'
    )
