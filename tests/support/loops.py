"""Run coroutines under asyncio and under uvloop, and notice what an event loop would otherwise only print."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
import uvloop

T = TypeVar("T")

one_loop = pytest.mark.parametrize("run", ["uvloop"], indirect=True)
"""For a coroutine test of something that no event loop has a part in: run it under one kind only."""

TIMEOUT = 240.0
FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


def warm_up() -> None:
    """Have each kind of loop make what it keeps for the life of the process (libuv: a pipe for signals)."""
    for make in FACTORIES.values():
        make().close()


class LoopRunner:
    """One event loop for one test: `run(coroutine)` as often as needed, then `close()`, which judges."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.complaints: list[str] = []
        self._runner = asyncio.Runner(loop_factory=FACTORIES[kind])
        self._runner.get_loop().set_exception_handler(self._complain)

    def _complain(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")

    def __call__(self, coroutine: Coroutine[Any, Any, T], timeout: float = TIMEOUT) -> T:
        return self._runner.run(asyncio.wait_for(coroutine, timeout))

    def close(self) -> list[str]:
        """Close the loop. Returns what it complained of and the tasks that were left in it."""
        loop = self._runner.get_loop()
        left = [f"a task was left: {task!r}" for task in asyncio.all_tasks(loop)]
        self._runner.close()
        return self.complaints + left
