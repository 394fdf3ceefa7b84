"""The outbox of notices: durable before anything is sent, a row for each target."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select, update

from hsmcore.state.schema import NOTICE, NOTICE_DELIVERY
from hsmcore.state.store import Store


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notice for one target, with the number of attempts so far."""

    id: int
    target: str
    attempts: int
    time_ns: int
    kind: str
    title: str
    body: str


class Outbox:
    """Reads and writes `notice` and `notice_delivery`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, kind: str, occasion: str, title: str, body: str, targets: Iterable[str]) -> bool:
        """Add a notice. Returns False, and adds none, if there was one for the occasion."""
        to = list(targets)

        def work(connection: Connection) -> bool:
            if connection.execute(select(NOTICE.c.id).where(NOTICE.c.occasion == occasion)).first():
                return False
            now = time.time_ns()
            values = {"time_ns": now, "kind": kind, "occasion": occasion, "title": title, "body": body}
            made = connection.execute(insert(NOTICE).values(**values))
            assert made.inserted_primary_key is not None  # noqa: S101  # for the type checker
            for target in to:
                row = {"notice_id": made.inserted_primary_key[0], "target": target, "attempts": 0, "next_ns": now}
                connection.execute(insert(NOTICE_DELIVERY).values(**row, error=""))
            return True

        return await self._store.run(work)

    async def due(self, now_ns: int, limit: int = 20) -> list[Delivery]:
        """Return the deliveries that are due, oldest first."""
        query = (
            select(
                NOTICE_DELIVERY.c.id, NOTICE_DELIVERY.c.target, NOTICE_DELIVERY.c.attempts, NOTICE.c.time_ns,
                NOTICE.c.kind, NOTICE.c.title, NOTICE.c.body,
            )
            .join(NOTICE, NOTICE.c.id == NOTICE_DELIVERY.c.notice_id)
            .where(
                NOTICE_DELIVERY.c.done_ns.is_(None),
                NOTICE_DELIVERY.c.given_up_ns.is_(None),
                NOTICE_DELIVERY.c.next_ns <= now_ns,
            )
            .order_by(NOTICE_DELIVERY.c.id)
            .limit(limit)
        )  # fmt: skip
        rows = await self._store.run(lambda connection: connection.execute(query).mappings().all())
        return [Delivery(**row) for row in rows]

    async def change(self, delivery: int, **values: Any) -> None:
        """Set columns of a delivery."""
        statement = update(NOTICE_DELIVERY).where(NOTICE_DELIVERY.c.id == delivery).values(**values)
        await self._store.run(lambda connection: connection.execute(statement))

    async def all(self) -> list[dict[str, Any]]:
        """Return every delivery with its notice, oldest first."""
        query = select(
            NOTICE.c.time_ns, NOTICE.c.kind, NOTICE.c.occasion, NOTICE.c.title, NOTICE.c.body,
            NOTICE_DELIVERY.c.target, NOTICE_DELIVERY.c.attempts, NOTICE_DELIVERY.c.done_ns,
            NOTICE_DELIVERY.c.given_up_ns, NOTICE_DELIVERY.c.error,
        ).join(NOTICE_DELIVERY, NOTICE.c.id == NOTICE_DELIVERY.c.notice_id).order_by(NOTICE_DELIVERY.c.id)  # fmt: skip
        rows = await self._store.run(lambda connection: connection.execute(query).mappings().all())
        return [dict(row) for row in rows]
