"""Signals that unwind the stack, so that tokens and child processes go away."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def raising(error: Callable[[int], BaseException], *numbers: signal.Signals) -> Iterator[None]:
    """Have each of these signals raise `error(number)` in the main thread."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise error(number)

    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
