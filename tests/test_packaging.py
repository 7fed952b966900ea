"""What installers read."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_requirements_equal_the_projects_dependencies() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    block = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    assert listed == re.findall(r'"([^"]+)"', block[1])


def test_every_package_is_in_the_wheel() -> None:
    block = re.search(r"^packages = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    folders = {path.parent for top in ("nodes", "trainer_core") for path in (ROOT / top).rglob("*.py")}
    names = {".".join(("lumina2_trainer", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert set(re.findall(r'"([^"]+)"', block[1])) == names | {"lumina2_trainer"}
