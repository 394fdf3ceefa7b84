"""What Prometheus reads."""

from __future__ import annotations

import asyncio
import importlib

from hsmcore.serve.source import Source


class NoMetrics(Exception):
    """There are none here; the text says where."""


async def exposition(source: Source, accept: str) -> tuple[bytes, str]:
    """The text, and its content type. Raises NoMetrics."""
    if source.manager is None:
        raise NoMetrics("metrics are counted in the process that signs: attach hsmcore.serve there")
    metrics = importlib.import_module("hsmcore.metrics")
    found: tuple[bytes, str] = await asyncio.to_thread(metrics.render, source.manager, accept)
    return found
