"""The tiers are the same wherever they are named, and what starts processes is not in the quick one."""

from __future__ import annotations

import re

import pytest

from .conftest import FOLDER_MARKERS, REST, TESTS_DIR


def test_make_and_pytest_know_the_same_markers(request: pytest.FixtureRequest) -> None:
    selected = re.search(r"^REST = (.*)$", (TESTS_DIR.parent / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert selected is not None
    assert sorted(selected[1].split(" or ")) == sorted(REST)
    registered = {line.split(":")[0] for line in request.config.getini("markers")}
    assert registered >= {*REST, *FOLDER_MARKERS.values()}


def test_folders_of_a_tier_are_there() -> None:
    assert [folder for folder in FOLDER_MARKERS if not (TESTS_DIR / folder).is_dir()] == []


def test_files_that_start_python_say_so() -> None:
    """Elsewhere than in folders that belong to a tier as a whole."""
    texts = {path.relative_to(TESTS_DIR): path.read_text("utf-8") for path in TESTS_DIR.rglob("test_*.py")}
    starting = [
        path for path, text in texts.items() if "[sys.executable" in text and path.parts[0] not in FOLDER_MARKERS
    ]
    assert len(starting) > 5
    assert [path for path in starting if "pytest.mark.process" not in texts[path]] == []
