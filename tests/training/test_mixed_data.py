"""Training on several folders, captions and crops at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
from lumina2_trainer.trainer_core.errors import StopTraining

from ..test_train import StopAfter, assert_equal_tensors, final_tensors, log_of
from ..training_setup import TRAIN, Setup, make_setup

MIXED = (
    DatasetFolderSettings(
        folder="pictures",
        resolution=64,
        aspect="square",
        crop_style="random",
        num_crops=3,
        probability=4.0,
        trigger_words="tok",
        caption_source="one_text",
        caption="red, blue, green, square",
        num_tag_shuffles=3,
    ),
    DatasetFolderSettings(folder="pictures", resolution=64, more_resolutions="128", caption_lines="one_each"),
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("mixed") / "setup", MIXED)


def test_a_mixed_run_resumes_bit_for_bit(mixed: Setup, tmp_path: Path) -> None:
    train = replace(TRAIN, steps=8, seed=11)
    whole = mixed.moved_to(tmp_path / "whole").train(train)
    stopped = mixed.moved_to(tmp_path / "stopped")
    with pytest.raises(StopTraining):
        stopped.with_stop(StopAfter(3)).train(train)
    resumed = stopped.train(train)
    assert resumed.losses == whole.losses
    assert_equal_tensors(final_tensors(whole.adapter.run_dir), final_tensors(resumed.adapter.run_dir))
    files = [record["files"] for record in log_of(whole.adapter.run_dir)]
    assert files == [record["files"] for record in log_of(resumed.adapter.run_dir)]
    assert {name[0] for batch in files for name in batch} >= {"1", "2"}
