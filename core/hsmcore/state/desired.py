"""Operators' wishes for running key managers, and the key managers' reports of themselves.

The command line writes a desired state; a running key manager looks each second and follows. So a wish outlasts a
restart, and one that is written while no key manager runs holds from the next start on.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Connection, bindparam, delete, select

from hsmcore.state.schema import DESIRED_STATE as DESIRED
from hsmcore.state.schema import SNAPSHOT, replace_row
from hsmcore.state.store import Tables

DRAIN: Final = "drain:"
"""Prefix of a member's name; any value drains it."""
READMIT: Final = "readmit:"
"""Prefix of a member's name; each new value is one order to try it again."""
FORCE: Final = "force"
"""The name of the preferred level."""
EMERGENCY: Final = "emergency"
""""enabled" or "disabled"."""
_FORGET_NS: Final = 86_400_000_000_000
_AHEAD_NS: Final = 3_600_000_000_000
"""Another host's clock may be ahead; a report from later than that is of a clock that was wrong."""
STALE_SECONDS: Final = 15.0
"""A key manager whose report is older is not running any more."""
# Made once: to make a statement takes longer than to do it.
_WISHES: Final = select(DESIRED)
_WITHIN: Final = SNAPSHOT.c.written_ns.between(bindparam("since"), bindparam("until"))
_FORGETS: Final = delete(SNAPSHOT).where(SNAPSHOT.c.name.contains(":") & ~_WITHIN)
"""A key manager that was killed leaves its row: `own_report`."""


@dataclass(frozen=True, slots=True)
class Wish:
    value: str
    reason: str


def withdraw(connection: Connection, name: str) -> None:
    """Delete a wish, in the transaction that begins to fulfil it: a later life must not fulfil it once more."""
    replace_row(connection, DESIRED, name)


def own_report(what: str) -> str:
    """Return a name for the reports of one life of a key manager: containers may share a process id."""
    return f"{what}:{os.getpid()}:{secrets.token_hex(4)}"


class Desired(Tables):
    """Reads and writes `desired_state` and `snapshot`."""

    async def set(self, name: str, value: str | None, reason: str) -> None:
        """Write a wish; None withdraws it."""
        row: dict[str, Any] = {} if value is None else {"value": value, "reason": reason, "set_ns": time.time_ns()}
        await self._store.run(lambda connection: replace_row(connection, DESIRED, name, **row))

    async def all(self) -> dict[str, Wish]:
        """Return every wish by name."""
        return {row["name"]: Wish(row["value"], row["reason"]) for row in await self._store.rows(_WISHES)}

    async def report(self, name: str, value: dict[str, Any] | None) -> None:
        """Write a key manager's report of its state; None: it has ended."""
        row: dict[str, Any] = {}
        now = time.time_ns()
        if value is not None:
            row = {"value": orjson.dumps(value).decode(), "written_ns": now}

        def work(connection: Connection) -> None:
            replace_row(connection, SNAPSHOT, name, **row)
            connection.execute(_FORGETS, {"since": now - _FORGET_NS, "until": now + _FORGET_NS})

        await self._store.run(work)

    async def reports(self) -> list[dict[str, Any]]:
        """Return the last reports of key managers, with `written_ns`."""
        rows = await self._store.rows(select(SNAPSHOT).order_by(SNAPSHOT.c.name))
        found = []
        for row in rows:
            with suppress(ValueError, TypeError, OverflowError):  # not sealed: another writer's row is passed over
                found.append(orjson.loads(row["value"]) | {"written_ns": int(row["written_ns"])})
        return found

    async def running(self) -> list[dict[str, Any]]:
        """Return the reports of the key managers that are running."""
        now = time.time_ns()
        found = [(report, now - report["written_ns"]) for report in await self.reports()]
        return [report for report, age in found if -_AHEAD_NS < age < STALE_SECONDS * 1e9]
