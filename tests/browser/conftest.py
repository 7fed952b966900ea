"""A real host and a real Chromium; skipped, with the reason, where one is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser

from ..host.conftest import host, pytest_generate_tests
from ..host.server import HostServer, server
from .frontend import Frontend, find_chromium, launch_chromium, open_frontend

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
def loaded_pages(browser: Browser, server: HostServer) -> Iterator[Callable[[Mapping[str, Any]], Frontend]]:
    """A page for each choice of settings, loaded once for all tests of a file, for that takes seconds."""
    pages: dict[tuple[tuple[str, Any], ...], Frontend] = {}
    with ExitStack() as stack:

        def page_with(settings: Mapping[str, Any]) -> Frontend:
            key = tuple(sorted(settings.items()))
            if key not in pages:
                pages[key] = stack.enter_context(open_frontend(browser, server, settings=settings))
            return pages[key]

        yield page_with


@pytest.fixture
def clear_page(loaded_pages: Callable[[Mapping[str, Any]], Frontend]) -> Iterator[Callable[..., Frontend]]:
    """Gives the server's frontend with an empty canvas, on a page that other tests may have used."""
    used: list[Frontend] = []

    def enter(*, settings: Mapping[str, Any]) -> Frontend:
        frontend = loaded_pages(settings)
        frontend.clear()
        used.append(frontend)
        return frontend

    yield enter
    for frontend in used:
        frontend.clear()


@pytest.fixture
def open_page(browser: Browser, server: HostServer) -> Iterator[Callable[..., Frontend]]:
    """Opens the server's frontend; keywords are those of `open_frontend`."""
    with ExitStack() as stack:

        def enter(**options: Any) -> Frontend:
            page: AbstractContextManager[Frontend] = open_frontend(browser, server, **options)
            return stack.enter_context(page)

        yield enter
