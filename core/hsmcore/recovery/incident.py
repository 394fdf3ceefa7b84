"""An incident: the database has lost what was bound, or may have. Until each host has answered it with all that its
audit log has, no payload with a position is signed on any host.

It is opened by raising `fleet.incident`, which waits for the binds that are under way and is seen by each later one. It
is closed by the last answer: an answer and the rows that it puts back are one transaction, so whatever sees the answer
sees the rows. The identity of the database stands in the same row: who connects to another one, such as a standby that
was promoted, opens an incident first, since which commits came over is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update

from hsmcore.base.payload import MOST_POSITION
from hsmcore.errors import BadArgument, FleetBehind
from hsmcore.state import StoreError, positions
from hsmcore.state.schema import FLEET, FLEET_FLOOR, FLEET_HOST

MOST: Final = (1 << 62) - 1
"""The largest count that is believed."""
_FOREIGN: Final = "Find out who can write the fleet's database."
_NOTE: Final = 300
"""Characters of a reason that are kept."""


@dataclass(frozen=True, slots=True)
class Standing:
    """`number`: of the last incident, 0 before the first one. `waiting`: the hosts that have not answered it."""

    number: int
    waiting: tuple[str, ...]
    answered: int
    """The last one that the host that asks has answered."""
    system: str
    timeline: str
    held: bool
    """Whether an operator has nothing bound for now (hold.py): then another server alone is no incident."""

    @property
    def open(self) -> bool:
        """Whether payloads with a position are refused."""
        return bool(self.waiting)


def not_ours() -> StoreError:
    """Return the error for rows that none of ours has written."""
    return StoreError("rows about the fleet are not of hsmcore's making", hint=_FOREIGN)


def count(value: Any, most: int = MOST) -> int:
    """Return a number of the database. Raises StoreError for what none of ours has written."""
    if type(value) is not int or not 0 <= value <= most:
        raise not_ours()
    return value


def word(value: Any) -> str:
    """Return a text of the database. Raises StoreError for any other type."""
    if type(value) is not str:
        raise not_ours()
    return value


def fleet_row(connection: Connection, name: str) -> Mapping[str, Any]:
    """Return the fleet's row, locked until the transaction ends; make it if there is none. Takes the store's turn."""
    query = select(FLEET).where(FLEET.c.name == name).with_for_update()
    row = connection.execute(query).mappings().first()
    if row is None:
        nothing = {"holder": "", "host": "", "timeline": "", "system": "", "reason": ""}
        zero = {"epoch": 0, "claimed_ns": 0, "renewals": 0, "incident": 0, "released": 1}
        connection.execute(insert(FLEET).values(name=name, **nothing, **zero))
        row = connection.execute(query).mappings().one()
    found = {str(column): value for column, value in row.items()}
    for column in ("epoch", "renewals", "incident", "released"):
        count(found[column])
    return found


def standing(connection: Connection, name: str, host: str = "") -> Standing:
    """Return how the incident stands, with the fleet's row locked."""
    row = fleet_row(connection, name)
    number = count(row["incident"])
    hosts = [(word(one.name), count(one.incident), count(one.retired)) for one in connection.execute(_HOSTS)]
    waiting = tuple(sorted(one for one, answered, retired in hosts if not retired and answered < number))
    own = max((answered for one, answered, _ in hosts if one == host), default=0)
    return Standing(number, waiting, own, word(row["system"]), word(row["timeline"]), row["held"] is not None)


_HOSTS: Final = select(FLEET_HOST)


def require_same(settled_on: tuple[str, str], identity: tuple[str, str]) -> None:
    """Raise FleetBehind where the database is another one than the fleet was settled on."""
    if settled_on != identity:
        before, now = settled_on[1] or "none", identity[1] or "none"
        raise FleetBehind(f"the fleet's database is another one: its timeline is {now}, and was {before}")


def begin(
    connection: Connection, name: str, host: str, why: str, identity: tuple[str, str], *, moved: bool = False
) -> int:
    """Open an incident, unless one is open that this host has not answered. Returns its number. `moved`: only since
    another server answers, which a mark (hold.py) may answer for. Anything else disproves the mark."""
    now = standing(connection, name, host)
    number = now.number
    changed: dict[str, Any] = {} if moved else {"mark": None}
    if not (now.open and host in now.waiting and (now.system, now.timeline) == identity):
        number = count(now.number + 1)
        changed |= {"incident": number, "system": identity[0], "timeline": identity[1]}
    if changed:
        connection.execute(update(FLEET).where(FLEET.c.name == name).values(**changed))
    _set_host(connection, host, {"note": why[:_NOTE], "retired": 0})
    return number


def settle(connection: Connection, name: str, identity: tuple[str, str]) -> None:
    """Note the database that a new fleet begins on."""
    connection.execute(update(FLEET).where(FLEET.c.name == name).values(system=identity[0], timeline=identity[1]))


def answer(connection: Connection, name: str, host: str, instance: str, number: int, now_ns: int) -> bool:
    """Note that a host has put back all that it knows of. Returns whether that closed the incident; a host that was
    retired belongs to the fleet again. Raises BadArgument if another incident was opened in between."""
    before = standing(connection, name, host)
    if before.number != number:
        raise BadArgument(f"incident {before.number} was opened while {number} was being answered")
    _set_host(connection, host, {"incident": number, "retired": 0}, instance=instance, seen_ns=now_ns)
    return before.open and not standing(connection, name, host).open


def _set_host(connection: Connection, host: str, changed: Mapping[str, Any], **new: Any) -> None:
    change = update(FLEET_HOST).where(FLEET_HOST.c.name == host).values(**changed)
    if connection.execute(change).rowcount == 0:
        row = {"instance": "", "seen_ns": 0, "state": "follower", "incident": 0, "retired": 0, "note": ""}
        connection.execute(insert(FLEET_HOST).values(name=host, **(row | new | dict(changed))))


def highest(connection: Connection) -> dict[str, int]:
    """Return the highest position of each domain that the database knows of: bound, or noted by a host."""
    found = {name: mark.high for name, mark in positions.marks(connection).items()}
    for row in connection.execute(select(FLEET_FLOOR.c.domain, FLEET_FLOOR.c.position)):
        at = count(row.position, MOST_POSITION)
        found[word(row.domain)] = max(found.get(row.domain, -1), at)
    return found


def reconcile(
    connection: Connection, name: str, reason: str, at_least: Iterable[tuple[str, int]] = ()
) -> tuple[list[str], dict[str, int]]:
    """Close an incident without the hosts that have not answered: they are retired, and nothing is signed any more at
    or below the highest position that is known, or that the operator names. Returns the hosts and the floors. Raises
    BadArgument if no incident is open."""
    now = standing(connection, name)
    if not now.open:
        raise BadArgument("no incident of the fleet is open", hint="See `hsmcore fleet status`.")
    floors = highest(connection)
    for domain, position in at_least:
        floors[domain] = max(floors.get(domain, -1), position)
    for domain, position in sorted(floors.items()):
        positions.raise_floor(connection, domain, position, reason)
    gone = {"retired": 1, "note": reason[:_NOTE]}
    connection.execute(update(FLEET_HOST).where(FLEET_HOST.c.name.in_(now.waiting)).values(**gone))
    return list(now.waiting), {domain: position for domain, position in floors.items() if position >= 0}
