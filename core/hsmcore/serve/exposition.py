"""The text that Prometheus scrapes."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from hsmcore.metrics import render
from hsmcore.serve.source import Source

FRESH_SECONDS: Final = 1.0
"""A scrape sooner than this gets the previous text: reading shares the interpreter with the signing thread."""


class NoMetrics(Exception):
    """No metrics are available here; the text says why."""


class Exposition:
    """The metrics of one key manager. For the server's event loop."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reading = asyncio.Lock()
        self._last: dict[str, tuple[float, bytes, str]] = {}

    async def read(self, accept: str) -> tuple[bytes, str]:
        """Return the text and its content type. Raises NoMetrics."""
        if self._source.manager is None:
            raise NoMetrics("metrics are counted in the process that signs: attach hsmcore.serve there")
        form = "openmetrics" if "openmetrics" in accept else "text"
        async with self._reading:
            at, text, kind = self._last.get(form, (float("-inf"), b"", ""))
            if time.monotonic() - at > FRESH_SECONDS:
                text, kind = await asyncio.to_thread(render, self._source.manager, accept)
                self._last[form] = (time.monotonic(), text, kind)
        return text, kind
