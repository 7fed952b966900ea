"""Files that have gone: whom they concern."""

from __future__ import annotations

from pathlib import Path

from lumina2_trainer.nodes.file_watch import FileWatch, count_lost_pictures, count_lost_runs, watch_pictures, watch_run


def write(path: Path) -> Path:
    path.write_text("")
    return path


def test_lost_files_are_counted_and_never_forgotten(tmp_path: Path) -> None:
    watch = FileWatch()
    for name in ("a", "b"):
        watch.add("latents", write(tmp_path / name))
    assert watch.count_lost("latents") == 0
    (tmp_path / "a").unlink()
    assert watch.count_lost("latents") == 1
    watch.add("latents", write(tmp_path / "a"))
    assert watch.count_lost("latents") == 1


def test_a_lost_file_concerns_its_topic_alone(tmp_path: Path) -> None:
    watch = FileWatch()
    for topic in ("latents", "text_embeds", "run cat", "run dog"):
        watch.add(topic, write(tmp_path / topic))
    (tmp_path / "run cat").unlink()
    counts = [watch.count_lost(topic) for topic in ("latents", "text_embeds", "run cat", "run dog")]
    assert counts == [0, 0, 1, 0]


def test_a_file_is_lost_to_each_topic_it_belongs_to(tmp_path: Path) -> None:
    watch = FileWatch()
    for topic in ("run cat", "runs"):
        watch.add(topic, write(tmp_path / "adapter"))
    (tmp_path / "adapter").unlink()
    assert [watch.count_lost(topic) for topic in ("run cat", "runs")] == [1, 1]


def test_damage_counts_although_the_watched_file_is_there(tmp_path: Path) -> None:
    watch = FileWatch()
    watch.add("latents", write(tmp_path / "index"))
    watch.mark_lost("latents")
    assert watch.count_lost("latents") == 1


def test_lost_pictures_concern_their_name_and_whom_no_name_is_known_of(tmp_path: Path) -> None:
    names = ("lost", "kept", None)
    before = [count_lost_pictures(name) for name in names]
    for name in ("lost", "kept"):
        (tmp_path / name).mkdir()
        watch_pictures(name, str(tmp_path / name))
    (tmp_path / "lost").rmdir()
    assert [count_lost_pictures(name) - count for name, count in zip(names, before, strict=True)] == [1, 0, 1]


def test_a_run_that_was_deleted_is_noticed_by_its_name_and_where_the_name_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.touch()
    before = count_lost_runs("noticed"), count_lost_runs(None), count_lost_runs("other")
    watch_run("noticed", str(path))
    path.unlink()
    after = count_lost_runs("noticed"), count_lost_runs(None), count_lost_runs("other")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 0]
