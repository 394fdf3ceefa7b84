"""The positions of payloads that have one: what is bound to them, and up to where nothing is signed any more.

The rules by which a position is bound are manager/policy/watermark.py's. This file has the rules for all writers of
these tables: rows are only added, and floors only rise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Text, bindparam, case, delete, func, insert, literal, or_, select, union_all, update
from sqlalchemy.sql.selectable import CompoundSelect

from hsmcore.base.receipt import Unfinished
from hsmcore.errors import HsmError
from hsmcore.state.errors import StoreError, StoreNotGenuine
from hsmcore.state.exchange import Change, Question, answered
from hsmcore.state.mark import Mark
from hsmcore.state.schema import BOUND, FLEET, PORTION, WATERMARK

_FOREIGN: Final = "Find out who can write the state store; give it a seal (stateSecret)."
_GROUP: Final = 500
"""Positions that one statement asks for: SQLite takes so many parameters at least."""


class BoundRow(NamedTuple):
    """A row of `bound`, without its MAC."""

    domain: str
    position: int
    digest: str
    holder: str
    bound_ns: int


class Conflict(NamedTuple):
    """A row that is not added, and what its position is bound to."""

    row: BoundRow
    bound: str
    holder: str

    def as_data(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        domain, position, digest = self.row[:3]
        return {"domain": domain, "position": position, "digest": digest, "bound": self.bound, "holder": self.holder}


# Made once: to make a statement takes SQLAlchemy longer than SQLite takes to do it.
COLUMNS: Final = tuple(BOUND.c.keys())
BIND: Final = insert(BOUND)
_OF_MARK: Final = "floor", "high", "bits", "reason"
_ALL_MARKS: Final = select(*WATERMARK.c["name", "floor", "high", "bits", "reason"])
_MARKS: Final = _ALL_MARKS.where(WATERMARK.c.name.in_(bindparam("names", expanding=True))).order_by(WATERMARK.c.name)
_CHANGE: Final = (
    update(WATERMARK)
    .where(
        # A bind whose answer was lost may be committed while this transaction waits for its lock.
        WATERMARK.c.name == bindparam("domain"),
        *(WATERMARK.c[name] == bindparam(f"was_{name}") for name in _OF_MARK),
        or_(bindparam("was_mac", type_=Text) == "", WATERMARK.c.mac == bindparam("was_mac", type_=Text)),
    )
    .execution_options(hot=True)
)  # a bind leaves the floor, and its reason, as they are
_NEW_MARK: Final = insert(WATERMARK)
_BOUND: Final = select(BOUND).where(
    BOUND.c.domain == bindparam("domain"), BOUND.c.position.in_(bindparam("positions", expanding=True))
)
_HERE: Final = BOUND.c.domain == bindparam("domain")
MOST_MESSAGE: Final = 65_536
"""Bytes of a message that is kept."""
_NEWEST: Final = (
    select(BOUND, WATERMARK.c.floor, case((func.length(WATERMARK.c.message) <= 2 * MOST_MESSAGE, WATERMARK.c.message)))
    .join(WATERMARK, (WATERMARK.c.name == BOUND.c.domain) & (WATERMARK.c.high == BOUND.c.position))
    .where(_HERE)
)
_LAST: Final = select(func.max(BOUND.c.position)).where(_HERE, BOUND.c.position <= bindparam("most"))
_STEPS: Final = 16
"""A floor that rises by itself does so in so many steps for what is kept: each is a record of the audit log."""
_BEHIND: Final = _HERE & (BOUND.c.position > bindparam("begin")) & (BOUND.c.position <= bindparam("floor"))
_PORTION: Final = select(BOUND.c.position).where(_BEHIND).order_by(BOUND.c.position).limit(PORTION).subquery()
_PORTION_ENDS: Final = select(func.max(_PORTION.c.position))
_REMOVE: Final = delete(BOUND).where(_BEHIND)
_KEEP_HOLDERS_OUT: Final = select(FLEET.c.epoch).with_for_update()
"""There is a row in a fleet only."""
_AS_ROW: Final = select(
    *WATERMARK.c["name", "floor", "bits", "reason", "high"], func.coalesce(WATERMARK.c.mac, ""), literal(1)
).where(WATERMARK.c.name == bindparam("domain"))
"""A mark in the form of a row of `bound`, and a 1 behind it."""


@contextmanager
def of_our_making(what: str) -> Iterator[None]:
    """Raise StoreError for rows that none of ours has written: without a seal, a row may hold anything."""
    try:
        yield
    except HsmError:
        raise
    except (ValueError, TypeError, OverflowError):
        raise StoreError(f"rows about {what} are not of hsmcore's making", hint=_FOREIGN) from None


def is_genuine(vouch: Callable[..., str], row: dict[str, Any]) -> bool:
    """Return whether a row of `bound`, as columns by name, is as it was written. `vouch`: Store.vouch."""
    *columns, mac = row.values()
    made = vouch(*columns)
    return not made or compare_digest(str(mac).encode(), made.encode())


def marks(connection: Connection, names: Iterable[str] | None = None) -> dict[str, Mark]:
    """Return the watermarks of these domains, of all without `names`. Raises ValueError for a foreign row."""
    rows = connection.execute(_ALL_MARKS) if names is None else connection.execute(_MARKS, {"names": list(names)})
    return {name: Mark(int(floor), int(high), int(bits, 16), str(reason)) for name, floor, high, bits, reason in rows}


def question(domain: str, places: Sequence[int]) -> Question:
    """Return what asks for the watermark of a domain and for the rows of a few of its positions; `read` understands the
    answer."""
    number = 1 << (len(places) - 1).bit_length()  # a few statements for all numbers of positions
    filled = [*places, *[places[0]] * (number - len(places))]
    return Question(_both(number), {"domain": domain, **{f"at_{at}": value for at, value in enumerate(filled)}})


@cache
def _both(number: int) -> CompoundSelect[Any]:
    asked = BOUND.c.position.in_([bindparam(f"at_{at}") for at in range(number)])
    rows = select(BOUND, literal(0)).where(BOUND.c.domain == bindparam("domain"), asked)
    return union_all(rows, _AS_ROW)


def read(
    rows: Iterable[Sequence[Any]], is_mark: Callable[..., bool] = lambda *_: True
) -> tuple[Mark | None, dict[int, dict[str, Any]]]:
    """Return the watermark of a domain, None if it has none yet, and the rows of the positions that `question` asked
    for. `is_mark`: Store.is_mark. Raises StoreNotGenuine."""
    mark, found = None, dict[int, dict[str, Any]]()
    for *row, of_mark in rows:
        if of_mark:
            name, floor, bits, reason, high, mac = row
            if not is_mark(name, floor, high, bits, reason, mac):
                raise StoreNotGenuine(f"the state store is not genuine: the watermark of {name} was changed")
            mark = Mark(floor, high, int(bits, 16), reason)
        else:
            found[row[1]] = dict(zip(COLUMNS, row, strict=True))
    return mark, found


def keep_holders_out(connection: Connection) -> None:
    """Wait for a transaction that binds positions without the row lock, and let none begin until this one ends: before
    watermarks are read to be changed."""
    connection.execute(_KEEP_HOLDERS_OUT)


def set_mark(connection: Connection, domain: str, mark: Mark, message: str | None = None) -> None:
    """Write the watermark of a domain. `message`: as `change_of`."""
    was = marks(connection, [domain]).get(domain)
    answered(connection, [change_of(domain, mark, was, message=message)])


def change_of(
    domain: str, mark: Mark, was: Mark | None, *, vouch: Callable[..., str] = lambda *_: "", message: str | None = None
) -> Change:
    """Return the change that writes the watermark of a domain, if its row is what it `was`; None: there was none.
    `message`: what was bound to the highest position, in hexadecimal, "" if it is not kept; without it, the former one
    stays. `vouch`: Store.mark; in `work` of Store.run the seal does it."""
    values = _columns(mark)
    if mac := vouch(domain, *values.values()):
        values["mac"] = mac
    if message is not None:
        values["message"] = message
    if was is None:
        return Change(_NEW_MARK, [{"name": domain, **values}])
    before = _columns(was)
    before["mac"] = vouch(domain, *before.values())
    seen = {f"was_{name}": value for name, value in before.items()}
    return Change(_CHANGE, [{"domain": domain, **seen, **values}], required=True)


def _columns(mark: Mark) -> dict[str, Any]:
    return dict(zip(_OF_MARK, (mark.floor, mark.high, f"{mark.bits:x}", mark.reason), strict=True))


def bound_of(connection: Connection, rows: Iterable[BoundRow]) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what is bound to the positions of these rows, as columns by name, by domain and position."""
    places: dict[str, list[int]] = {}
    for wanted in rows:
        places.setdefault(wanted.domain, []).append(wanted.position)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for domain, positions in places.items():
        for begin in range(0, len(positions), _GROUP):
            asked = {"domain": domain, "positions": positions[begin : begin + _GROUP]}
            for row in connection.execute(_BOUND, asked):
                found[domain, row[1]] = dict(zip(COLUMNS, row, strict=True))
    return found


