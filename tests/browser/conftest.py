"""A real Chromium, as the system has it, for the tests of the console."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.console import Scene

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# No processes of its own for graphics, and for a start that is never repeated.
_LEAN = ("--disable-gpu", "--in-process-gpu", "--no-zygote")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser, for the tests of a file: while playwright runs, the thread has an event loop, in which no test of
    another file could run its own. What a page keeps is in its context, which is its test's own."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox does not start for root, as which CI runs; the pages are our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *_LEAN])
        yield browser
        browser.close()


@pytest.fixture
def scene(chromium: Any, tmp_path: Path, fresh_token: Callable[..., Any]) -> Iterator[Callable[..., Scene]]:
    """Makes signers with a console; arguments as Scene."""
    with ExitStack() as stack:
        yield lambda **fields: stack.enter_context(Scene(tmp_path, fresh_token, **fields))


@pytest.fixture
def page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Makes pages, each in a context of its own; arguments as Browser.new_context. What the console of the browser says
    of errors fails the test: with them come violations of the content security policy."""
    said: list[str] = []
    contexts: list[Any] = []

    def make(**options: Any) -> Any:
        context = chromium.new_context(**options)
        contexts.append(context)
        made = context.new_page()
        made.set_default_timeout(20_000)
        made.on("console", lambda line: said.append(f"{line.type}: {line.text}") if line.type != "log" else None)
        made.on("pageerror", lambda error: said.append(f"error: {error}"))
        made.allowed = []  # what a test provokes itself
        return made

    yield make
    allowed = tuple(text for context in contexts for made in context.pages for text in made.allowed)
    for context in contexts:
        context.close()
    assert [line for line in said if not any(text in line for text in allowed)] == []
