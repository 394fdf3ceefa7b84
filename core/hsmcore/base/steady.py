"""The time for acts that cannot be undone: a step of the wall clock counts once it has held for a day.

A wall clock that is wrong for a moment must not destroy a key, delete a record, begin a rotation or use up a budget.
CLOCK_BOOTTIME has no steps, but begins at each boot. So this clock runs by it, and its `mark`, stored with the data
that it serves, carries it over restarts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

HELD_NS: Final = 86_400 * 10**9
"""How long a step must have held, and the most that a start believes the wall clock to be ahead of the mark."""
STEP_NS: Final = 10 * 10**9
"""A smaller step forward counts at once, a smaller one back never: the clock goes back only by one that has held."""


def boottime() -> int:
    """Return the nanoseconds since the boot, those in which the machine slept too: leases are measured with them."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _boot() -> str:
    """Return the name of this boot of the machine; "" if it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class SteadyClock:
    """Unix nanoseconds by the wall clock, without its steps of the last day. `stepped(before, now)` is called once for
    each step, when it is seen."""

    def __init__(
        self,
        wall: Callable[[], int] | None = None,
        boot: Callable[[], int] | None = None,
        stepped: Callable[[int, int], None] | None = None,
    ) -> None:
        self._wall, self._boot, self.stepped = wall or time.time_ns, boot or boottime, stepped
        self._offset = self._wall() - self._boot()
        """Nanoseconds from the boot clock to this one."""
        self._step: int | None = None
        """As `_offset`, of a step that has not held for long enough; it was seen at `_since` of the boot clock."""
        self._since = 0
        self.counted = False
        """Whether the boot clock has counted since the mark; else how long a stop took is the wall clock's word."""

    def now(self) -> int:
        """Return the time. Call it regularly: a step holds from when it is seen."""
        boot = self._boot()
        offset = self._wall() - boot
        if abs(offset - self._offset) < STEP_NS:
            self._offset, self._step = max(offset, self._offset), None
            return boot + self._offset
        if self._step is None or abs(offset - self._step) >= STEP_NS:
            self._since = boot
            if self.stepped is not None:
                self.stepped(boot + self._offset, boot + offset)
        self._step = offset
        if boot - self._since >= HELD_NS:
            self._offset, self._step = offset, None
        return boot + self._offset

    def sure(self) -> int:
        """Return the earlier of this time and the wall clock's: what cannot be undone is due when both say so."""
        return min(self._wall(), self.now())

    def late(self) -> int:
        """Return the later of this time and the wall clock's: a wait that is counted from it does not end early."""
        return max(self._wall(), self.now())

    @property
    def agrees(self) -> bool:
        """Whether the wall clock had this time at the last `now`."""
        return self._step is None

    def reach(self, moment: int) -> None:
        """Go on from `moment`, a time that was durably known, if it is later than this clock's."""
        self._offset += max(moment - self.now(), 0)

    @property
    def mark(self) -> str:
        """The text that `resume` takes, in this life of the process or a later one."""
        made = {"boot": _boot(), "at": self._boot(), "offset": self._offset, "step": self._step, "since": self._since}
        return json.dumps(made)

    def resume(self, mark: str | bytes, known: int) -> None:
        """Go on from a mark. During one boot the boot clock has counted what lies between; after another one the wall
        clock is believed up to a day ahead of the mark. `known`: a time that is durably known and stands in for a mark
        that is missing; 0: nothing is known, and the wall clock is believed."""
        boot, wall = self._boot(), self._wall()
        try:
            was = json.loads(mark)
            at, offset, since = int(was["at"]), int(was["offset"]), int(was["since"])
            step = None if was["step"] is None else int(was["step"])
            known = at + offset
            if was["boot"] and was["boot"] == _boot() and at <= boot:
                self._offset, self._step, self._since = offset, step, min(since, boot)
                self.counted = True
                return
        except (ValueError, TypeError, KeyError, OverflowError):
            pass  # there is none
        if known:
            self._offset = max(known, min(wall, known + HELD_NS)) - boot
            self._step = None