def newest(connection: Connection, domain: str, vouch: Callable[..., str]) -> Unfinished | None:
    """Return what is bound to the highest position of a domain; None: nothing, or the floor lies there. The message is
    the one of that digest, or None. `vouch`: Store.vouch. Raises StoreNotGenuine."""
    found = connection.execute(_NEWEST, {"domain": domain}).first()
    if found is None:
        return None
    *row, floor, text = found
    bound = dict(zip(COLUMNS, row, strict=True))
    if not is_genuine(vouch, bound):
        raise StoreNotGenuine(f"the state store is not genuine: the row of position {row[1]} of {domain} was changed")
    if row[1] <= floor:
        return None
    digest, message = bytes.fromhex(bound["digest"]), None
    with suppress(ValueError):
        message = bytes.fromhex(text or "")
    kept = message is not None and sha256(message).digest() == digest
    return Unfinished(domain.rpartition("/")[2], row[1], digest, message if kept else None)


def raise_floor(connection: Connection, domain: str, floor: int, reason: str) -> int:
    """Have nothing signed at or below a floor. A floor that is not above the present one, which is returned, changes
    nothing. The rows there mean nothing any more: `Removal` takes them away afterwards, since a bind waits for
    this transaction."""
    keep_holders_out(connection)
    mark = marks(connection, [domain]).get(domain, Mark())
    if floor > mark.floor:
        set_mark(connection, domain, Mark(floor, mark.high, mark.bits, reason))
    return mark.floor


