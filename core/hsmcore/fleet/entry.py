"""A host enters its fleet: it has a name of its own, and a lease that the database can keep up with."""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import Any, Final, Protocol

from hsmcore.base.steady import boottime
from hsmcore.config.fleet import Fleet
from hsmcore.errors import BadArgument, ConfigFault, ConfigurationError
from hsmcore.fleet import rows
from hsmcore.fleet.machine import Machine
from hsmcore.state import StoreUnknown
from hsmcore.state.exchange import Asking, Change, Question, Reply

RENEWALS: Final = 4
"""Renewals and looks in the life of a lease. An answer that takes longer than from one to the next is worth nothing."""
LOOKS: Final = 16
"""Looks in the life of a lease of a host that waits for the end of its former process, or has just failed to look."""
_LEAST_TRIPS: Final = 8
"""Renewals that must fit into the life of a lease one after the other: a late one, a new connection, another one."""
_FIRST_SECONDS: Final = 5.0
"""The longest time until the first answer: to dial takes several round trips, and there is no lease yet that ends."""
SECOND: Final = 1_000_000_000


class Tell(Protocol):
    """Called with what happened ("fleet-claim", "fleet-release", "fleet-lost"; "": the state changed) and its
    details."""

    def __call__(self, record: str, **details: Any) -> object: ...


def position_of(given: object) -> int:
    """Return a position that a caller has given. Raises BadArgument."""
    if type(given) is not int or given < 0:
        raise BadArgument("a position is a whole number from 0 on")
    return given


async def enter(line: Asking, rules: Fleet, machine: Machine, where: str) -> None:
    """Let this process speak for its host, at the end of the lease that a former one may have had. `line`: on which the
    lease will be renewed; `where`: the JSON path of `fleet`. Raises ConfigurationError, StoreError."""
    sees, seconds = rows.seeing(rules.name, rules.host), machine.ttl / SECOND

    async def look(*first: Question | Change, until: float = 0.0) -> tuple[Reply, rows.Seen]:
        while True:
            try:
                told = await line.ask([*first, sees], seconds)
                return told, rows.seen(told.answers[-1])
            except StoreUnknown:
                if monotonic() > until:
                    raise
            await asyncio.sleep(seconds / LOOKS)

    _, seen = await look(rows.prepare(rules.name), until=monotonic() + _FIRST_SECONDS)
    await _measure(line, rules, machine, where)
    until = boottime() + machine.ttl + machine.margin
    while (before := seen.life) is not None and boottime() < until:
        await asyncio.sleep(machine.ttl / LOOKS / SECOND)
        _, seen = await look()
        if seen.life not in (None, before):
            raise _taken(rules, where, seen.speaker)
    told, now = await look(rows.enter(seen, rules.host, machine.instance))
    if now.speaker != machine.instance:
        raise _taken(rules, where, now.speaker)
    machine.answered(told.server, boottime())
    machine.saw(now.row, boottime())


async def _measure(line: Asking, rules: Fleet, machine: Machine, where: str) -> None:
    trips = []
    for _ in range(3):
        begun = boottime()
        # As a renewal, it goes there and back once, and its COMMIT waits for the standby.
        await line.ask([rows.sharing(rules.name)], machine.ttl / SECOND)
        trips.append(boottime() - begun)
    if min(trips) * _LEAST_TRIPS > machine.ttl:
        trip = min(trips) / 1e6
        least = math.ceil(trip * _LEAST_TRIPS)
        problem = f"is {rules.ttl_ms}, and a renewal of the lease takes {trip:.0f} ms: make it {least} or more"
        raise ConfigurationError.of([ConfigFault(f"{where}.ttlMs", problem)])


def _taken(rules: Fleet, where: str, other: str | None) -> ConfigurationError:
    problem = f"is {rules.host!r}, as which {other} runs in fleet {rules.name}: give each host a name of its own"
    return ConfigurationError.of([ConfigFault(f"{where}.host", problem)])
