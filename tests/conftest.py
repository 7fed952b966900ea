"""Shared fixtures, and a line at the end of a run that says how many host and browser tests really ran."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads that wait for each other cost more than they give

SUITES = ("host", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares a fixture stays in one process, in order: tests of one ComfyUI, otherwise those of one file."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        item.add_marker(pytest.mark.xdist_group(str(parameters.get("host") or item.path)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line for each suite that needs something which this machine may lack."""
    for suite in SUITES:
        counts = {
            outcome: len({r.nodeid for r in terminalreporter.stats.get(outcome, ()) if f"tests/{suite}/" in r.nodeid})
            for outcome in ("passed", "failed", "error", "skipped")
        }
        if any(counts.values()):
            num_ran = counts["passed"] + counts["failed"] + counts["error"]
            terminalreporter.write_line(f"{suite} tests: {num_ran} ran, {counts['skipped']} skipped")


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny base and dataset with filled caches; runs go to a folder that tests must not share."""
    from .training_setup import make_setup

    return make_setup(tmp_path_factory.mktemp("setup"))


@pytest.fixture
def fresh(setup: Any, tmp_path: Any) -> Any:
    """The same with an output folder of its own."""
    return setup.moved_to(tmp_path / "output")
