"""The checks of a fleet's hosts: this one's clock against the database's, its audit log's bound positions, and the
other hosts. They read, and change nothing; fleet_store.py looks at the database itself."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hsmcore.audit import AuditLog
from hsmcore.base.log import printable
from hsmcore.base.steady import boottime
from hsmcore.config import Config, Fleet
from hsmcore.doctor.report import Step, fail, failed, ok, warn
from hsmcore.errors import AuditUnavailable, HsmError
from hsmcore.fleet.overview import overview
from hsmcore.recovery.witness import Witness
from hsmcore.state import Store
from hsmcore.state.store import now_ns

if TYPE_CHECKING:
    from sqlalchemy import Connection

CLOCK_SECONDS: Final = 1.0
"""Seconds between the two looks at both clocks."""
MOST_DRIFT: Final = 0.05
"""Largest drift of a clock against the database's: two hosts then run apart by less than the margins of a lease."""
_ASKED: Final = 8
_FRESH_LEASES: Final = 3
_LOST_SECONDS: Final = 60.0
_INSTANCE: Final = re.compile(r"(?s)(.*):(\d{1,10}):[0-9a-f]+\Z")
ASSUMPTION: Final = (
    "payloads without a position are handed out by at most one host if clocks do not run apart by more than a tenth"
)


def check_fleet(config: Config) -> Iterator[Step]:
    """Check the fleet, if the configuration has one."""
    rules = config.key_manager.fleet
    if rules is None:
        return
    try:
        found = asyncio.run(_look(config, rules))
    except HsmError as error:
        if error.call != "open":  # there is none yet; else fleet-store may have said it, too
            yield failed("fleet-behind", error)
        return
    yield from found


async def _look(config: Config, rules: Fleet) -> list[Step]:
    store = await Store.open_to_read(config.key_manager.state_place)
    try:
        seen = await store.run(lambda connection: overview(connection, rules, store.identity))
        # A lease says then who tries to claim, and what is handed out needs no clock.
        clock = [] if rules.unordered == "any" else [await _clock(store)]
        return [
            *clock,
            *await _behind(config, rules, store, seen),
            *_hosts(rules, seen),
        ]
    finally:
        await store.close()


async def _clock(store: Store) -> Step:
    first = await _both_clocks(store)
    await asyncio.sleep(CLOCK_SECONDS)
    second = await _both_clocks(store)
    passed, theirs = second[0] - first[0], second[1] - first[1]
    return clock_step(passed, theirs, first[2] + second[2])


def clock_step(passed: int, theirs: int, unsure: int) -> Step:
    """Judge how far two clocks went between two looks, in nanoseconds: this host's, the database's; `unsure`: what the
    way to the database may have taken of it."""
    drift = abs(theirs - passed)
    data: dict[str, Any] = {"ratio": theirs / passed, "seconds": passed / 1e9, "unsureSeconds": unsure / 1e9}
    text = f"in {passed / 1e9:.2f} s of this host the database counted {theirs / 1e9:.2f} s"
    hint = f"{ASSUMPTION}; positions need no clock."
    if drift > passed * MOST_DRIFT + unsure:
        return fail("fleet-clock-rate", text, f"Find out which of the two clocks is wrong: {hint}", **data)
    return ok("fleet-clock-rate", f"{text}: {hint.removesuffix('.')}", **data)


async def _both_clocks(store: Store) -> tuple[int, int, int]:
    """Return this host's clock, the database's, and half of the time that the answer took: the best of several."""
    best = (0, 0, 1 << 62)
    for _ in range(_ASKED):
        begun, theirs, ended = await store.run(_times)
        if (half := (ended - begun) // 2) < best[2]:
            best = (begun + half, theirs, half)
    return best


def _times(connection: Connection) -> tuple[int, int, int]:
    begun = boottime()
    theirs = now_ns(connection)
    return begun, theirs, boottime()


async def _behind(config: Config, rules: Fleet, store: Store, seen: dict[str, Any]) -> list[Step]:
    name, incident, log = "fleet-behind", seen["incident"], AuditLog.of(config.key_manager)
    steps = []
    if incident["open"]:
        waiting = printable(", ".join(incident["waiting"]))
        found = f"incident {incident['number']} is open: waiting for {waiting}; no payload with a position is signed"
        hint = "Start those hosts; `hsmcore fleet reconcile` closes it without those that never come back."
        steps.append(fail(name, found, hint, **incident))
    if not log.enabled:
        hint = "Name an auditLogFile: from it a host puts back what the database has lost."
        return [*steps, warn(name, "there is no audit log, so this host cannot tell what the database lost", hint)]
    if not log.waits:
        found = 'with durability "interval", a signature may be handed out before its record is durable'
        steps.append(warn(name, found, 'Set audit.durability to "fsync".'))
    try:
        lacking = (await Witness(store, rules.name, rules.host, "", log).compare()).lacking
    except AuditUnavailable as error:
        return [*steps, warn(name, printable(str(error.args[0])))]
    if lacking:
        row = lacking[0]
        found = f"the database lacks {len(lacking)} positions of the audit log, such as {row.position} of {row.domain}"
        hint = "The host puts them back when it starts; until then nothing with a position is signed."
        steps.append(fail(name, printable(found), hint, missing=len(lacking)))
    elif not steps:
        steps.append(ok(name, "the database has what the audit log says was bound"))
    return steps


def _hosts(rules: Fleet, seen: dict[str, Any]) -> Iterator[Step]:
    name, own = "fleet-hosts", rules.host
    fresh = _FRESH_LEASES * rules.ttl_ms / 1e3
    for host in seen["hosts"]:
        age, match = host["seenSecondsAgo"], _INSTANCE.match(host["instance"])
        alive = age is not None and age <= fresh and host["state"] != "closed"
        if host["name"] == own and alive and match is not None and not _runs_here(int(match[2])):
            found = f"process {printable(host['instance'])} of another machine has this host's name"
            yield fail(name, found, "Give each host of the fleet a name of its own: fleet.host.")
            return
        if host["name"] != own and not host["retired"] and (age is None or age > max(fresh, _LOST_SECONDS)):
            when = "never" if age is None else f"{age:.0f} s ago"
            found = f"{printable(host['name'])} was last seen {when}: an incident would wait for it"
            yield warn(name, found, "Start it, or see `hsmcore fleet retire --help` if it never comes back.")
    names = [host["name"] for host in seen["hosts"] if not host["retired"]]
    if strangers := [host for host in rules.prefer or () if host not in (own, *names)]:
        found = f"fleet.prefer names {printable(', '.join(strangers))}, and the fleet has no such host yet"
        yield warn(name, found, "Start it, or correct the name: the others wait for it at each claim.")
    shown = printable(", ".join(names)) or "none yet"
    yield ok(name, f"this host is {printable(own)}; the fleet has {shown}", hosts=names)


def _runs_here(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() or pid == os.getpid()
