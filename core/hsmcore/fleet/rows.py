"""The rows of a fleet in its database: who holds the epoch, and which hosts there are. In `work` of Store.run.

A payload with a position is bound in a transaction that has locked the row of the epoch to share it; a claim changes
that row. So each bind is before a claim or after it, never across.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, exists, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hsmcore.fleet.machine import EpochRow
from hsmcore.recovery.incident import count, word
from hsmcore.state.exchange import Question
from hsmcore.state.schema import FLEET, FLEET_HOST, WATERMARK
from hsmcore.state.store import now_ns

CLOSED: Final = "closed"
"""State of a host whose process ended in order."""

_unanswered: Final = (
    exists().where(FLEET_HOST.c.retired == 0, FLEET_HOST.c.incident < FLEET.c.incident).correlate(FLEET)
)
# Made once: to make a statement takes SQLAlchemy longer than the database takes to do it.
_FIELDS: Final = (
    FLEET.c.epoch, FLEET.c.holder, FLEET.c.host, FLEET.c.renewals, FLEET.c.released, FLEET.c.system, FLEET.c.timeline,
    FLEET.c.incident,
)  # fmt: skip
_LOOK: Final = select(*_FIELDS, _unanswered.label("open")).where(FLEET.c.name == bindparam("fleet"))
_SHARE: Final = _LOOK.with_for_update(read=True, of=FLEET)
_LOCK: Final = _LOOK.with_for_update(of=FLEET)
_MINE: Final = (
    (FLEET.c.name == bindparam("fleet"))
    & (FLEET.c.epoch == bindparam("mine"))
    & (FLEET.c.holder == bindparam("me"))
    & (FLEET.c.released == 0)
)
_RENEW: Final = update(FLEET).where(_MINE).values(renewals=FLEET.c.renewals + 1).returning(*_FIELDS, _unanswered)
_RELEASE: Final = update(FLEET).where(_MINE).values(released=1, reason=bindparam("why"))
_CLAIM: Final = update(FLEET).where(FLEET.c.name == bindparam("fleet"), FLEET.c.epoch == bindparam("seen"))
_HOST: Final = select(FLEET_HOST).where(FLEET_HOST.c.name == bindparam("own"))
_ALIVE: Final = update(FLEET_HOST).where(
    FLEET_HOST.c.name == bindparam("own"), FLEET_HOST.c.instance == bindparam("me")
)
_HIGHS: Final = select(WATERMARK.c.name, WATERMARK.c.high)


def _one(connection: Connection, query: Select[Any], fleet: str) -> EpochRow:
    found = connection.execute(query, {"fleet": fleet}).one_or_none()
    return EpochRow() if found is None else _row(*found)


def _row(
    epoch: Any, holder: Any, host: Any, renewals: Any, released: Any, system: Any, timeline: Any, number: Any, new: Any
) -> EpochRow:
    server = word(system), word(timeline)
    incident = count(number) if new else 0
    return EpochRow(count(epoch), word(holder), word(host), count(renewals), bool(count(released)), incident, server)


def look(connection: Connection, fleet: str) -> EpochRow:
    """Read the row of the epoch; waits for nobody."""
    return _one(connection, _LOOK, fleet)


def looking(fleet: str) -> Question:
    """Return what reads the row, as `look`."""
    return Question(_LOOK, {"fleet": fleet})


def sharing(fleet: str) -> Question:
    """Return what reads the row, and keeps it as it is until the end of the transaction. Such a transaction writes, so
    that its end waits for the synchronous standby."""
    return Question(_SHARE, {"fleet": fleet})


def shared(found: Sequence[Sequence[Any]]) -> EpochRow:
    """Return the row that `looking` or `sharing` has found."""
    return _row(*found[0]) if found else EpochRow()


def lock(connection: Connection, fleet: str) -> EpochRow:
    """Read the row to change it."""
    return _one(connection, _LOCK, fleet)


def claim(
    connection: Connection, fleet: str, seen: EpochRow, instance: str, host: str, reason: str, server: tuple[str, str]
) -> EpochRow:
    """Take the epoch after the one that was locked. `server`: system and timeline of the database."""
    values = {"epoch": seen.epoch + 1, "holder": instance, "host": host, "claimed_ns": now_ns(connection)}
    rest = {"renewals": 0, "released": 0, "reason": reason, "system": server[0], "timeline": server[1]}
    changed = connection.execute(_CLAIM.values(**values, **rest), {"fleet": fleet, "seen": seen.epoch})
    if changed.rowcount != 1:
        return look(connection, fleet)
    return EpochRow(seen.epoch + 1, instance, host, 0, False, seen.incident, server)


def renew(connection: Connection, fleet: str, epoch: int, instance: str) -> EpochRow | None:
    """Show that the holder lives; confirmed when the synchronous standby has it, so that a primary that was cut off
    confirms none. Returns the row; None: it is not the holder."""
    found = connection.execute(_RENEW, {"fleet": fleet, "mine": epoch, "me": instance}).one_or_none()
    return None if found is None else _row(*found)


def release(connection: Connection, fleet: str, epoch: int, instance: str, reason: str) -> bool:
    """Give the epoch up. Returns whether the process held it."""
    values = {"fleet": fleet, "mine": epoch, "me": instance, "why": reason}
    return connection.execute(_RELEASE, values).rowcount == 1


def highs(connection: Connection) -> dict[str, int]:
    """Return the highest position of each domain that is bound."""
    return {str(name): int(high) for name, high in connection.execute(_HIGHS)}


def prepare(connection: Connection, fleet: str) -> None:
    """Make the row of the epoch, if it is missing."""
    first = {"epoch": 0, "holder": "", "host": "", "claimed_ns": 0, "renewals": 0, "released": 1}
    rest = {"timeline": "", "system": "", "incident": 0, "reason": ""}
    _add(connection, FLEET, {"name": fleet} | first | rest)


def host_life(connection: Connection, host: str) -> tuple[str, int] | None:
    """Return who speaks for a host and when it did last, by the database's clock; None: nobody does."""
    row = connection.execute(_HOST, {"own": host}).one_or_none()
    return None if row is None or row.state == CLOSED else (str(row.instance), int(row.seen_ns))


