from __future__ import annotations

from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.context import DEMO_DIR
from lumina2_trainer.trainer_core.data import folder as folder_module
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings, open_dataset
from lumina2_trainer.trainer_core.data.report import write_report
from lumina2_trainer.trainer_core.data.scan import scan_dataset
from lumina2_trainer.trainer_core.errors import TrainerError

from .sample_files import make_context, open_folder, write_pictures


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": 100}, "resolution is 100: it must be a multiple of 64, such as 64 or 128"),
        ({"aspect": "round"}, "aspect is 'round': choose one of buckets, square"),
        ({"caption_source": "one_text", "caption": " \n"}, "caption is empty"),
        ({"trigger_words": "\ud800"}, "trigger_words is .* half of a character"),
        ({"crop_style": "face"}, "crop_style is 'face': faces are not looked for"),
        ({"aspect": "random", "aspect_ratios": " ,"}, "aspect_ratios is empty: write some"),
        ({"aspect": "closest", "aspect_ratios": "9:1"}, "aspect_ratios holds '9:1'"),
        ({"maximum_image_size": 2048}, "maximum_image_size is 2048 and target_downsample_size is 0: set both"),
        (
            {"maximum_image_size": 2048, "target_downsample_size": 512},
            "target_downsample_size is 512 pixels, less than",
        ),
        ({"maximum_image_size": 1100, "target_downsample_size": 1200}, "target_downsample_size is 1200, more than"),
        (
            {"minimum_image_size": 2048, "maximum_image_size": 1024, "target_downsample_size": 1024},
            "minimum_image_size is 2048, more than maximum_image_size",
        ),
        ({"num_crops": 2}, "num_crops is 2 but crop_style is 'center'"),
        ({"more_resolutions": "512, big"}, "more_resolutions holds 'big': write resolution values .*this is no number"),
        ({"more_resolutions": "500"}, "more_resolutions holds '500': .*it must be a multiple of 64"),
        ({"more_resolutions": "512,1024"}, "more_resolutions holds '1024', which is there already"),
        (
            {"more_resolutions": "2048", "maximum_image_size": 1536, "target_downsample_size": 1024},
            "more_resolutions holds '2048': .*target_downsample_size",
        ),
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


def test_more_resolutions_are_folders_of_their_own(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_pictures(tmp_path / "input" / "set", {"a.png": (300, 200)})
    dataset = open_folder(context, more_resolutions=" 128,256 ")
    assert [folder.settings.resolution for folder in dataset.folders] == [64, 128, 256]
    scanned = scan_dataset(dataset, context)
    assert [(p.id, str(p.bucket)) for p in scanned.pictures] == [
        ("1/a.png", "64 x 64"),
        ("2/a.png", "128 x 128"),
        ("3/a.png", "320 x 192"),
    ]
    areas = open_folder(context, resolution_type="area", megapixels=0.25, more_resolutions="1.0")
    assert [folder.settings.size_plan.resolution for folder in areas.folders] == [512, 1024]


def test_folders_too_small_say_so(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_pictures(tmp_path / "input" / "set", {"a.png": (300, 200), "b.png": (30, 20)})
    scanned = scan_dataset(open_folder(context, minimum_image_size=64), context)
    assert [p.id for p in scanned.pictures] == ["1/a.png"]
    assert "1/b.png: 30 x 20 pixels measure 24.49 pixels, less than minimum_image_size" in write_report(scanned)
    with pytest.raises(TrainerError, match=r"holds no picture that can be used.*1/a\.png: 300 x 200 pixels measure"):
        scan_dataset(open_folder(context, minimum_image_size=640), context)
