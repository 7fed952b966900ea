from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data import picture_index
from lumina2_trainer.trainer_core.data.folder import DatasetFolderSettings, open_dataset
from lumina2_trainer.trainer_core.data.report import write_report
from lumina2_trainer.trainer_core.data.scan import scan_dataset
from lumina2_trainer.trainer_core.errors import StopTraining, TrainerError
from lumina2_trainer.trainer_core.stages.dataset import report_dataset

from .sample_files import TABLE_WRITERS, Listener, make_context, noise_picture, open_folder, write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "input" / "set"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def context(tmp_path: Path, folder: Path) -> StepContext:
    return make_context(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the picture files that are really opened."""
    names: list[str] = []
    read_content = picture_index.read_content

    def recorded(path: Path) -> Any:
        names.append(path.name)
        return read_content(path)

    monkeypatch.setattr(picture_index, "read_content", recorded)
    return names


def test_every_file_is_used_or_reported(folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (200, 100), "b.jpg": (64, 64), "sub/c.webp": (100, 100)})
    (folder / "truncated.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "empty.bmp").touch()
    (folder / "clip.mp4").touch()
    (folder / "b.txt").unlink()
    scanned = scan_dataset(open_folder(context, resolution=128, repeats=3), context)
    used = {picture.id: (str(picture.bucket), picture.repeats) for picture in scanned.pictures}
    assert used == {"1/a.png": ("192 x 64", 3), "1/b.jpg": ("128 x 128", 3), "1/sub/c.webp": ("128 x 128", 3)}
    assert [skipped.name for skipped in scanned.skipped] == ["1/empty.bmp", "1/text.jpg", "1/truncated.png"]
    report = write_report(scanned)
    assert report.startswith("Pictures used: 3, samples in one pass: 9, left out: 3")
    for line in (
        "  128 x 128: 2",
        "  192 x 64: 1",
        "  1/text.jpg: not a jpg, png, webp, avif or bmp picture: convert it, or remove it",
        "  1/b.jpg: no text file: add one of the same name ending in .txt, or change caption_source",
        "  1/b.jpg: 64 x 64 to 128 x 128, 2.0 times",
        "  1/a.png: 67% of 200 x 100 is kept",
        "  1/clip.mp4",
        "Smallest picture: 64 x 64 (1/b.jpg)",
        "Largest picture: 200 x 100 (1/a.png)",
    ):
        assert line in report.splitlines(), line
    assert "  1/truncated.png: damaged" in report


def test_square_aspect_is_not_reported_as_a_crop(folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (200, 100)})
    report = write_report(scan_dataset(open_folder(context, aspect="square"), context))
    assert "  64 x 64: 1" in report.splitlines()
    assert "Cropped" not in report


def test_duplicates_are_reported_but_not_a_folder_added_twice(folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (64, 64)})
    once = open_folder(context)
    twice = open_dataset(DatasetFolderSettings(folder="set", resolution=128), earlier=once, context=context)
    assert "Duplicates" not in write_report(scan_dataset(twice, context))
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    assert "Duplicates, the same file twice (1):\n  1/a.png = 1/b.png" in write_report(scan_dataset(once, context))


def test_two_folders_have_ids_of_their_own(tmp_path: Path, folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (64, 64)})
    write_pictures(tmp_path / "input" / "other", {"a.png": (64, 64)})
    both = open_dataset(DatasetFolderSettings(folder="other"), earlier=open_folder(context), context=context)
    assert [picture.id for picture in scan_dataset(both, context).pictures] == ["1/a.png", "2/a.png"]


def test_a_folder_without_a_usable_picture_is_an_error(folder: Path, context: StepContext) -> None:
    with pytest.raises(TrainerError, match="folder 'set' holds no picture that can be used"):
        scan_dataset(open_folder(context), context)
    (folder / "a.png").write_text("no picture")
    with pytest.raises(TrainerError, match=r"first of 1 left out: 1/a\.png: not a jpg"):
        scan_dataset(open_folder(context), context)


def test_a_folder_that_is_gone_is_an_error(folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (64, 64)})
    dataset = open_folder(context)
    folder.rename(folder.with_name("moved"))
    with pytest.raises(TrainerError, match="folder 'set' is gone"):
        scan_dataset(dataset, context)


def test_unchanged_pictures_are_not_read_again(folder: Path, context: StepContext, reads: list[str]) -> None:
    write_pictures(folder, {"a.png": (64, 64), "b.png": (64, 64)})
    dataset = open_folder(context)
    first = scan_dataset(dataset, context)
    assert sorted(reads) == ["a.png", "b.png"]
    assert scan_dataset(dataset, context) == first
    assert len(reads) == 2
    noise_picture(64, 64, seed=9).save(folder / "b.png")
    os.utime(folder / "b.png", (1, 1))
    second = scan_dataset(dataset, context)
    assert sorted(reads) == ["a.png", "b.png", "b.png"]
    assert second.pictures[0] == first.pictures[0]
    assert second.pictures[1].facts.content_hash != first.pictures[1].facts.content_hash


def test_a_repaired_picture_is_used(folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (64, 64), "b.png": (64, 64)})
    content = (folder / "b.png").read_bytes()
    status = (folder / "b.png").stat()
    (folder / "b.png").write_bytes(bytes(len(content)))
    dataset = open_folder(context)
    assert len(scan_dataset(dataset, context).pictures) == 1
    (folder / "b.png").write_bytes(content)
    os.utime(folder / "b.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(scan_dataset(dataset, context).pictures) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": [1, 2], "pictures": {"a": 3}}', bytes(100)])
def test_a_damaged_picture_index_is_made_anew(
    folder: Path, context: StepContext, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    write_pictures(folder, {"a.png": (64, 64)})
    path = context.cache_dir / picture_index.INDEX_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert len(scan_dataset(open_folder(context), context).pictures) == 1
    assert "is damaged" in caplog.text
    assert len(json.loads(path.read_text())["pictures"]) == 1


def test_the_picture_index_forgets_deleted_files(folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (64, 64), "b.png": (64, 64)})
    scan_dataset(open_folder(context), context)
    (folder / "a.png").unlink()
    write_pictures(folder, {"c.png": (64, 64)})
    scan_dataset(open_folder(context), context)
    names = json.loads((context.cache_dir / picture_index.INDEX_FILE).read_text())["pictures"]
    assert sorted(Path(name).name for name in names) == ["b.png", "c.png"]


def test_a_stopped_scan_remembers_what_it_read(tmp_path: Path, folder: Path, reads: list[str]) -> None:
    write_pictures(folder, {f"{i}.png": (8, 8) for i in range(40)})
    listener = Listener()
    context = make_context(tmp_path, emit=listener, should_stop=lambda: bool(listener.events))
    with pytest.raises(StopTraining, match="dataset_folder stopped after 1 of 40"):
        scan_dataset(open_folder(context), context)
    reads.clear()
    assert len(scan_dataset(open_folder(context), make_context(tmp_path)).pictures) == 40
    assert len(reads) == 39


@pytest.mark.parametrize("source", TABLE_WRITERS)
def test_captions_of_a_table_reach_their_pictures(folder: Path, context: StepContext, source: str) -> None:
    write_pictures(folder, {"a.png": (64, 64), "sub/b c.png": (64, 64), "d.png": (64, 64)})
    rows = [("a", "one"), ("sub/b c.png", "two\nlines"), ("gone.png", "three")]
    TABLE_WRITERS[source](folder / f"t.{source}", [{"file_name": name, "caption": text} for name, text in rows])
    scanned = scan_dataset(open_folder(context, caption_source=source, caption_lines="one_each"), context)
    assert {p.id: p.caption.texts for p in scanned.pictures} == {
        "1/a.png": ("one",),
        "1/d.png": (),
        "1/sub/b c.png": ("two", "lines"),
    }
    place = {"jsonl": "line 3", "csv": "line 5", "parquet": "row 3"}[source]
    report = write_report(scanned)
    assert f"Rows that name no picture of the folder (1):\n  1/t.{source} {place}: gone.png" in report
    assert f"  1/d.png: no row of t.{source} names it: add one, or remove the picture" in report
    assert "Neither picture nor caption of one" not in report


def test_half_a_character_in_a_table_is_named(folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (64, 64), "b.png": (64, 64)})
    rows = [("a.png", "half \\ud83e"), ("b.png", "a whole \\ud83e\\udd8a"), ("\\ud83e.png", "no picture")]
    text = "".join(f'{{"file_name": "{name}", "caption": "{caption}"}}\n' for name, caption in rows)
    (folder / "table.jsonl").write_text(text)
    scanned = scan_dataset(open_folder(context, caption_source="jsonl"), context)
    assert [picture.caption.texts for picture in scanned.pictures] == [(), ("a whole \U0001f98a",)]
    report = report_dataset(open_folder(context, caption_source="jsonl"), context).text
    assert report.encode()
    assert "1/a.png: table.jsonl line 1 holds half of a character: write the caption again" in report
    assert "1/table.jsonl line 3: \\ud83e.png" in report


def test_tables_that_are_not_there_are_refused(tmp_path: Path, folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (64, 64)})
    with pytest.raises(TrainerError, match=r"of files ending in \.csv 'set' holds none: name one in metadata_file"):
        scan_dataset(open_folder(context, caption_source="csv"), context)
    (folder / "b.csv").write_text("file_name,caption\na,x\n")
    (folder / "c.csv").touch()
    with pytest.raises(TrainerError, match=r"holds 2 \(b\.csv, c\.csv\): name one"):
        scan_dataset(open_folder(context, caption_source="csv"), context)
    scanned = scan_dataset(open_folder(context, caption_source="csv", metadata_file="b.csv"), context)
    assert scanned.pictures[0].caption.text == "x"
    (tmp_path / "outside.csv").touch()
    for name, message in (
        ("../../outside.csv", "outside of the allowed folders"),
        ("d.csv", "does not exist"),
        (str(tmp_path / "outside.csv"), "outside of the allowed folders"),
        ("x" * 5000 + ".csv", "cannot be opened"),
    ):
        with pytest.raises(TrainerError, match=message):
            scan_dataset(open_folder(context, caption_source="csv", metadata_file=name), context)


def test_captions_that_may_not_be_read_to_their_end_are_named(folder: Path, context: StepContext) -> None:
    write_pictures(folder, {"a.png": (64, 64), "b.png": (64, 64)})
    (folder / "a.txt").write_text("a quiet street in the rain, " * 40)
    (folder / "b.txt").write_text("a quiet street in the rain, " * 20)
    report = report_dataset(open_folder(context, resolution=64), context).text
    lines = report.splitlines()
    start = lines.index("Perhaps longer than training reads, see Caption Table (1):")
    assert lines[start + 1] == "  1/a.png: 1119 characters"
