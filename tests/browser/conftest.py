"""A real host and a real Chromium; skipped, with the reason, where one is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser

from ..host.conftest import host, pytest_generate_tests
from ..host.server import HostServer, server
from .frontend import CLASSIC, Frontend, find_chromium, launch_chromium, open_frontend

__all__ = ["host", "pytest_generate_tests", "server"]

NO_CHROMIUM = "no Chromium found: install it (Debian: apt-get install chromium)"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    if find_chromium() is None:
        pytest.skip(NO_CHROMIUM)
    with launch_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def classic_page(browser: Browser, server: HostServer) -> Iterator[Frontend]:
    """A page with nodes drawn on the canvas, for tests that only open workflows; a page takes seconds to load."""
    with open_frontend(browser, server, settings=CLASSIC) as frontend:
        yield frontend


@pytest.fixture
def open_page(browser: Browser, server: HostServer) -> Iterator[Callable[..., Frontend]]:
    """Opens the server's frontend; keywords are those of `open_frontend`."""
    with ExitStack() as stack:

        def enter(**options: Any) -> Frontend:
            page: AbstractContextManager[Frontend] = open_frontend(browser, server, **options)
            return stack.enter_context(page)

        yield enter
