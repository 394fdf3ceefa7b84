"""What Prometheus reads."""

from __future__ import annotations

import asyncio
import importlib

from hsmcore.serve.source import Source


async def exposition(source: Source, accept: str) -> tuple[bytes, str]:
    """The text, and its content type."""
    metrics = importlib.import_module("hsmcore.metrics")
    found: tuple[bytes, str] = await asyncio.to_thread(metrics.render, source.manager, accept)
    return found
