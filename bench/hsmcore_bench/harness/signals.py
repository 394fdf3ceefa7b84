"""Signals that unwind the stack, so that tokens and child processes go away."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Have `handler` called in the main thread for each of these signals."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def raising(error: Callable[[int], BaseException], *numbers: signal.Signals) -> AbstractContextManager[None]:
    """Have each of these signals raise `error(number)` in the main thread."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise error(number)

    return handled(leave, *numbers)
