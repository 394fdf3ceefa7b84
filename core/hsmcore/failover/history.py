"""The stored history of events, queried by time, kind and member."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import orjson
from sqlalchemy import Connection, func, insert, select

from hsmcore.failover.events import Event
from hsmcore.state.schema import FAILOVER_EVENT as EVENT
from hsmcore.state.schema import is_old, remove_oldest
from hsmcore.state.store import Tables

LEAST, MOST = 10_000, 100_000
"""Events that stay whatever their age, and the most that are kept: a member that comes and goes each ten seconds makes
as many in six days. The audit log has them, too."""

_NEWEST: Final = select(func.max(EVENT.c.id))


def insert_events(connection: Connection, events: Sequence[tuple[int, Event]]) -> None:
    """Add events within a transaction of the caller."""
    rows = [
        {
            "time_ns": when,
            "kind": event.kind,
            "level_from": event.level_from,
            "level_to": event.level_to,
            "member": event.member,
            "reason": event.reason,
            "details": orjson.dumps(event.details).decode(),
        }
        for when, event in events
    ]
    connection.execute(insert(EVENT), rows)


class History(Tables):
    """Reads and writes `failover_event`."""

    async def append(self, events: Sequence[tuple[int, Event]]) -> None:
        """Add events, each with its time in Unix nanoseconds, in one transaction."""
        if events:
            await self._store.run(lambda connection: insert_events(connection, events))

    async def note(self, event: Event) -> None:
        """Add one event with the present time."""
        await self.append([(time.time_ns(), event)])

    async def query(
        self,
        since_ns: int | None = None,
        until_ns: int | None = None,
        *,
        after: int | None = None,
        kinds: Sequence[str] = (),
        member: str | None = None,
        limit: int | None = None,
    ) -> list[dict[str, Any]]:
        """Events from `since_ns` to `until_ns` (Unix ns, inclusive), oldest first; with `limit`, the latest ones;
        with `after`, those with a greater id, in the order in which they were written."""
        # By time, a database would read all events to find those behind an id.
        query = select(EVENT).order_by(*(() if after is not None else (EVENT.c.time_ns.desc(),)), EVENT.c.id.desc())
        if since_ns is not None:
            query = query.where(EVENT.c.time_ns >= since_ns)
        if until_ns is not None:
            query = query.where(EVENT.c.time_ns <= until_ns)
        if after is not None:
            query = query.where(EVENT.c.id > after)
        if kinds:
            query = query.where(EVENT.c.kind.in_(kinds))
        if member is not None:
            query = query.where(EVENT.c.member == member)
        if limit is not None:
            query = query.limit(limit)
        return (await self._store.rows(query, "details"))[::-1]

    async def newest(self) -> int:
        """Return the id of the newest event; 0: there is none."""
        return int(await self._store.run(lambda connection: connection.execute(_NEWEST).scalar()) or 0)

    async def forget(self, now_ns: int) -> None:
        """Remove the oldest events (schema.is_old), in portions."""
        old = is_old(EVENT.c.id, EVENT.c.time_ns, LEAST, MOST, now_ns)
        await self._store.run_out(lambda connection: remove_oldest(connection, EVENT, old))
