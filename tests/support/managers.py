"""Shorthands for tests that use a key manager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import hsmcore
from hsmcore.base.scope import Scope


@asynccontextmanager
async def opened(config: dict[str, Any]) -> AsyncIterator[hsmcore.KeyManager]:
    """A key manager that is initialized, and closed at the end."""
    async with hsmcore.create_key_manager(config) as manager:
        yield manager


def counters(manager: hsmcore.KeyManager) -> dict[str, Any]:
    """What the one member of the manager has done."""
    [stats] = manager.get_stats().values()
    return dict(stats)


def start(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task for the coroutine."""
    return asyncio.get_running_loop().create_task(coroutine)


async def cut_off(scope: Scope) -> None:
    """End the tasks of a service as the end of its process does: nothing is closed, and nothing is said."""
    tasks = tuple(scope._tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; the test's own timeout ends a wait in vain."""
    while not condition():  # noqa: ASYNC110  # what is waited for happens in native threads
        await asyncio.sleep(0.002)


async def becomes(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until an awaitable condition holds; the test's own timeout ends a wait in vain."""
    while not await condition():  # noqa: ASYNC110  # what is waited for happens in another task or process
        await asyncio.sleep(0.01)


async def settle(manager: hsmcore.KeyManager) -> None:
    """Wait until no request is in flight."""
    await until(lambda: counters(manager)["in_flight"] == 0)
