"""Finding checkpoints."""

from __future__ import annotations

from pathlib import Path

from lumina2_trainer.trainer_core.training.checkpoints import list_checkpoints


def test_checkpoints_are_ordered_by_number_beyond_a_million(tmp_path: Path) -> None:
    for step in (999750, 1000000, 1000250):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "training_state.json").write_text("{}")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-999750", "step-1000000", "step-1000250"]
