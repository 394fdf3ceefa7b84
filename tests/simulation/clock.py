"""Simulated time: what the module `time` says follows it, from `install` on, while a world runs.

`install` comes before hsmcore is imported: its modules take `monotonic_ns` and others by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

SECOND: Final = 1_000_000_000
_BEGIN_NS: Final = 1000 * SECOND
WALL_NS: Final = 1_900_000_000 * SECOND


class Clock:
    """Nanoseconds, which only the world's loop moves."""

    def __init__(self) -> None:
        self.ns = _BEGIN_NS
        self.wall_ahead = WALL_NS - _BEGIN_NS
        """Nanoseconds from this clock to the wall's: a step of the wall clock changes it."""
        self.boots, self.booted_ns = 0, 0
        """How often the machine was booted since, and when last: where CLOCK_BOOTTIME begins."""

    @property
    def wall(self) -> int:
        return self.ns + self.wall_ahead

    @property
    def shown(self) -> float:
        """Seconds since the world began, for people."""
        return (self.ns - _BEGIN_NS) / SECOND


_running: list[Clock] = []
real_monotonic: Final = time.monotonic


def boot_name() -> str:
    """Return the name of this boot of the simulated machine."""
    return f"boot {_running[0].boots}" if _running else ""


def run(clock: Clock) -> None:
    """Follow this clock from now on."""
    _running[:] = [clock]


def rest() -> None:
    """Follow the real clock again."""
    _running.clear()


def install() -> None:
    """Put the simulated functions into the module `time`. Once in a process."""

    def follow(name: str, simulated: Callable[..., Any]) -> None:
        real = getattr(time, name)

        def function(*arguments: Any) -> Any:
            return simulated(_running[0], *arguments) if _running else real(*arguments)

        setattr(time, name, function)

    def of_clock(clock: Clock, number: int) -> int:
        if number == time.CLOCK_BOOTTIME:
            return clock.ns - clock.booted_ns
        return clock.wall if number == time.CLOCK_REALTIME else clock.ns

    def sleep(clock: Clock, seconds: float) -> None:
        clock.ns += int(seconds * SECOND)

    for name in ("monotonic", "perf_counter"):
        follow(name, lambda clock: clock.ns / SECOND)
        follow(f"{name}_ns", lambda clock: clock.ns)
    follow("time", lambda clock: clock.wall / SECOND)
    follow("time_ns", lambda clock: clock.wall)
    follow("clock_gettime_ns", of_clock)
    follow("clock_gettime", lambda clock, number: of_clock(clock, number) / SECOND)
    follow("sleep", sleep)
