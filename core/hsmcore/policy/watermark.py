"""One digest for a position: what is bound before it is signed, and the counters of the tripwire.

A position takes the digest that comes first, for ever: the same one may be signed again, another one never. Nothing is
reclaimed by age; only an operator's floor removes rows, and nothing is signed at or below it. The domain is the chain
of positions and not a key, so each key that signs in a domain obeys what the others were bound to.

All that wait are bound in one transaction, which is durable before the first of them is signed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from hsmcore.errors import BadArgument, DoubleSign, HsmError, PolicyRefused
from hsmcore.state import Store, StoreError, StoreNotGenuine
from hsmcore.state.schema import BOUND, SPENT, WATERMARK, replace_row
from hsmcore.state.store import Tables

MOST: Final = 256
"""Requests in one transaction."""
MOST_POSITION: Final = (1 << 63) - 1
WINDOW: Final = 1024
"""Positions behind the highest one of which the watermark knows whether they are bound."""
_MASK: Final = (1 << WINDOW) - 1
_FOREIGN: Final = "Find out who can write the state store; give it a seal (stateSecret)."
_MINUTE_NS: Final = 60_000_000_000


class Place(NamedTuple):
    """A payload's place in its chain. `digest`: SHA-256 of the whole payload, in hexadecimal."""

    domain: str
    position: int
    digest: str


class Charge(NamedTuple):
    """What a transaction adds to a sum that may reach `limit` within a minute."""

    name: str
    amount: int
    limit: int


Want = Place | Charge


@dataclass(slots=True)
class Mark:
    """A row of `watermark`."""

    floor: int = -1
    high: int = -1
    bits: int = 0
    reason: str = ""

    def knows(self, position: int) -> bool:
        """Return whether `bits` says if the position is bound."""
        return self.high - WINDOW < position

    def has(self, position: int) -> bool:
        """Return whether the position is bound, as far as `knows` says."""
        return self.high >= position and bool(self.bits >> (self.high - position) & 1)

    def add(self, position: int) -> None:
        """Note that the position is bound."""
        if position > self.high:
            step = position - self.high
            self.bits = (self.bits << step | 1) & _MASK if step < WINDOW else 1
            self.high = position
        elif self.knows(position):
            self.bits |= 1 << (self.high - position)


