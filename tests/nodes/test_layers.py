"""Imports run one way: nodes, then trainer_core, then libraries."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACK_DIR = Path(__file__).resolve().parents[2]
HOST_MODULES = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution", "node_helpers"}
HOST_FILES = {"host.py", "host_models.py"}
"""`host.py` touches memory management, folders and server; `host_models.py` builds the host's own models."""


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, wherever the import stands."""
    package = ["pack", *path.relative_to(PACK_DIR).parent.parts]
    for statement in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            base = package[: len(package) - statement.level + 1] if statement.level else []
            yield ".".join([*base, statement.module or ""]).rstrip(".")


@pytest.mark.parametrize("path", sorted((PACK_DIR / "trainer_core").rglob("*.py")), ids=lambda path: path.name)
def test_trainer_core_knows_nothing_of_comfyui_or_nodes(path: Path) -> None:
    for name in imports_of(path):
        assert name.partition(".")[0] not in {*HOST_MODULES, "comfy_api", "nodes", "aiohttp"}, name
        assert not name.startswith("pack.nodes"), name


@pytest.mark.parametrize("path", sorted((PACK_DIR / "nodes").glob("*.py")), ids=lambda path: path.name)
def test_only_host_files_touch_comfyui_itself(path: Path) -> None:
    touched = {name for name in imports_of(path) if name.partition(".")[0] in HOST_MODULES}
    assert path.name in HOST_FILES or not touched, touched


def test_pack_exports_only_what_comfyui_reads() -> None:
    tree = ast.parse((PACK_DIR / "__init__.py").read_text("utf-8"))
    names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    names += [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert set(names) == {"WEB_DIRECTORY", "comfy_entrypoint"}
