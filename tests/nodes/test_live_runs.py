"""Requests to running runs, and what is sent of their events."""

from __future__ import annotations

from lumina2_trainer.nodes.live_runs import LiveRuns, Throttle


def running(run: str = "a") -> LiveRuns:
    runs = LiveRuns()
    runs.record("progress", {"run": run, "node": "1", "step": 1, "total": 9})
    return runs


def test_only_a_running_run_takes_requests() -> None:
    runs = running()
    assert runs.ask("a", "save")
    assert not runs.ask("b", "save")
    runs.record("finished", {"run": "a", "node": "1", "step": 9})
    assert not runs.ask("a", "save")


def test_runs_are_known_by_the_node_that_trained_them_last() -> None:
    runs = running()
    runs.record("progress", {"run": "b", "node": "7:2", "step": 1, "total": 9})
    assert runs.runs_of(["1", "2"]) == {"a"}
    runs.record("progress", {"run": "a", "node": "7:2", "step": 2, "total": 9})
    assert runs.runs_of(["1", "2"]) == frozenset()
    assert runs.runs_of(["7:2"]) == {"a", "b"}


def test_requests_are_taken_once_and_stop_stays_until_the_end() -> None:
    runs = running()
    runs.ask("a", "save")
    runs.ask("a", "stop")
    assert runs.take_requests("a") == {"save"}
    assert runs.take_requests("a") == frozenset()
    assert runs.is_stop_requested("a")
    runs.end("a", "stopped", "")
    assert not runs.is_stop_requested("a")


def test_notice_lasts_to_the_end_of_its_execution_and_no_longer() -> None:
    runs = running()
    runs.record("notice", {"run": "a", "node": "1", "level": "warning", "message": "no token"})
    runs.record("progress", {"run": "a", "node": "1", "step": 2, "total": 9})
    runs.end("a", "stopped", "")
    assert runs.snapshot("a")["notice"]["message"] == "no token"
    runs.record("progress", {"run": "a", "node": "1", "step": 3, "total": 9})
    assert "notice" not in runs.snapshot("a")


def test_stop_of_an_earlier_execution_does_not_stop_the_next() -> None:
    runs = running()
    runs.ask("a", "stop")
    runs.end("a", "stopped", "")
    runs.record("progress", {"run": "a", "node": "1", "step": 2, "total": 9})
    assert not runs.is_stop_requested("a")


def test_snapshot_keeps_the_last_event_of_each_kind() -> None:
    runs = running()
    runs.record("validation", {"run": "a", "node": "1", "step": 1, "images": []})
    runs.record("progress", {"run": "a", "node": "1", "step": 2, "total": 9})
    snapshot = runs.snapshot("a")
    assert snapshot is not None
    assert (snapshot["progress"]["step"], snapshot["validation"]["step"], snapshot["status"]) == (2, 1, "running")
    assert runs.snapshot("b") is None


def test_at_most_three_messages_a_second() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    sent = 0
    for i in range(100):
        now[0] = i / 100
        sent += throttle.allows()
    assert sent == 3
