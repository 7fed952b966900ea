from __future__ import annotations

from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.context import DEMO_DIR
from lumina2_trainer.trainer_core.data import folder as folder_module
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings, open_dataset
from lumina2_trainer.trainer_core.errors import TrainerError

from .sample_files import make_context, open_folder, write_pictures


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 100}, "resolution is 100: it must be a multiple of 64, such as 64 or 128"),
        ({"aspect": "round"}, "aspect is 'round': choose one of buckets, square"),
        ({"caption_source": "one_text", "caption": " \n"}, "caption is empty"),
        ({"trigger_words": "\ud800"}, "trigger_words is .* half of a character"),
        ({"tag_separator": ""}, "tag_separator is empty: write what stands between two tags"),
        ({"caption_source": "csv", "file_column": ""}, "file_column is empty: name a column of the csv table"),
        (
            {"caption_source": "csv", "metadata_file": "a.jsonl"},
            "metadata_file is 'a.jsonl' but caption_source is 'csv'",
        ),
        ({"repeats": 0}, "repeats is 0: it must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        DatasetFolderSettings(folder="set", **settings)


def test_open_dataset_resolves_a_folder_inside_a_root(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_pictures(tmp_path / "input" / "set", {"a.png": (8, 8)})
    assert open_folder(context).folders[0].path == str((tmp_path / "input" / "set").resolve())
    absolute = open_folder(context, str(tmp_path / "input" / "set"))
    assert absolute.folders[0].path == open_folder(context).folders[0].path


def test_open_dataset_adds_to_an_earlier_one(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_pictures(tmp_path / "input", {"one/a.png": (8, 8), "two/a.png": (8, 8)})
    first = open_folder(context, "one")
    both = open_dataset(DatasetFolderSettings(folder="two"), earlier=first, context=context)
    assert [Path(folder.path).name for folder in both.folders] == ["one", "two"]
    assert len(first.folders) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "folder is empty"),
        ("nowhere", "does not exist"),
        ("../outside", "outside of the allowed folders"),
        ("/etc", "outside of the allowed folders"),
        ("a.png", "is not a folder"),
        ("{input}/linked", "outside of the allowed folders"),
        ("\\\\host\\share", "is not a path on this machine"),
    ],
)
def test_folders_that_may_not_be_read_are_refused(tmp_path: Path, name: str, message: str) -> None:
    context = make_context(tmp_path)
    write_pictures(tmp_path / "input", {"a.png": (8, 8)})
    (tmp_path / "outside").mkdir()
    (tmp_path / "input" / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(TrainerError, match=message):
        open_folder(context, name.replace("{input}", str(tmp_path / "input")))


def test_demo_is_the_dataset_in_this_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "DEMO_DIR", tmp_path / "pack")
    write_pictures(tmp_path / "pack" / "dataset", {"a.png": (8, 8)})
    assert DEMO_DIR != tmp_path / "pack"
    dataset = open_folder(make_context(tmp_path), "demo")
    assert dataset.folders[0].path == str((tmp_path / "pack" / "dataset").resolve())
