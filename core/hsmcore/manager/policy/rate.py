"""So much a second: what a caller of a policy and a client of a gateway may use up."""

from __future__ import annotations

from time import monotonic_ns
from typing import Final

_MS: Final = 1_000_000
_SECOND: Final = 1_000_000_000


class Rate:
    """So many units a second, with bursts of as many. Counts whole nanoseconds, so that nothing is lost or won by
    rounding. Belongs to one event loop."""

    __slots__ = ("_balance", "_filled", "per_second")

    def __init__(self, per_second: int) -> None:
        self.per_second = per_second
        self._balance, self._filled = per_second * _SECOND, monotonic_ns()
        """In billionths of a unit; below 0 it is owed."""

    def take(self, units: int = 1) -> int:
        """Take units. Returns 0; or after how many milliseconds to come back, and takes none then.

        As soon as there is one unit, all are given, and what lacks is owed: so what is larger than a burst has its
        time, too, and smaller ones do not keep it out."""
        now = monotonic_ns()
        self._balance = min(self._balance + (now - self._filled) * self.per_second, self.per_second * _SECOND)
        self._filled = now
        if self._balance < _SECOND:
            return -((self._balance - _SECOND) // (self.per_second * _MS))
        self._balance -= units * _SECOND
        return 0
