"""Which request numbers of a nonce were taken. Knows no clock."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

GAPS: Final = 4096
"""Ranges of numbers that were not taken and lie below one that was: so many at most."""


class SeenIds:
    """The numbers that were taken. Connections of one process race, so a number may come behind a higher one; those
    that have not come yet are kept as ranges."""

    def __init__(self, most: int = GAPS) -> None:
        self._most = most
        self.newest = 0
        """The highest number that was taken."""
        self._lows: list[int] = []
        self._highs: list[int] = []
        self._since: list[float] = []
        """When a higher number was taken for the first time. It grows with the range."""

    def __contains__(self, number: int) -> bool:
        return number <= self.newest and self._gap(number) is None

    @property
    def gaps(self) -> int:
        """How many ranges are kept."""
        return len(self._lows)

    def has_room(self, number: int, before: float) -> bool:
        """Whether a number can be taken. Where there are too many ranges, those from before this time count as
        taken."""
        if number == self.newest + 1 or len(self._lows) < self._most:
            return True
        old = bisect_right(self._since, before)
        if old:
            self._drop(old)
        return len(self._lows) < self._most or self._shrinks(number)

    def take(self, number: int, now: float) -> bool:
        """A request with this number, which was not taken, is begun. Returns whether the ranges are others now."""
        if number > self.newest:
            before, self.newest = self.newest, number
            if number == before + 1:
                return False
            self._lows.append(before + 1)
            self._highs.append(number - 1)
            self._since.append(now)
            return True
        at = self._gap(number)
        if at is None:
            return False
        low, high = self._lows[at], self._highs[at]
        if low == high:
            del self._lows[at], self._highs[at], self._since[at]
        elif number == low:
            self._lows[at] = low + 1
        elif number == high:
            self._highs[at] = high - 1
        else:
            self._highs[at] = number - 1
            self._lows.insert(at + 1, number + 1)
            self._highs.insert(at + 1, high)
            self._since.insert(at + 1, self._since[at])
        return True

    def take_below(self, number: int) -> None:
        """All numbers below this one count as taken."""
        self.newest = max(self.newest, number - 1)
        whole = bisect_right(self._highs, number - 1)
        self._drop(whole)
        if self._lows and self._lows[0] < number:
            self._lows[0] = number

    def _gap(self, number: int) -> int | None:
        at = bisect_right(self._lows, number) - 1
        return at if at >= 0 and number <= self._highs[at] else None

    def _shrinks(self, number: int) -> bool:
        at = self._gap(number)
        return at is not None and number in (self._lows[at], self._highs[at])

    def _drop(self, count: int) -> None:
        del self._lows[:count], self._highs[:count], self._since[:count]
