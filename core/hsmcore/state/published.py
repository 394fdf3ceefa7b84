"""How far the positions of a domain are in its public log, and what is to be published next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from hsmcore.state import positions
from hsmcore.state.errors import StoreError, StoreNotGenuine
from hsmcore.state.mark import Mark
from hsmcore.state.schema import BOUND, PUBLISHED
from hsmcore.state.store import Store

MOST: Final = 1024
"""Positions that are read at once."""
NOTHING: Final = "0" * 64
"""The digest of a position that was given up: it is bound to no payload, and no payload has this digest."""
_HEAD: Final = select(PUBLISHED).where(PUBLISHED.c.name == bindparam("domain"))
_ROWS: Final = (
    select(BOUND)
    .where(
        BOUND.c.domain == bindparam("domain"),
        BOUND.c.position >= bindparam("begin"),
        BOUND.c.position < bindparam("end"),
    )
    .order_by(BOUND.c.position)
)


class Head(NamedTuple):
    """A row of `published`, without its name."""

    first: int
    size: int = 0
    signed: bytes = b""
    cosigned: bytes = b""


class Portion(NamedTuple):
    """What follows in a log. `digests`: of the next positions, in hexadecimal; None: given up by a floor, and what was
    bound there, if anything, is not known any more. `holes`: those behind them that nothing is bound to, though a
    higher one is bound. `due`: how many leaves there are to be, up to the highest one."""

    head: Head
    digests: list[str | None]
    holes: list[int]
    due: int


def head_of(connection: Connection, domain: str) -> Head | None:
    """Return how far a domain is published; None: it is not."""
    found = connection.execute(_HEAD, {"domain": domain}).first()
    return None if found is None else Head(found[1], found[2], found[3].encode(), found[4].encode())


def begin(connection: Connection, domain: str, first: int) -> Head:
    """Return the head of a domain's log, which begins now if it has not. From now on removal waits for it."""
    found = head_of(connection, domain)
    if found is None:
        connection.execute(insert(PUBLISHED).values(name=domain, first_position=first, size=0, signed="", cosigned=""))
    return found or Head(first)


def advance(connection: Connection, domain: str, was: Head, now: Head) -> None:
    """Write a head, in the place of what it `was`. Raises StoreError if it is another one by now."""
    changed = connection.execute(
        update(PUBLISHED)
        .where(PUBLISHED.c.name == domain, PUBLISHED.c.size == was.size, PUBLISHED.c.signed == was.signed.decode())
        .values(size=now.size, signed=now.signed.decode(), cosigned=now.cosigned.decode())
    )
    if changed.rowcount != 1:
        raise StoreError(f"another process publishes {domain}")


def portion(connection: Connection, store: Store, domain: str, first: int, size: int) -> Portion:
    """Return what follows the first `size` leaves. In `work` of Store.run. Raises StoreNotGenuine."""
    head = begin(connection, domain, first)
    asked = positions.question(domain, [start := head.first + size])
    mark = positions.read(connection.execute(asked.statement, asked.values), store.is_mark)[0] or Mark()
    after = max(mark.high, mark.floor) + 1
    end = min(start + MOST, after)
    rows = dict[int, str]()
    for row in connection.execute(_ROWS, {"domain": domain, "begin": start, "end": end}).mappings():
        columns: Mapping[str, Any] = {str(name): value for name, value in row.items()}
        if not positions.is_genuine(store.vouch, dict(columns)):
            position = columns["position"]
            raise StoreNotGenuine(f"the state store is not genuine: the row of position {position} of {domain}")
        rows[columns["position"]] = columns["digest"]
    holes = [at for at in range(max(start, mark.floor + 1), end) if at not in rows]
    if holes and mark.has(holes[0]):
        raise StoreNotGenuine(f"the state store is not genuine: position {holes[0]} of {domain} was removed")
    digests = [rows.get(at) for at in range(start, holes[0] if holes else end)]
    return Portion(head, digests, holes, max(after - head.first, 0))


def removable(connection: Connection) -> dict[str, int]:
    """Return, by domain, up to where rows of `bound` may be removed: to the floor, but none that is not published."""
    waits = {name: first + size for name, first, size, *_ in connection.execute(select(PUBLISHED))}
    marks = positions.marks(connection)
    return {name: min(mark.floor, waits.get(name, mark.floor + 1) - 1) for name, mark in marks.items()}
