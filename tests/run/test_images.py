"""Pictures of a run: sizes, names, the bare empty prompt, and the base's beside the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.events import Event
from lumina2_trainer.trainer_core.run.folder import RunFolder
from lumina2_trainer.trainer_core.stages import caches, validate
from lumina2_trainer.trainer_core.stages.dataset import read_dataset_folder
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings, ValidationSettings
from PIL import Image

from ..full_setup import TRAIN_FULL, train_full
from ..training_setup import PROMPTS, TRAIN, Setup
from .test_train import StopAfter

ALL = replace(PROMPTS, prompts="a red square", more_sizes="64", draw_unconditional=True, draw_base=True)
SETTINGS = {"width": 64, "height": 96, "num_inference_steps": 2, "more_sizes": "64", "draw_unconditional": True}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.int16)


def with_prompts(setup: Setup, validation: ValidationSettings) -> Setup:
    """The same setup with the prompts of these settings in the text cache."""
    dataset = read_dataset_folder(
        DatasetFolderSettings(folder="pictures", resolution=64), context=setup.context
    ).dataset
    embeds = caches.cache_text_embeds(
        caches.CacheTextEmbedsSettings(),
        model=setup.model,
        dataset=dataset,
        validation=validation,
        context=setup.context,
    )
    return replace(setup, embeds=embeds)


def test_sizes_unconditional_and_base_are_what_validate_draws_alone(fresh: Setup) -> None:
    events: list[Event] = []
    checkpoints = CheckpointSettings(use_ema=True, ema_decay=0.5)
    result = fresh.with_events(events).train(validation=ALL, checkpoints=checkpoints)
    data = next(event for event in events if event.kind == "validation").data
    stems = ["00-64x96", "00-64x64", "01-unconditional-64x96", "01-unconditional-64x64"]
    assert [Path(image).stem for image in data["images"]] == [
        f"{stem}{suffix}" for stem in stems for suffix in ("", "_ema", "_base")
    ]
    assert data["prompts"] == ["a red square"] * 6 + [""] * 6
    assert data["weights"] == ["live", "ema", "base"] * 4
    folder = Path(result.adapter.run_dir) / "samples" / "step-000006"
    run = RunFolder(path=Path(result.adapter.run_dir))
    assert sorted(path.stem for path in run.last_samples("live")) == sorted(stems)
    assert folder.stat().st_mode == folder.parent.stat().st_mode, "whoever sees the run sees its pictures"
    assert {path.stem[-5:] for path in run.last_samples("base")} == {"_base"}
    base = validate.validate(
        ValidateSettings(prompts="a red square", **SETTINGS), model=fresh.model, context=fresh.context
    )
    assert [path.stem for path in base.images] == stems
    for path in base.images:
        assert np.array_equal(pixels(path), pixels(folder / f"{path.stem}_base.png"))
    assert not np.array_equal(pixels(folder / "00-64x96.png"), pixels(folder / "00-64x96_base.png"))
    assert pixels(folder / "00-64x64.png").shape == (64, 64, 3)
    plain = ValidateSettings(prompts="a red square", **{**SETTINGS, "more_sizes": "", "draw_unconditional": False})
    [alone] = validate.validate(plain, model=fresh.model, context=fresh.context).images
    assert np.array_equal(pixels(alone), pixels(folder / "00-64x96_base.png"))


def test_unconditional_picture_is_the_bare_prompt_without_guidance(fresh: Setup) -> None:
    drawn = [
        validate.validate(
            ValidateSettings(prompts="", guidance_scale=scale, negative_prompt=negative, **SETTINGS),
            model=fresh.model,
            context=fresh.context,
        ).images
        for scale, negative in ((1.0, ""), (9.0, "a blue square"))
    ]
    assert [path.stem for path in drawn[0]] == ["00-unconditional-64x96", "00-unconditional-64x64"]
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(*drawn, strict=True))


@pytest.mark.train
def test_base_is_drawn_once_and_again_when_prompts_change(fresh: Setup) -> None:
    settings = replace(ALL, every_num_steps=2)
    with pytest.raises(StopTraining):
        fresh.with_stop(StopAfter(60)).train(replace(TRAIN, steps=500), validation=settings)
    samples = fresh.context.runs_dir / "run" / "samples"
    [base] = samples.glob("base-*")
    written = (base / "00-64x96.png").stat().st_mtime_ns
    other = replace(settings, prompts="a blue square")
    with pytest.raises(StopTraining):
        fresh.with_stop(StopAfter(60)).train(replace(TRAIN, steps=500), validation=other)
    assert len(list(samples.glob("base-*"))) == 2
    assert (base / "00-64x96.png").stat().st_mtime_ns == written


@pytest.mark.train
def test_full_training_draws_the_base_before_it_changes(
    fresh: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = replace(TRAIN_FULL, steps=3)
    result = train_full(fresh, short, validation=ALL)
    folder = Path(result.model.base_path).parent.parent / "samples" / "step-000003"
    base = validate.validate(
        ValidateSettings(prompts="a red square", **SETTINGS), model=fresh.model, context=fresh.context
    )
    for path in base.images:
        assert np.array_equal(pixels(path), pixels(folder / f"{path.stem}_base.png"))
    late = fresh.moved_to(tmp_path / "late")
    with pytest.raises(StopTraining):
        train_full(late.with_stop(StopAfter(2)), short, validation=replace(ALL, draw_base=False))
    images = train_full(late, short, validation=ALL).validation_images
    assert "draw_base was turned on after training began" in caplog.text
    assert not [path for path in images if "_base" in path.name]


def test_validate_puts_the_base_beside_the_adapter(fresh: Setup) -> None:
    adapter = fresh.trained().adapter
    settings = ValidateSettings(prompts="a red square", draw_base=True, **SETTINGS)
    images = validate.validate(settings, model=fresh.model, adapter=adapter, context=fresh.context).images
    assert [path.stem for path in images[:2]] == ["00-64x96", "00-64x96_base"]
    assert not np.array_equal(pixels(images[0]), pixels(images[1]))
    alone = validate.validate(replace(settings, draw_base=False), model=fresh.model, context=fresh.context).images
    assert np.array_equal(pixels(images[1]), pixels(alone[0]))
    with pytest.raises(TrainerError, match="draw_base is on, but without an adapter"):
        validate.validate(settings, model=fresh.model, context=fresh.context)


def test_library_names_the_pictures_of_a_run_and_is_written_into_its_job(fresh: Setup) -> None:
    folder = fresh.context.roots[0]
    (folder / "library.json").write_text('{"warm": "a red square", "cold": {"prompt": "a blue square"}}')
    settings = replace(PROMPTS, prompts="", prompt_library="library.json")
    result = with_prompts(fresh, settings).train(validation=settings)
    assert [path.name for path in result.validation_images] == ["00-warm.png", "01-cold.png"]
    typed = fresh.moved_to(fresh.context.output_dir / "typed").trained(validation=PROMPTS)
    for named, plain in zip(result.validation_images, typed.validation_images, strict=True):
        assert np.array_equal(pixels(named), pixels(plain))
    job = json.loads((Path(result.adapter.run_dir) / "job.json").read_text())
    assert job["validation"]["named_prompts"][1] == {"name": "cold", "prompt": "a blue square"}


def test_missing_library_stops_before_weights_load(fresh: Setup) -> None:
    with pytest.raises(TrainerError, match=r"prompt_library 'none\.json' does not exist"):
        fresh.train(validation=replace(PROMPTS, prompt_library="none.json"))
    assert not fresh.context.runs_dir.exists()
