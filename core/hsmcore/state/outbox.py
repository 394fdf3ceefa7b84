"""The outbox of notices: durable before anything is sent, a row for each target."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, delete, select, update

from hsmcore.state.schema import NOTICE, NOTICE_DELIVERY, insert_row, is_old, remove_oldest
from hsmcore.state.store import Tables

LEAST, MOST = 1_000, 10_000
"""Notices that stay whatever their age, so that their occasions are told once, and the most that are kept."""
_DELIVERY, _NOTICES = NOTICE_DELIVERY.c, NOTICE.c


@dataclass(frozen=True, slots=True)
class Delivery:
    """One notice for one target, with the number of attempts so far."""

    id: int
    target: str
    attempts: int
    kind: str
    title: str
    body: str


class Outbox(Tables):
    """Reads and writes `notice` and `notice_delivery`."""

    async def add(self, kind: str, occasion: str, title: str, body: str, targets: Iterable[str]) -> bool:
        """Add a notice. Returns False, and adds none, if there was one for the occasion."""
        to = list(targets)

        def work(connection: Connection) -> bool:
            if connection.execute(select(NOTICE.c.id).where(NOTICE.c.occasion == occasion)).first():
                return False
            now = time.time_ns()
            notice = insert_row(connection, NOTICE, time_ns=now, kind=kind, occasion=occasion, title=title, body=body)
            for target in to:
                insert_row(
                    connection, NOTICE_DELIVERY, notice_id=notice, target=target, attempts=0, next_ns=0, error=""
                )
            return True

        return await self._store.run(work)

    async def due(self, now_ns: int, most_ns: int, limit: int = 20) -> list[Delivery]:
        """Return the deliveries that are due, oldest first; also those that are more than `most_ns` ahead, since a
        clock that was ahead has dated them."""
        columns = (*NOTICE_DELIVERY.c["id", "target", "attempts"], *NOTICE.c["kind", "title", "body"])
        due = (_DELIVERY.next_ns <= now_ns) | (_DELIVERY.next_ns > now_ns + most_ns)
        open_ = (_DELIVERY.done_ns.is_(None), _DELIVERY.given_up_ns.is_(None), due)
        query = _joined(*columns).where(*open_).limit(limit)
        return [Delivery(**row) for row in await self._store.rows(query)]

    async def change(self, delivery: int, **values: Any) -> None:
        """Set columns of a delivery."""
        statement = update(NOTICE_DELIVERY).where(NOTICE_DELIVERY.c.id == delivery).values(**values)
        await self._store.run(lambda connection: connection.execute(statement))

    async def forget(self, now_ns: int) -> None:
        """Remove the oldest notices (schema.is_old), in portions, but none that is still to be delivered."""
        to_do = select(_DELIVERY.notice_id).where(_DELIVERY.done_ns.is_(None), _DELIVERY.given_up_ns.is_(None))
        old = is_old(_NOTICES.id, _NOTICES.time_ns, LEAST, MOST, now_ns) & _NOTICES.id.not_in(to_do)
        alone = delete(NOTICE_DELIVERY).where(_DELIVERY.notice_id.not_in(select(_NOTICES.id)))

        def work(connection: Connection) -> int:
            gone = remove_oldest(connection, NOTICE, old)
            if gone:
                connection.execute(alone)
            return gone

        await self._store.run_out(work)

    async def all(self) -> list[dict[str, Any]]:
        """Return every delivery with its notice, oldest first."""
        notice = NOTICE.c["time_ns", "kind", "occasion", "title", "body"]
        delivery = NOTICE_DELIVERY.c["target", "attempts", "done_ns", "given_up_ns", "error"]
        return await self._store.rows(_joined(*notice, *delivery))


def _joined(*columns: Any) -> Select[Any]:
    both = NOTICE_DELIVERY.join(NOTICE, _NOTICES.id == _DELIVERY.notice_id)
    return select(*columns).select_from(both).order_by(_DELIVERY.id)
