"""Dataset From Images: what it refuses, what it hands on, and how it runs without ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lumina2_trainer.trainer_core.cli.main import main
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings
from lumina2_trainer.trainer_core.data.scan import scan_dataset
from lumina2_trainer.trainer_core.errors import TrainerError
from lumina2_trainer.trainer_core.settings import describe_settings
from lumina2_trainer.trainer_core.stages.dataset import (
    DatasetFromImagesSettings,
    DatasetReport,
    read_dataset_from_images,
)
from torch import Tensor

from ..data.sample_files import make_context, open_folder, write_pictures
from ..lumina2.tiny_files import write_all_in_one

OWN = ("name", "captions")


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 72, 64, 3, generator=torch.Generator().manual_seed(seed))


def read(context: StepContext, images: list[Tensor] | None, **settings: Any) -> DatasetReport:
    values = {"name": "cats", "captions": "a cat", "resolution": 64, **settings}
    dataset = values.pop("dataset", None)
    return read_dataset_from_images(
        DatasetFromImagesSettings(**values), images=images, dataset=dataset, context=context
    )


def captions_of(report: DatasetReport, context: StepContext) -> list[str]:
    return [picture.caption.text for picture in scan_dataset(report.dataset, context).pictures]


def hashes_of(report: DatasetReport, context: StepContext) -> list[str]:
    return [picture.facts.content_hash for picture in scan_dataset(report.dataset, context).pictures]


def test_shared_settings_are_those_of_dataset_folder() -> None:
    theirs = {field.name: field for field in describe_settings(DatasetFolderSettings)}
    for field in describe_settings(DatasetFromImagesSettings):
        assert field.name in OWN or field == theirs[field.name]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "../cats"}, "name is '../cats': use letters"),
        ({"name": "a/b"}, "name is 'a/b': use letters"),
        ({"name": ""}, "name is '': use letters"),
        ({"name": "nul"}, "name is 'nul': use letters"),
        ({"captions": " \n"}, "captions is empty: write one line for each picture"),
        ({"captions": "\ud800"}, "captions is .* half of a character"),
        ({"resolution": 100}, "resolution is 100: it must be a multiple of 64"),
        ({"num_crops": 2}, "num_crops is 2 but crop_style is 'center'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        DatasetFromImagesSettings(**{"name": "cats", "captions": "a cat", **settings})


def test_wrong_number_of_captions_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    with pytest.raises(TrainerError, match="captions has 2 lines for 3 pictures: write one line for each picture"):
        read(context, [pictures(3)], captions="one\n\ntwo\n")
    assert not context.output_dir.exists()


def test_each_picture_gets_its_line(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    report = read(context, [pictures(2), pictures(1)[:, :40]], captions="one\ntwo\nthree", trigger_words="sks")
    assert captions_of(report, context) == ["sks, one", "sks, two", "sks, three"]
    assert "Pictures used: 3" in report.text
    assert "Folder 1: lumina2_trainer/datasets/cats (3 pictures x 1, resolution 64" in report.text
    assert report.contact_sheet_path.is_file()


def test_one_line_is_for_all_and_not_reported_as_shared(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    report = read(context, [pictures(2)])
    assert captions_of(report, context) == ["a cat", "a cat"]
    assert "Captions of several pictures" not in report.text


def test_trigger_words_alone_are_a_caption(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    assert captions_of(read(context, [pictures(2)], captions="", trigger_words="sks"), context) == ["sks", "sks"]


def test_pictures_are_added_to_an_earlier_dataset(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    write_pictures(tmp_path / "input" / "set", {"a.png": (64, 64)})
    report = read(context, [pictures(1)], dataset=open_folder(context))
    assert captions_of(report, context) == ["caption of a", "a cat"]


def test_second_node_of_the_same_name_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    first = read(context, [pictures(1)])
    with pytest.raises(TrainerError, match="name is 'cats', as of another node before this one"):
        read(context, [pictures(1, seed=1)], dataset=first.dataset)
    assert captions_of(first, context) == ["a cat"]


def test_same_pictures_give_the_same_dataset(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    assert read(context, [pictures(2)]) == read(context, [pictures(1), pictures(2)[1:]])


def test_name_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    (context.runs_dir / "datasets").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (context.runs_dir / "datasets" / "cats").symlink_to(outside, target_is_directory=True)
    with pytest.raises(TrainerError, match="name is 'cats', a link that leads out of"):
        read(context, [pictures(1)])
    assert list(outside.iterdir()) == []


def test_without_images_the_pictures_written_last_are_taken(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    written = read(context, [pictures(2)], captions="one\ntwo")
    assert read(context, None, captions="one\ntwo") == written
    changed = read(context, None, captions="three\nfour")
    assert captions_of(changed, context) == ["three", "four"]
    hashes = hashes_of(changed, context)
    written_again = read(context, [pictures(2)], captions="one\ntwo")
    assert hashes_of(written_again, context) == hashes


def workflow() -> dict[str, Any]:
    """As Export (API) writes it; the pictures come from a node of ComfyUI's."""
    made = {"images": ["1", 0], "name": "cats", "captions": "one\ntwo", "resolution": 64}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "cats.png"}},
        "2": {"class_type": "Lumina2DatasetFromImages", "inputs": made},
        "3": {"class_type": "Lumina2Load", "inputs": {"base": "tiny.safetensors", "precision": "fp32"}},
        "4": {"class_type": "Lumina2CaptionTable", "inputs": {"dataset": ["2", 0], "model": ["3", 0]}},
        "5": {"class_type": "Lumina2CacheTextEmbeds", "inputs": {"model": ["3", 0], "dataset": ["4", 0]}},
    }


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "workflow.json").write_text(json.dumps(workflow()), "utf-8")
    models = tmp_path / "models"
    (models / "checkpoints").mkdir(parents=True)
    write_all_in_one(models / "checkpoints" / "tiny.safetensors")
    paths = {"--output": tmp_path / "output", "--models": models}
    return ["run", str(tmp_path / "workflow.json"), *(str(part) for pair in paths.items() for part in pair)]


def test_headless_run_goes_on_with_what_comfyui_wrote(
    tmp_path: Path, arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    read(make_context(tmp_path), [pictures(2)], captions="one\ntwo")
    assert main([*arguments, "--device", "cpu"]) == 0
    assert "cats: images are those that ComfyUI wrote last, 2 pictures" in caplog.text
    assert list((tmp_path / "output" / "lumina2_trainer" / "cache" / "text_embeds").glob("*.safetensors"))


def test_headless_run_without_pictures_says_what_to_do(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--device", "cpu"]) != 0
    said = capsys.readouterr().err
    assert "images come from nodes that need ComfyUI, and it has left none for name 'cats'" in said
    assert "Traceback" not in said
