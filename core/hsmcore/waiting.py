"""Waits that a cancellation does not cut short: for work in other threads, which it would not end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def finished(task: asyncio.Future[Any]) -> None:
    """Wait for the end of a task; a cancellation does not end the wait."""
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            continue


async def whole(work: Awaitable[T]) -> T:
    """Wait for the result. A cancellation is raised when the work has ended; then its result is lost, or its error."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await finished(task)
        if not task.cancelled():
            task.exception()  # or the loop would complain that nobody asked for it
        raise