def enter(connection: Connection, fleet: str, host: str, instance: str) -> EpochRow:
    """Let a process speak for a host. A host that is new has nothing to say to incidents that are answered. Returns the
    row of the epoch."""
    row, now = lock(connection, fleet), now_ns(connection)
    past = 0 if row.incident else connection.execute(select(FLEET.c.incident).where(FLEET.c.name == fleet)).scalar_one()
    values = {"instance": instance, "seen_ns": now, "state": "follower"}
    _add(connection, FLEET_HOST, {"name": host, "incident": past, "retired": 0, "note": "", **values})
    connection.execute(update(FLEET_HOST).where(FLEET_HOST.c.name == host).values(**values))
    return row


def speak(connection: Connection, host: str, instance: str, state: str) -> bool:
    """Write down the state of a host; also of one that the database has lost, which then has each incident to answer.
    Returns False if another process speaks for it now."""
    values = {"seen_ns": now_ns(connection), "state": state}
    if connection.execute(_ALIVE.values(**values), {"own": host, "me": instance}).rowcount == 1:
        return True
    # Without a process: it was lost, and is there again by an incident that this one began.
    lost = update(FLEET_HOST).where(FLEET_HOST.c.name == host, FLEET_HOST.c.instance == "")
    if connection.execute(lost.values(instance=instance, **values)).rowcount == 1:
        return True
    first = {"name": host, "instance": instance, "incident": 0, "retired": 0, "note": ""}
    _add(connection, FLEET_HOST, first | values)
    return connection.execute(_ALIVE.values(**values), {"own": host, "me": instance}).rowcount == 1


def hosts(connection: Connection) -> list[dict[str, Any]]:
    """Return the hosts of the fleet."""
    found = connection.execute(select(FLEET_HOST).order_by(FLEET_HOST.c.name)).mappings()
    return [{str(name): value for name, value in row.items()} for row in found]


def _add(connection: Connection, table: Any, values: dict[str, Any]) -> None:
    """Add a row unless its key is there."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(table).values(**values).on_conflict_do_nothing())
