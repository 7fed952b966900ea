"""Which paths a workflow may name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.errors import TrainerError


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    for name in ("root/pictures", "outside", "models/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "models" / "checkpoints" / "linked").symlink_to(tmp_path / "outside")
    return StepContext(
        output_dir=tmp_path / "out",
        loras_dir=tmp_path / "loras",
        device=torch.device("cpu"),
        roots=(tmp_path / "root",),
        model_dirs={"checkpoints": (tmp_path / "models" / "checkpoints",)},
    )


def test_a_folder_inside_a_root_is_found_by_both_spellings(context: StepContext) -> None:
    pictures = (context.roots[0] / "pictures").resolve()
    assert context.resolve_inside_roots("pictures", "folder") == pictures
    assert context.resolve_inside_roots(str(pictures), "folder") == pictures


@pytest.mark.parametrize("path", ["../outside", "link", "/etc", "pictures/../../outside"])
def test_what_lies_outside_is_refused(context: StepContext, path: str) -> None:
    with pytest.raises(TrainerError, match="lies outside of the allowed folders"):
        context.resolve_inside_roots(path, "folder")


@pytest.mark.parametrize("path", [r"\\host\share", "//host/share", r"\/host/share", r"/\host\share", "a\x00b"])
def test_paths_of_other_machines_are_never_looked_at(context: StepContext, path: str) -> None:
    with pytest.raises(TrainerError, match="is not a path on this machine"):
        context.resolve_inside_roots(path, "folder")


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-of-this-name/x"])
def test_paths_that_the_system_refuses_are_one_sentence(context: StepContext, path: str) -> None:
    with pytest.raises(TrainerError, match=r"cannot be opened|does not exist"):
        context.resolve_inside_roots(path, "folder")


def test_missing_folder_says_where_it_was_looked_for(context: StepContext) -> None:
    with pytest.raises(TrainerError, match=r"'cats' does not exist; looked in .*root"):
        context.resolve_inside_roots("cats", "folder")


def test_links_in_a_models_folder_are_the_users_own(context: StepContext) -> None:
    assert context.find_model(("checkpoints",), "linked", "base").name == "linked"
    with pytest.raises(TrainerError, match="was not found"):
        context.find_model(("checkpoints",), "../../outside", "base")
