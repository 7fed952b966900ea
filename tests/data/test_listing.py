from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from lumina2_trainer.trainer_core.context import StepContext
from lumina2_trainer.trainer_core.data.listing import (
    FolderListing,
    fingerprint_dataset_folder,
    list_folder,
    natural_key,
)

from .sample_files import make_context, open_folder, write_pictures


def listing_of(context: StepContext, **settings: object) -> FolderListing:
    return list_folder(open_folder(context, **settings).folders[0], context)


def names_of(listing: FolderListing) -> list[str]:
    return [picture.name for picture in listing.pictures]


@pytest.fixture
def context(tmp_path: Path) -> StepContext:
    (tmp_path / "input" / "set").mkdir(parents=True)
    return make_context(tmp_path)


def test_natural_key_orders_numbers_by_value() -> None:
    names = ["b2.png", "b10.png", "B1.png", "a.png", "b02.png", "1.png", "sub/1.png", "10.png"]
    expected = ["1.png", "10.png", "a.png", "B1.png", "b02.png", "b2.png", "b10.png", "sub/1.png"]
    assert sorted(names, key=natural_key) == expected


def test_pictures_of_all_endings_and_subfolders_are_found(tmp_path: Path, context: StepContext) -> None:
    names = ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.avif", "f.bmp", "sub/deep/g.png"]
    write_pictures(tmp_path / "input" / "set", dict.fromkeys(names, (8, 8)))
    assert names_of(listing_of(context)) == names
    flat = listing_of(context, include_subfolders=False)
    assert names_of(flat) == names[:-1]
    assert flat.unread_folders == ["sub"]


def test_captions_are_paired_by_stem_within_a_folder(tmp_path: Path, context: StepContext) -> None:
    folder = tmp_path / "input" / "set"
    write_pictures(folder, {"a.png": (8, 8), "sub/a.png": (8, 8), "b.png": (8, 8)})
    (folder / "b.txt").rename(folder / "b.TXT")
    (folder / "sub" / "a.txt").unlink()
    (folder / "orphan.txt").write_text("no picture")
    listing = listing_of(context)
    captions = {picture.name: picture.caption_file.path for picture in listing.pictures}
    assert captions == {"a.png": folder / "a.txt", "b.png": folder / "b.TXT", "sub/a.png": None}
    assert listing.ignored == ["orphan.txt"]


@pytest.mark.parametrize(("of_picture", "of_text"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_captions_are_paired_however_accents_are_stored(
    tmp_path: Path, context: StepContext, of_picture: str, of_text: str
) -> None:
    folder = tmp_path / "input" / "set"
    picture, text = (unicodedata.normalize(form, "caf\u00e9") for form in (of_picture, of_text))
    write_pictures(folder, {f"{picture}.png": (8, 8)})
    (folder / f"{picture}.txt").rename(folder / f"{text}.txt")
    listing = listing_of(context)
    assert [found.caption_file.path for found in listing.pictures] == [folder / f"{text}.txt"]
    assert listing.ignored == []
    write_pictures(folder, {f"{text}.png": (8, 8)})
    (folder / f"{picture}.txt").write_text("of its very name")
    found = {picture.path.stem: picture.caption_file.path for picture in listing_of(context).pictures}
    assert found == {stem: folder / f"{stem}.txt" for stem in (picture, text)}


def test_other_files_are_named_and_hidden_ones_left_alone(tmp_path: Path, context: StepContext) -> None:
    folder = tmp_path / "input" / "set"
    write_pictures(folder, {"a.png": (8, 8), "._a.png": (8, 8), ".thumbs/a.png": (8, 8)})
    (folder / "film.gif").touch()
    listing = listing_of(context)
    assert names_of(listing) == ["a.png"]
    assert listing.ignored == ["film.gif"]


def test_links_out_of_the_roots_are_refused(tmp_path: Path, context: StepContext) -> None:
    folder, outside = tmp_path / "input" / "set", tmp_path / "outside"
    write_pictures(folder, {"a.png": (8, 8), "b.png": (8, 8)})
    write_pictures(outside, {"secret.png": (8, 8)})
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked_folder").symlink_to(outside)
    (folder / "broken.png").symlink_to(tmp_path / "nothing")
    (folder / "b.txt").unlink()
    (folder / "b.txt").symlink_to(outside / "secret.txt")
    listing = listing_of(context)
    assert names_of(listing) == ["a.png", "b.png"]
    assert listing.pictures[1].caption_file.path is None
    assert "may not be read" in listing.pictures[1].caption_file.problem
    reasons = {skipped.name: skipped.reason for skipped in listing.refused}
    for name in ("link.png", "linked_folder", "b.txt"):
        assert reasons[name] == "a link to a place outside of the allowed folders: copy the file here"
    assert reasons["broken.png"].startswith("cannot be read")


def test_links_inside_the_roots_are_followed_once(tmp_path: Path, context: StepContext) -> None:
    folder, other = tmp_path / "input" / "set", tmp_path / "input" / "other"
    write_pictures(folder, {"a.png": (8, 8)})
    write_pictures(other, {"b.png": (8, 8)})
    (folder / "c.png").symlink_to(other / "b.png")
    (folder / "more").symlink_to(other)
    (folder / "again").symlink_to(folder)
    listing = listing_of(context)
    assert names_of(listing) == ["a.png", "c.png", "more/b.png"]
    assert [(skipped.name, skipped.reason) for skipped in listing.refused] == [
        ("again", "a link to a folder that is read already")
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_odd_names_are_refused_without_hanging(tmp_path: Path, context: StepContext) -> None:
    folder = tmp_path / "input" / "set"
    write_pictures(folder, {"a.png": (8, 8)})
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b"caf\xe9.png")).touch()
    listing = listing_of(context)
    assert names_of(listing) == ["a.png"]
    assert sorted((skipped.name, skipped.reason) for skipped in listing.refused) == [
        ("caf\\udce9.png", "its name is not UTF-8: rename it"),
        ("pipe.png", "not a regular file"),
    ]


def test_fingerprint_changes_with_the_files(tmp_path: Path, context: StepContext) -> None:
    folder = tmp_path / "input" / "set"
    write_pictures(folder, {"a.png": (8, 8), "b.png": (8, 8)})
    seen = [fingerprint_dataset_folder("set", context)]
    assert fingerprint_dataset_folder("set", context) == seen[0]
    (folder / "a.txt").write_text("another caption")
    seen.append(fingerprint_dataset_folder("set", context))
    (folder / "b.txt").unlink()
    seen.append(fingerprint_dataset_folder("set", context))
    (folder / "b.png").rename(folder / "c.png")
    seen.append(fingerprint_dataset_folder("set", context))
    (folder / "c.png").unlink()
    seen.append(fingerprint_dataset_folder("set", context))
    (folder / "table.csv").write_text("one")
    seen.append(fingerprint_dataset_folder("set", context))
    (folder / "table.csv").write_text("three")
    seen.append(fingerprint_dataset_folder("set", context))
    (tmp_path / "input" / "outer.csv").write_text("one")
    seen.append(fingerprint_dataset_folder("set", context, "outer.csv"))
    (tmp_path / "input" / "outer.csv").write_text("three")
    seen.append(fingerprint_dataset_folder("set", context, "outer.csv"))
    seen.append(fingerprint_dataset_folder("set", context, "missing.csv"))
    assert len(set(seen)) == len(seen)


def test_fingerprint_of_a_missing_folder_is_its_error(context: StepContext) -> None:
    assert "does not exist" in fingerprint_dataset_folder("nowhere", context)
