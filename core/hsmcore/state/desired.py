"""Operators' wishes for running key managers, and the key managers' reports of themselves.

The command line writes a desired state; a running key manager looks each second and follows. So a wish outlasts a
restart, and one that is written while no key manager runs holds from the next start on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Connection, delete, insert, select

from hsmcore.state.schema import DESIRED_STATE as DESIRED
from hsmcore.state.schema import SNAPSHOT
from hsmcore.state.store import Store

DRAIN: Final = "drain:"
"""Prefix of a member's name; any value drains it."""
READMIT: Final = "readmit:"
"""Prefix of a member's name; each new value is one order to try it again."""
FORCE: Final = "force"
"""The name of the preferred level."""
EMERGENCY: Final = "emergency"
""""enabled" or "disabled"."""
STALE_SECONDS: Final = 15.0
"""A key manager whose report is older is not running any more."""


@dataclass(frozen=True, slots=True)
class Wish:
    value: str
    reason: str


class Desired:
    """Reads and writes `desired_state` and `snapshot`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def set(self, name: str, value: str | None, reason: str) -> None:
        """Write a wish; None withdraws it."""

        def work(connection: Connection) -> None:
            connection.execute(delete(DESIRED).where(DESIRED.c.name == name))
            if value is not None:
                connection.execute(insert(DESIRED).values(name=name, value=value, reason=reason, set_ns=time.time_ns()))

        await self._store.run(work)

    async def all(self) -> dict[str, Wish]:
        """Return every wish by name."""
        query = select(DESIRED.c.name, DESIRED.c.value, DESIRED.c.reason)
        rows = await self._store.run(lambda connection: connection.execute(query).all())
        return {name: Wish(value, reason) for name, value, reason in rows}

    async def report(self, name: str, value: dict[str, Any] | None) -> None:
        """Write a key manager's report of its state; None: it has ended."""

        def work(connection: Connection) -> None:
            connection.execute(delete(SNAPSHOT).where(SNAPSHOT.c.name == name))
            if value is not None:
                text = orjson.dumps(value).decode()
                connection.execute(insert(SNAPSHOT).values(name=name, value=text, written_ns=time.time_ns()))

        await self._store.run(work)

    async def reports(self) -> list[dict[str, Any]]:
        """Return the last reports of key managers, with `written_ns`."""
        query = select(SNAPSHOT.c.value, SNAPSHOT.c.written_ns).order_by(SNAPSHOT.c.name)
        rows = await self._store.run(lambda connection: connection.execute(query).all())
        return [orjson.loads(value) | {"written_ns": written} for value, written in rows]

    async def running(self) -> list[dict[str, Any]]:
        """The reports of the key managers that are running."""
        fresh = time.time_ns() - STALE_SECONDS * 1e9
        return [report for report in await self.reports() if report["written_ns"] > fresh]
