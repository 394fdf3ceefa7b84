"""On which host an epoch begins: where there are several key managers, each has an order of the hosts. It only delays
the claims that a host makes by itself; safety rests on the fence and the lease, and an operator's claim waits for none.
"""

from __future__ import annotations

import hashlib
from typing import Final

from hsmcore.config.fleet import Fleet
from hsmcore.fleet.machine import Machine

MOST_LEASE_MS: Final = 2000
"""A longer lease delays as this one does: hosts begin as much apart whatever it is."""
MOST_STEPS: Final = 4
"""The longest delay, in steps of half a lease."""


class Placement:
    """One host's, of one epoch. Times are nanoseconds of CLOCK_BOOTTIME and passed in."""

    def __init__(self, rules: Fleet) -> None:
        self._rules, self._lease = rules, min(rules.ttl_ms, MOST_LEASE_MS) * 1_000_000
        self._age: tuple[int, int, bool] | None = None
        self._since = 0
        self._moved = False
        """Whether the row has changed since this host began: then its last holder was there, and is no more."""

    def turn(self, machine: Machine, now: int) -> int | None:
        """Return when this host claims the epoch by itself, if its row stays as it is; None: nothing was seen yet.
        Called at each look."""
        row, free_at = machine.row, machine.free_at()
        if row.age != self._age:
            self._moved, self._age, self._since = self._age is not None, row.age, now
        if free_at is None:
            return None
        return max(free_at, self._since) + self.delay(row.host if self._moved else "")

    def delay(self, gone: str) -> int:
        """Return for how long this host leaves a free epoch to others. `gone`: the host that held it and did not go on;
        "": all have just begun, as far as is known."""
        rules = self._rules
        if rules.prefer:
            first = [host for host in rules.prefer if host != gone or host == rules.host]
            place = first.index(rules.host) if rules.host in first else len(first)
            return min(place, MOST_STEPS) * self._lease // 2
        if gone or rules.manager is None:
            return 0
        drawn = hashlib.sha256(f"{rules.name}\n{rules.manager}\n{rules.host}".encode()).digest()[:8]
        return self._lease * int.from_bytes(drawn) >> 64
