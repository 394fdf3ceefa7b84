"""What Prometheus reads."""

from __future__ import annotations

import importlib

from hsmcore.serve.source import Source


async def exposition(source: Source, accept: str) -> tuple[bytes, str]:
    """The text, and its content type. Raises Unanswered."""
    metrics = importlib.import_module("hsmcore.metrics")
    found: tuple[bytes, str] = await source.in_loop(lambda: metrics.render(source.manager, accept))
    return found