class Watermark(Tables):
    """Binds positions, and counts. Belongs to one event loop. `holder`: who binds, for those who come later."""

    def __init__(self, store: Store, holder: str) -> None:
        super().__init__(store)
        self._holder = holder
        self._waiting: list[tuple[Want, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self.bound = 0
        """Count of positions that were bound here."""

    def require(self, want: Want) -> asyncio.Future[None]:
        """Bind a position or add to a sum; it is durable when the future ends. Its errors: DoubleSign, PolicyRefused,
        StoreNotGenuine and StoreError. Abandoning the future does not take back what it asked for."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((want, future))
        if self._writing is None:
            self._writing = loop.create_task(self._write())
        return future

    async def _write(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._write_group(group)
        finally:
            self._writing = None

    async def _write_group(self, group: Sequence[tuple[Want, asyncio.Future[None]]]) -> None:
        wants, now = [want for want, _ in group], time.time_ns()
        outcomes: Sequence[Exception | bool]
        try:
            outcomes = await self._store.run(lambda connection: self._take_or_refuse(connection, wants, now))
        except HsmError as error:
            outcomes = [copy(error) for _ in group]
        except BaseException:
            for _, future in group:
                future.cancel()
            raise
        for outcome, (_, future) in zip(outcomes, group, strict=True):
            self.bound += outcome is True
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(None)

    def _take_or_refuse(self, connection: Connection, wants: Sequence[Want], now: int) -> list[Exception | bool]:
        try:
            return self._take(connection, wants, now)
        except (ValueError, TypeError, OverflowError):  # without a seal, a row may hold anything
            raise StoreError("rows about positions are not of hsmcore's making", hint=_FOREIGN) from None

    def _take(self, connection: Connection, wants: Sequence[Want], now: int) -> list[Exception | bool]:
        """Return for each one the reason to refuse it, or whether a row was added."""
        places = [want for want in wants if isinstance(want, Place)]
        names = {place.domain for place in places}
        marks = {name: Mark() for name in names} | _marks(connection, names)
        known = _bound(connection, places)
        sums = _sums(connection) if len(places) < len(wants) else {}
        added: list[dict[str, Any]] = []
        changed: set[str] = set()
        outcomes: list[Exception | bool] = []
        for want in wants:
            if isinstance(want, Charge):
                outcomes.append(_charge(sums, want, now // _MINUTE_NS) or False)
                changed.add(want.name)
                continue
            mark, row = marks[want.domain], known.get(want[:2])
            refusal = self._refusal(mark, row, want)
            outcomes.append(refusal or row is None)
            if refusal is None and row is None:
                columns = (*want, self._holder, now)
                values = dict(zip(_COLUMNS, (*columns, self._store.vouch(*columns)), strict=True))
                known[want[:2]] = values
                added.append(values)
                mark.add(want.position)
                changed.add(want.domain)
        if added:
            connection.execute(_BIND, added)
        for name in sorted(changed):
            if name in sums:
                minute, amount = sums[name]
                replace_row(connection, SPENT, name, minute=minute, amount=amount)
            else:
                _set_mark(connection, name, marks[name])
        return outcomes

    def _refusal(self, mark: Mark, row: dict[str, Any] | None, want: Place) -> Exception | None:
        where = f"position {want.position} of {want.domain}"
        if want.position <= mark.floor:
            return PolicyRefused(f"{where} is at or below the floor {mark.floor} ({mark.reason})")
        if row is not None:
            columns = list(row.values())
            mac = str(columns.pop())
            if (made := self._store.vouch(*columns)) and not compare_digest(mac.encode(), made.encode()):
                return StoreNotGenuine(f"the state store is not genuine: the row of {where} was changed")
            return None if row["digest"] == want.digest else _double(row)
        if mark.has(want.position):
            return StoreNotGenuine(f"the state store is not genuine: the row of {where} was removed")
        if not mark.knows(want.position) and self._store.vouch():
            return PolicyRefused(
                f"{where} is more than {WINDOW} behind the newest, {mark.high}, and was not signed before",
                hint="Nobody can tell any more whether its row was removed from the state store.",
            )
        return None

    async def look(self, place: Place) -> tuple[dict[str, Any] | None, Exception | None]:
        """Return the row of a place, and why `require` would refuse it now; None: it would not. Binds nothing."""

        def work(connection: Connection) -> tuple[dict[str, Any] | None, Exception | None]:
            mark = _marks(connection, {place.domain}).get(place.domain, Mark())
            row = _bound(connection, [place]).get(place[:2])
            return row, self._refusal(mark, row, place)

        return await self._store.run(work)

    async def raise_floor(self, domain: str, floor: int, reason: str) -> int:
        """Sign nothing at or below `floor` from now on, and remove the rows there. Returns the number of rows. Raises
        BadArgument for a floor below the present one."""

        def work(connection: Connection) -> int:
            mark = _marks(connection, {domain}).get(domain, Mark())
            if floor <= mark.floor:
                raise BadArgument(f"the floor of {domain} is {mark.floor} already", hint="A floor only rises.")
            _set_mark(connection, domain, Mark(floor, mark.high, mark.bits, reason))
            return connection.execute(delete(BOUND).where(BOUND.c.domain == domain, BOUND.c.position <= floor)).rowcount

        return await self._store.run(work)

    async def close(self) -> None:
        """Wait until everything that was asked for is written."""
        if self._writing is not None:
            await asyncio.wait({self._writing})


async def marks_of(store: Store) -> dict[str, Mark]:
    """Return the watermark of each domain that has one."""
    return await store.run(lambda connection: _marks(connection, None))


# Made once: to make a statement takes SQLAlchemy longer than SQLite takes to do it.
_COLUMNS: Final = tuple(BOUND.c.keys())
_ALL_MARKS: Final = select(WATERMARK)
_MARKS: Final = _ALL_MARKS.where(WATERMARK.c.name.in_(bindparam("names", expanding=True)))
_CHANGE: Final = update(WATERMARK).where(WATERMARK.c.name == bindparam("domain"))
_NEW_MARK: Final = insert(WATERMARK)
_BOUND: Final = select(BOUND).where(
    BOUND.c.domain == bindparam("domain"), BOUND.c.position.in_(bindparam("positions", expanding=True))
)
_BIND: Final = insert(BOUND)
_SUMS: Final = select(SPENT)


def _marks(connection: Connection, names: set[str] | None) -> dict[str, Mark]:
    rows = connection.execute(_ALL_MARKS) if names is None else connection.execute(_MARKS, {"names": list(names)})
    return {name: Mark(floor, high, int(bits, 16), reason) for name, floor, high, bits, reason in rows}


def _set_mark(connection: Connection, domain: str, mark: Mark) -> None:
    values = {"floor": mark.floor, "high": mark.high, "bits": f"{mark.bits:x}", "reason": mark.reason}
    if connection.execute(_CHANGE, {"domain": domain} | values).rowcount == 0:
        connection.execute(_NEW_MARK, {"name": domain} | values)


def _bound(connection: Connection, places: Sequence[Place]) -> dict[tuple[str, int], dict[str, Any]]:
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for domain in {place.domain for place in places}:
        positions = [place.position for place in places if place.domain == domain]
        for row in connection.execute(_BOUND, {"domain": domain, "positions": positions}):
            found[domain, row[1]] = dict(zip(_COLUMNS, row, strict=True))
    return found


def _sums(connection: Connection) -> dict[str, tuple[int, int]]:
    return {row.name: (row.minute, row.amount) for row in connection.execute(_SUMS)}


def _charge(sums: dict[str, tuple[int, int]], want: Charge, minute: int) -> PolicyRefused | None:
    began, amount = sums.get(want.name, (minute, 0))
    if minute > began:  # a clock that was set back begins no minute
        began, amount = minute, 0
    if amount + want.amount > want.limit:
        sums[want.name] = (began, amount)
        return PolicyRefused(f"{want.name}: {amount} of {want.limit} a minute are used up, and this is {want.amount}")
    sums[want.name] = (began, amount + want.amount)
    return None


def _double(row: dict[str, Any]) -> DoubleSign:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["bound_ns"] / 1e9))
    where = f"position {row['position']} of {row['domain']}"
    error = DoubleSign(f"{where} was bound to another payload, {row['digest']}, by {row['holder']} at {when}")
    error.domain, error.position, error.digest = row["domain"], row["position"], bytes.fromhex(row["digest"])
    error.holder, error.bound_ns = row["holder"], row["bound_ns"]
    return error
