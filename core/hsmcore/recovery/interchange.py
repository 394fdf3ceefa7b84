"""The positions of a store as a file, to be taken to another one: in a move, or after a loss.

The file is JSON (docs/FLEET.md). An import only raises: floors go up, rows are added, and a position that has another
digest here keeps it and is listed. So a file that is old, or is imported twice, does no harm.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final

import orjson
from pydantic import BeforeValidator, ValidationError, field_validator, model_validator
from sqlalchemy import Connection, select

from hsmcore.base.payload import MOST_POSITION
from hsmcore.config.base import Model, Text, Whole, as_tuple, clash
from hsmcore.config.faults import faults_of
from hsmcore.errors import BadArgument
from hsmcore.state import Store, StoreError, positions
from hsmcore.state.mark import Mark
from hsmcore.state.positions import BoundRow
from hsmcore.state.schema import BOUND

MOST_BYTES: Final = 64 << 20
"""Most bytes of a file."""
MOST_ROWS: Final = 400_000
"""Most rows of a file: the highest positions of each domain, in equal parts."""
MOST_DOMAINS: Final = 1024
_GROUP: Final = 2000
_SHOWN: Final = 5
_REASON: Final = 512
Position = Annotated[int, Whole(0, MOST_POSITION)]
Below = Annotated[int, Whole(-1, MOST_POSITION)]
Digest = Annotated[str, Text(64, form=r"[0-9a-f]{64}", says="a SHA-256 in lower-case hexadecimal")]


class BoundPosition(Model):
    """One position, and the digest of the only payload that is signed there."""

    position: Position
    digest: Digest


class Domain(Model):
    """One chain of positions."""

    domain: Annotated[str, Text(256)]
    floor: Below
    """At and below it nothing is signed; -1: there is none."""
    high: Below
    """The highest position that was bound; -1: there is none."""
    reason: Annotated[str, Text(_REASON)] | None = None
    """Why the floor was set."""
    bound: Annotated[tuple[BoundPosition, ...], BeforeValidator(as_tuple)] = ()
    """In ascending order, above the floor."""

    @model_validator(mode="after")
    def _fits_together(self) -> Domain:
        last = self.floor
        for number, row in enumerate(self.bound):
            if row.position <= last:
                raise clash(f"bound[{number}] must stand above the floor and above the position before it")
            last = row.position
        if self.high > self.floor and self.high != last:
            raise clash("high must be the last position of bound, or at or below the floor")
        return self


class Interchange(Model):
    """The whole file."""

    hsmcore_fleet: Annotated[int, Whole(1, 1)]
    """The version of this form."""
    fleet: Annotated[str, Text(64)] | None = None
    """The fleet whose positions they are; none: a store of one host."""
    domains: Annotated[tuple[Domain, ...], BeforeValidator(as_tuple)]

    @field_validator("domains")
    @classmethod
    def _each_once(cls, value: tuple[Domain, ...]) -> tuple[Domain, ...]:
        if len({one.domain for one in value}) != len(value) or len(value) > MOST_DOMAINS:
            raise clash(f"must list each domain once, and at most {MOST_DOMAINS}")
        if sum(len(one.bound) for one in value) > MOST_ROWS:
            raise clash(f"must have {MOST_ROWS} positions at most")
        return value


@dataclass(slots=True)
class Imported:
    """The result of an import."""

    added: int = 0
    floors: dict[str, int] = field(default_factory=dict)
    """The floors that went up."""
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    """Positions that have another digest here, which they keep."""


def parse(text: bytes) -> Interchange:
    """Read a file. Raises BadArgument, which names each fault by its JSON path."""
    if len(text) > MOST_BYTES:
        raise BadArgument(f"the file has more than {MOST_BYTES} bytes")
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadArgument(f"the file is no JSON: {error}") from None
    known: dict[int, tuple[str, ...]] = {}
    try:
        return Interchange.model_validate(document, context=known)
    except ValidationError as error:
        faults = faults_of(error, document, "$", known)
    shown = "; ".join(f"{fault.path} {fault.problem}" for fault in faults[:_SHOWN])
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    raise BadArgument(f"the file is not what `hsmcore state export` writes: {shown}{more}")


def text_of(found: Interchange) -> bytes:
    """Return the file's text."""
    return orjson.dumps(found.model_dump(by_alias=True, exclude_none=True), option=orjson.OPT_INDENT_2) + b"\n"


async def export(store: Store, fleet: str | None) -> Interchange:
    """Return the positions of a store. Where a domain has more rows than a file may have, the file's floor is above the
    rows that are left out. Raises StoreError."""

    def work(connection: Connection) -> Interchange:
        marks = positions.marks(connection)
        if len(marks) > MOST_DOMAINS:
            raise StoreError(f"the store has more than {MOST_DOMAINS} domains")
        most = MOST_ROWS // max(len(marks), 1)
        domains = [_domain(connection, name, mark, most) for name, mark in sorted(marks.items())]
        return Interchange.model_validate({"hsmcoreFleet": 1, "fleet": fleet, "domains": domains})

    return await store.run(work)


def _domain(connection: Connection, name: str, mark: Mark, most: int) -> dict[str, Any]:
    here = (BOUND.c.domain == name) & (BOUND.c.position > mark.floor)
    newest = select(BOUND.c.position, BOUND.c.digest).where(here).order_by(BOUND.c.position.desc()).limit(most + 1)
    rows = [{"position": position, "digest": digest} for position, digest in connection.execute(newest)]
    floor, reason = mark.floor, "".join(c if c.isprintable() else " " for c in mark.reason)
    if len(rows) > most:
        floor, reason = rows.pop()["position"], "an export has no older positions"
    reason = reason.encode()[:_REASON].decode(errors="ignore")
    high = max(mark.high, rows[0]["position"]) if rows else mark.high
    return {"domain": name, "floor": floor, "high": high, "reason": reason or None, "bound": rows[::-1]}


async def import_(store: Store, found: Interchange) -> Imported:
    """Add the positions of a file to a store. The holder's binds wait for each part. Raises StoreError."""
    done, now = Imported(), time.time_ns()
    for domain in found.domains:
        await store.run(partial(_raise, domain=domain, floors=done.floors))
        rows = [BoundRow(domain.domain, one.position, one.digest, "import", now) for one in domain.bound]
        for begin in range(0, len(rows), _GROUP):
            work = partial(positions.put_back, vouch=store.vouch, rows=rows[begin : begin + _GROUP])
            added, conflicts = await store.run(work)
            done.added += added
            done.conflicts += [one.as_data() for one in conflicts]
    return done


def _raise(connection: Connection, *, domain: Domain, floors: dict[str, int]) -> None:
    reason = domain.reason or "an import"
    positions.keep_holders_out(connection)
    mark = positions.marks(connection, [domain.domain]).get(domain.domain, Mark())
    if domain.floor > mark.floor:
        positions.raise_floor(connection, domain.domain, domain.floor, reason)
        floors[domain.domain] = domain.floor
        mark.floor, mark.reason = domain.floor, reason
    if mark.high < domain.high <= mark.floor:  # its rows are gone, and it still says how far the fleet was
        mark.add(domain.high)
        positions.set_mark(connection, domain.domain, mark)


def require_fleet(found: Interchange, expected: str | None) -> None:
    """Raise BadArgument for a file of another fleet than the one that is expected."""
    if found.fleet is not None and found.fleet != expected:
        raise BadArgument(f"the file is of the fleet {found.fleet!r}, not of {expected!r}", hint="See --from.")
