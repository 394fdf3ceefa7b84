"""The rows of a fleet in its database: who holds the epoch, and which hosts there are. For Store.exchange, and the
entry of a host for Store.run.

A payload with a position is bound in a transaction that has locked the row of the epoch to share it; a claim changes
that row. So each bind is before a claim or after it, never across.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, exists, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hsmcore.fleet.machine import EpochRow
from hsmcore.recovery.incident import count, word
from hsmcore.state.database import NOW, now_ns
from hsmcore.state.exchange import Answers, Change, Question
from hsmcore.state.schema import FLEET, FLEET_HOST, WATERMARK

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
_RENEW: Final = update(FLEET).where(_MINE).values(renewals=FLEET.c.renewals + 1)
_RELEASE: Final = update(FLEET).where(_MINE).values(released=1, reason=bindparam("why"))
_CLAIM: Final = (
    update(FLEET)
    .where(FLEET.c.name == bindparam("fleet"), FLEET.c.epoch == bindparam("seen"))
    .values(claimed_ns=NOW, renewals=0, released=0)
)
_HOST: Final = select(FLEET_HOST).where(FLEET_HOST.c.name == bindparam("own"))
_ALIVE: Final = (
    update(FLEET_HOST)
    .where(FLEET_HOST.c.name == bindparam("own"), FLEET_HOST.c.instance == bindparam("before"))
    .values(seen_ns=NOW)
)
_NEW_HOST: Final = insert(FLEET_HOST).values(seen_ns=NOW, incident=0, retired=0, note="")
HIGHS: Final = Question(select(WATERMARK.c.name, WATERMARK.c.high))
"""The highest position of each domain that is bound."""


def looking(fleet: str) -> Question:
    """Return what reads the row of the epoch; waits for nobody."""
    return Question(_LOOK, {"fleet": fleet})


def sharing(fleet: str) -> Question:
    """Return what reads the row, and keeps it as it is until the end of the transaction. Such a transaction writes, so
    that its end waits for the synchronous standby."""
    return Question(_SHARE, {"fleet": fleet})


def locking(fleet: str) -> Question:
    """Return what reads the row to change it."""
    return Question(_LOCK, {"fleet": fleet})


def shared(found: Sequence[Sequence[Any]]) -> EpochRow:
    """Return the row that `looking`, `sharing` or `locking` has found."""
    if not found:
        return EpochRow()
    epoch, holder, host, renewals, released, system, timeline, number, is_open = found[0]
    server = word(system), word(timeline)
    incident = count(number) if is_open else 0
    return EpochRow(count(epoch), word(holder), word(host), count(renewals), bool(count(released)), incident, server)


def claim(
    fleet: str, seen: EpochRow, instance: str, host: str, reason: str, server: tuple[str, str]
) -> tuple[EpochRow, Change]:
    """Take the epoch after the one that was locked. `server`: system and timeline of the database. Returns the row as
    it is then."""
    row = EpochRow(seen.epoch + 1, instance, host, 0, False, seen.incident, server)
    values = {"epoch": row.epoch, "holder": instance, "host": host, "reason": reason}
    where = {"fleet": fleet, "seen": seen.epoch, "system": server[0], "timeline": server[1]}
    return row, Change(_CLAIM, [values | where], required=True)


def renew(fleet: str, row: EpochRow) -> tuple[EpochRow, Change]:
    """Show that the holder of a row that was locked lives; confirmed when the synchronous standby has it, so that a
    primary that was cut off confirms none. Returns the row as it is then."""
    values = {"fleet": fleet, "mine": row.epoch, "me": row.holder}
    return row._replace(renewals=row.renewals + 1), Change(_RENEW, [values], required=True)


def release(fleet: str, epoch: int, instance: str, reason: str) -> Change:
    """Give the epoch up, if the process holds it."""
    return Change(_RELEASE, [{"fleet": fleet, "mine": epoch, "me": instance, "why": reason}])


def of_host(host: str) -> Question:
    """Return what reads the row of a host."""
    return Question(_HOST, {"own": host})


def speak(answers: Answers, host: str, instance: str, state: str) -> tuple[bool, list[Change]]:
    """Write down the state of a host, if its row was asked for with `of_host`; also of one that the database has lost,
    which then has each incident to answer. Returns False if another process speaks for it now."""
    values = {"instance": instance, "state": state}
    for found in answers:
        if not found:
            return True, [Change(_NEW_HOST, [{"name": host, **values}])]
        before = word(found[0][1])
        # Without a process: it was lost, and is there again by an incident that this one began.
        mine = before in (instance, "")
        return mine, [Change(_ALIVE, [{"own": host, "before": before, **values}], required=True)] if mine else []
    return True, []


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
    row, now = shared(connection.execute(_LOCK, {"fleet": fleet}).all()), now_ns(connection)
    past = 0 if row.incident else connection.execute(select(FLEET.c.incident).where(FLEET.c.name == fleet)).scalar_one()
    values = {"instance": instance, "seen_ns": now, "state": "follower"}
    _add(connection, FLEET_HOST, {"name": host, "incident": past, "retired": 0, "note": "", **values})
    connection.execute(update(FLEET_HOST).where(FLEET_HOST.c.name == host).values(**values))
    return row


def _add(connection: Connection, table: Any, values: dict[str, Any]) -> None:
    """Add a row unless its key is there."""
    made = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(made(table).values(**values).on_conflict_do_nothing())
