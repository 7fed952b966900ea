"""Checkpoints side by side."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.data.fonts import choose_font, count_missing, list_fonts
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.run.job import Adapter
from lumina2_trainer.trainer_core.stages.compare import CompareSettings, Comparison, compare, find_checkpoints
from lumina2_trainer.trainer_core.stages.validate import draw_validation
from lumina2_trainer.trainer_core.training.settings import CheckpointSettings
from lumina2_trainer.trainer_core.validation import comparison as comparison_module
from lumina2_trainer.trainer_core.validation.settings import ValidateSettings
from PIL import Image

from ..training_setup import TRAIN, Setup

SAMPLER = {"prompts": "a red square\na blue square", "width": 64, "height": 64, "num_inference_steps": 2}


def trained(setup: Setup) -> Adapter:
    checkpoints = CheckpointSettings(checkpoint_step_interval=2, num_checkpoints_kept=5)
    return setup.trained(replace(TRAIN, learning_rate=0.05), checkpoints=checkpoints).adapter


def draw(setup: Setup, adapter: Adapter, **changes: object) -> Comparison:
    return compare(CompareSettings(**SAMPLER, **changes), model=setup.model, adapter=adapter, context=setup.context)


def test_grid_has_a_column_for_each_version(fresh: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = trained(fresh)
    titles: list[str] = []
    monkeypatch.setattr(
        "lumina2_trainer.trainer_core.stages.compare.draw_comparison",
        lambda columns, captions, path, tile: (
            titles.extend(columns),
            comparison_module.draw_comparison(columns, captions, path, tile=tile),
        ),
    )
    result = draw(fresh, adapter, strengths="0, 0.5, 1, 0.5")
    assert titles == [
        "base",
        *(f"{name} x {strength}" for name in ("step 2", "step 4", "final") for strength in ("0.5", "1")),
    ]
    assert len(result.images) == 7 * 2
    assert len({picture.read_bytes() for picture in result.images}) == 7 * 2
    with Image.open(result.grid_path) as grid:
        assert grid.width == pytest.approx(7 * (64 + 12) + 12)


def test_pictures_are_those_of_validate(fresh: Setup) -> None:
    adapter = trained(fresh)
    result = draw(fresh, adapter, checkpoints="final", strengths="0.5")
    drawn = [path.read_bytes() for path in result.images]
    own = draw_validation(ValidateSettings(**SAMPLER, strength=0.5), fresh.model, adapter, fresh.context)
    assert drawn == [path.read_bytes() for path in own]


def test_running_average_is_offered_where_there_is_one(fresh: Setup) -> None:
    adapter = fresh.trained(checkpoints=CheckpointSettings(use_ema=True)).adapter
    found = find_checkpoints("all", adapter)
    assert list(found) == ["final", "ema"]
    assert Path(found["ema"].path).name == "adapter_ema.safetensors"


def test_checkpoints_are_chosen_by_step(fresh: Setup) -> None:
    adapter = trained(fresh)
    kept = Path(adapter.run_dir) / "checkpoints"
    shutil.copytree(kept / "step-000004", kept / "step-000004 - Copy")
    assert list(find_checkpoints("all", adapter)) == ["2", "4", "final"]
    assert [found.step for found in find_checkpoints("4, Final", adapter).values()] == [4, 6]
    assert find_checkpoints("6", adapter) == {"6": adapter}
    with pytest.raises(TrainerError, match=r"asks for '3' of run, which has 2, 4, final"):
        find_checkpoints("3", adapter)
    with pytest.raises(TrainerError, match="checkpoints is empty"):
        find_checkpoints(" ", adapter)


@pytest.mark.parametrize(("strengths", "message"), [("", "is empty"), ("one", "has 'one'"), ("1, 20", "has '20'")])
def test_bad_strengths_are_named(strengths: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        CompareSettings(strengths=strengths)


def test_captions_in_other_scripts_are_drawn_as_letters(tmp_path: Path) -> None:
    captions = ["\u043b\u0438\u0441\u0430", "\u0441\u0438\u043b\u0430"]
    fonts = list_fonts(comparison_module.FONT_SIZE)
    if count_missing(set(captions[0]), choose_font(captions[0], fonts)):
        pytest.skip("needs a font with Cyrillic letters, such as DejaVu Sans")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    drawn = []
    for caption in captions:  # the same letters: as boxes the grids would be alike
        comparison_module.draw_comparison({"one": [tmp_path / "a.png"]}, [caption], tmp_path / "grid.png")
        drawn.append((tmp_path / "grid.png").read_bytes())
    assert drawn[0] != drawn[1]


def test_long_captions_are_cut_to_the_grid(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    comparison_module.draw_comparison({"one": [tmp_path / "a.png"]}, ["word " * 60], tmp_path / "grid.png", tile=192)
    with Image.open(tmp_path / "grid.png") as grid:
        left, right = grid.crop((0, 192, 6, grid.height)), grid.crop((grid.width - 6, 192, grid.width, grid.height))
        assert left.getextrema() == right.getextrema() == ((255, 255),) * 3
