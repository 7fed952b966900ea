"""Memory that runs out at a chosen moment of a short run: what becomes of the run?

    python -m lumina2_trainer.tests.run.failing_allocator EVERY

lets the Nth request of a run fail for every N that EVERY divides, each in a run of its own, and compares what comes out
with the undisturbed run, bit for bit. Prints the requests after which it differs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.stages.train import TrainResult
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..training_setup import PROMPTS, TRAIN, Setup, make_setup

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB."


class FailingAllocator(TorchDispatchMode):
    """From when a run's plan is announced, every operation on real tensors is a request for memory; one fails."""

    def __init__(self, failing: int = 0) -> None:
        """Let the request of this number fail, counted from 1; 0 lets none."""
        super().__init__()
        self.failing = failing
        self.num_requests = 0
        self.events: list[Event] = []
        self._has_begun = False

    def emit(self, event: Event) -> None:
        """Take the run's events."""
        self.events.append(event)
        self._has_begun = self._has_begun or event.kind == "planned"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._has_begun and not any(isinstance(x, torch.Tensor) and x.is_meta for x in tree_leaves(result)):
            self.num_requests += 1
            if self.num_requests == self.failing:
                raise torch.OutOfMemoryError(MESSAGE)
        return result


def train(setup: Setup, allocator: FailingAllocator) -> TrainResult:
    """Four steps with a validation, running averages and checkpoints."""
    setup = replace(setup, context=replace(setup.context, emit=allocator.emit))
    with allocator:
        return setup.train(
            replace(TRAIN, steps=4, gradient_checkpointing=True),
            validation=replace(PROMPTS, every_num_steps=2, num_inference_steps=2),
            checkpoints=CheckpointSettings(checkpoint_step_interval=2, use_ema=True),
        )


def outcome(result: TrainResult) -> dict[str, Any]:
    """What must not depend on memory: losses, weights, pictures."""
    final = Path(result.adapter.path).parent
    return {
        "losses": result.losses,
        "weights": {path.name: load_file(path) for path in sorted(final.glob("*.safetensors"))},
        "pictures": [path.read_bytes() for path in result.validation_images],
    }


def is_equal(a: Any, b: Any) -> bool:
    """Whether two outcomes are the same to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@contextmanager
def undisturbed(folder: Path) -> Iterator[tuple[Setup, dict[str, Any], int]]:
    """A setup, what comes of an undisturbed run of it, and how many requests that takes."""
    setup, allocator = make_setup(folder / "setup"), FailingAllocator()
    yield setup, outcome(train(setup.moved_to(folder / "whole"), allocator)), allocator.num_requests


def main(every: int) -> int:
    """Returns the exit status: 0 if every run ended as the undisturbed one."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, undisturbed(Path(folder)) as (setup, expected, num_requests):
        bad, tried = [], range(every, num_requests + 1, every)
        for number in tried:
            try:
                moved = setup.moved_to(Path(folder) / str(number))
                is_good = is_equal(outcome(train(moved, FailingAllocator(number))), expected)
            except Exception as error:
                print(f"request {number}: {type(error).__name__}: {error}", flush=True)
                is_good = False
            if not is_good:
                bad.append(number)
        print(f"{len(tried)} of {num_requests} requests failed, {len(bad)} runs ended otherwise: {bad}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