def let_go(connection: Connection, domain: str, kept: int, reason: str) -> int | None:
    """Raise the floor to the last position that was bound `kept` behind the highest one or further. Returns the floor;
    None: that is not worth a step. Never to one that was not bound: if the highest one is a mistake, the chain goes on
    from where it is."""
    keep_holders_out(connection)
    mark = marks(connection, [domain]).get(domain, Mark())
    last = connection.execute(_LAST, {"domain": domain, "most": mark.high - kept}).scalar()
    if last is None or last - mark.floor < max(kept // _STEPS, 1):
        return None
    raise_floor(connection, domain, last, reason)
    return int(last)


def may_remove(connection: Connection) -> bool:
    """Return whether this process may take rows of `bound` away: the role of a fleet's signer may lack that right. Of a
    server."""
    return bool(connection.execute(select(func.has_table_privilege(BOUND.name, "DELETE"))).scalar())


class Removal:
    """Removes the rows at or below a floor that holds already, a portion with each call, which returns how many; a
    separate transaction, which takes no row lock: nothing reads these rows. It goes on where it was: a server keeps
    removed rows while an older transaction, such as a backup, may read them, and would go past all of them again."""

    def __init__(self, domain: str, floor: int) -> None:
        self._domain, self._floor, self._begin = domain, floor, -1

    def __call__(self, connection: Connection) -> int:
        here = {"domain": self._domain, "begin": self._begin}
        last = connection.execute(_PORTION_ENDS, here | {"floor": self._floor}).scalar()
        if last is None:
            return 0
        self._begin = int(last)
        return connection.execute(_REMOVE, here | {"floor": last}).rowcount


def put_back(connection: Connection, vouch: Callable[..., str], rows: Iterable[BoundRow]) -> tuple[int, list[Conflict]]:
    """Add rows that are missing above the floors. Returns how many, and the rows that another digest keeps out. An
    existing row is never changed; the watermark is, if it went back behind one. `vouch`: Store.vouch."""
    wanted: dict[tuple[str, int], BoundRow] = {}
    conflicts: list[Conflict] = []
    for row in rows:
        first = wanted.setdefault((row.domain, row.position), row)
        if first.digest != row.digest:
            conflicts.append(Conflict(row, first.digest, first.holder))
    keep_holders_out(connection)
    known = marks(connection, {domain for domain, _ in wanted})
    above = [row for row in sorted(wanted.values()) if row.position > known.setdefault(row.domain, Mark()).floor]
    there = bound_of(connection, above)
    added, changed = list[dict[str, Any]](), set[str]()
    for row in above:
        mark, found = known[row.domain], there.get((row.domain, row.position))
        if found is None:
            added.append(dict(zip(COLUMNS, (*row, vouch(*row)), strict=True)))
        elif found["digest"] != row.digest:
            conflicts.append(Conflict(row, str(found["digest"]), str(found["holder"])))
        if found is None or row.position > mark.high:
            mark.add(row.position)
            changed.add(row.domain)
    for domain in sorted(changed):
        set_mark(connection, domain, known[domain], message="")
    if added:
        connection.execute(BIND, added)
    return len(added), conflicts
