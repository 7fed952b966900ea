"""The `host` fixture: every test that takes it runs once for each ComfyUI checkout found."""

from __future__ import annotations

from pathlib import Path

import pytest

from .checkouts import Host, find_checkouts, open_host, read_version
from .server import server

__all__ = ["server"]

NO_HOST = "no ComfyUI found: set COMFYUI_PATH to a checkout (looked in ~/comfy/ComfyUI* too)"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One set of tests for each checkout, or one skipped test."""
    if "host" not in metafunc.fixturenames:
        return
    checkouts = find_checkouts()
    parameters = [pytest.param(path, id=f"ComfyUI-{read_version(path)}") for path in checkouts]
    none_found = pytest.param(None, marks=pytest.mark.skip(reason=NO_HOST), id="no-ComfyUI")
    metafunc.parametrize("host", parameters or [none_found], indirect=True, scope="session")


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A ComfyUI checkout: see `Host` for what it offers."""
    checkout: Path = request.param
    return open_host(checkout, tmp_path_factory.mktemp("host"))
