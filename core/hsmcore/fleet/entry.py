"""A host enters its fleet: it has a name of its own, and a lease that the database can keep up with."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final, Protocol

from hsmcore.base.steady import boottime
from hsmcore.config.fleet import Fleet
from hsmcore.errors import BadArgument, ConfigFault, ConfigurationError
from hsmcore.fleet import rows
from hsmcore.fleet.machine import EpochRow, Machine
from hsmcore.state import Store
from hsmcore.state.exchange import Answers, Asking, Change

RENEWALS: Final = 4
"""Renewals and looks in the life of a lease. An answer that takes longer than from one to the next is worth nothing."""
LOOKS: Final = 16
"""Looks in the life of a lease of a host that waits for the end of its former process, or has just failed to look."""
_LEAST_TRIPS: Final = 8
"""Renewals that must fit into the life of a lease one after the other: a late one, a new connection, another one."""
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


async def enter(store: Store, line: Asking, rules: Fleet, machine: Machine, where: str) -> None:
    """Let this process speak for its host, at the end of the lease that a former one may have had. `line`: on which the
    lease will be renewed; `where`: the JSON path of `fleet`. Raises ConfigurationError, StoreError."""
    await store.exchange([rows.looking(rules.name)], lambda found: (None, rows.prepare(found[0], rules.name)))
    await _measure(line, rules, machine, where)
    before = await _former(store, rules.host)
    until = boottime() + machine.ttl + machine.margin
    while before is not None and boottime() < until:
        await asyncio.sleep(machine.ttl / LOOKS / SECOND)
        now = await _former(store, rules.host)
        if now is not None and now != before:
            raise _taken(rules, where, now[0])
        before = now

    def decide(answers: Answers) -> tuple[str | EpochRow, list[Change]]:
        now = rows.life_of(answers[1])
        if now is not None and now != before:
            return now[0], []
        row, entered = rows.enter(answers, rules.host, machine.instance)
        return row, [entered]

    found = await store.exchange([rows.locking(rules.name), rows.of_host(rules.host)], decide)
    if isinstance(found, str):
        raise _taken(rules, where, found)
    machine.answered(store.identity, boottime())
    machine.saw(found, boottime())


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


async def _former(store: Store, host: str) -> tuple[str, int] | None:
    return await store.exchange([rows.of_host(host)], lambda found: (rows.life_of(found[0]), []), turn=False)


def _taken(rules: Fleet, where: str, other: str) -> ConfigurationError:
    problem = f"is {rules.host!r}, as which {other} runs in fleet {rules.name}: give each host a name of its own"
    return ConfigurationError.of([ConfigFault(f"{where}.host", problem)])
