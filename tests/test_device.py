"""Running out of memory ends with what to change."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.device import OutOfMemoryError, explained_out_of_memory
from lumina2_trainer.trainer_core.stages import caches, validate
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings

from .training_setup import make_setup


def run_out(*arguments: object, **options: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")


def test_one_sentence_and_what_pytorch_said() -> None:
    with (
        pytest.raises(OutOfMemoryError) as caught,
        explained_out_of_memory("training", ["lower batch_size", "set memory to less than 9.5"]),
    ):
        run_out()
    assert str(caught.value).splitlines() == [
        "training ran out of memory: lower batch_size, set memory to less than 9.5, or close what else uses the memory",
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
    ]


def test_a_cpu_without_memory_counts_and_other_errors_do_not() -> None:
    with pytest.raises(OutOfMemoryError), explained_out_of_memory("drawing", []):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="must match"), explained_out_of_memory("drawing", []):
        torch.ones(2) + torch.ones(3)


def test_what_the_failed_calls_held_is_free_while_the_error_is_handled() -> None:
    held: list[weakref.ref] = []

    def fill() -> None:
        activations = torch.ones(8)
        held.append(weakref.ref(activations))
        run_out()

    try:
        with explained_out_of_memory("training", []):
            fill()
    except OutOfMemoryError:
        gc.collect()
        assert held[0]() is None


def test_each_step_names_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(tmp_path)
    monkeypatch.setattr(caches, "fill_latent_cache", run_out)
    with pytest.raises(OutOfMemoryError, match=r"encoding pictures .* batch_size of Cache Latents"):
        caches.cache_latents(
            caches.CacheLatentsSettings(),
            model=setup.model,
            dataset=None,
            context=setup.context,  # type: ignore[arg-type]
        )
    monkeypatch.setattr("lumina2_trainer.trainer_core.validation.render.sample_latents", run_out)
    with pytest.raises(OutOfMemoryError, match=r"drawing pictures .* width and height"):
        validate.validate(
            ValidateSettings(prompts="a red square", width=64, height=64), model=setup.model, context=setup.context
        )
