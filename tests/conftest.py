"""Tiers by marker, shared fixtures, and last lines that say what was left out and what was skipped.

`make test` runs the tests without a marker of REST, `make test-rest` those with one (CONTRIBUTING, Tests). Folders
that belong to a tier as a whole are listed here; elsewhere a file or a test carries its marker itself.
"""

from __future__ import annotations

import functools
import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads that wait for each other cost more than they give

TESTS_DIR = Path(__file__).parent
SUITES = ("host", "browser")
FOLDER_MARKERS = {"host": "host", "browser": "browser", "cuda": "cuda", "benchmarks": "bench"}
"""By folder of tests/, however deep a file lies in it."""
REST = ("host", "browser", "cuda", "process", "train", "bench")
"""Any of these keeps a test out of `make test`; pyproject says what each means."""
QUICK = "quick"
"""The name that the last lines give to tests without a marker of REST."""
LEFT_OUT = pytest.StashKey["Counter[str]"]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tier of each folder, and keep in one process what shares a fixture.

    Tests of one ComfyUI share its server, and stay in order; otherwise those of one file stay together.
    """
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        item.add_marker(pytest.mark.xdist_group(str(parameters.get("host") or item.path)))
        if item.path.is_relative_to(TESTS_DIR):
            marker = FOLDER_MARKERS.get(item.path.relative_to(TESTS_DIR).parts[0])
            if marker is not None:
                item.add_marker(marker)


def tier_of(item: pytest.Item) -> str:
    """The first of a test's markers that keeps it out of `make test`, or QUICK."""
    return next((name for name in REST if item.get_closest_marker(name)), QUICK)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        item.config.stash[LEFT_OUT][tier_of(item)] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that prints what this one left out; every worker of pytest-xdist leaves out the same."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how much of the suites ran that need what this machine may lack, and what of other tiers was left out."""
    for suite in SUITES:
        counts = {
            outcome: len({r.nodeid for r in terminalreporter.stats.get(outcome, ()) if f"tests/{suite}/" in r.nodeid})
            for outcome in ("passed", "failed", "error", "skipped")
        }
        if any(counts.values()):
            num_ran = counts["passed"] + counts["failed"] + counts["error"]
            terminalreporter.write_line(f"{suite} tests: {num_ran} ran, {counts['skipped']} skipped")
    left_out = config.stash[LEFT_OUT]
    rest = {tier: left_out[tier] for tier in REST if left_out[tier]}
    if rest:
        listed = ", ".join(f"{tier} {count}" for tier, count in rest.items())
        terminalreporter.write_line(f"left out: {sum(rest.values())} tests ({listed}); `make test-rest` runs them")
    if left_out[QUICK]:
        terminalreporter.write_line(f"left out: {left_out[QUICK]} quick tests; `make test` runs them")


@pytest.fixture(scope="module", autouse=True)
def imported_objects_set_aside() -> None:
    """Spare the collector what lives on anyway: a run collects twice, half a second each among torch's objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tiny base and dataset with filled caches; runs go to a folder that tests must not share.

    The machine's rate, which every run measures to say how long it will take, is measured once.
    """
    from lumina2_trainer.trainer_core.run import plan

    from .training_setup import make_setup

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "measure_rate", functools.cache(plan.measure_rate))
        yield make_setup(tmp_path_factory.mktemp("setup"))


@pytest.fixture
def fresh(setup: Any, tmp_path: Any) -> Any:
    """The same with an output folder of its own."""
    return setup.moved_to(tmp_path / "output")
