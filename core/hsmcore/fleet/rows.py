"""The rows of a fleet in its database: who holds the epoch, and which hosts there are. For Store.exchange.

A payload with a position is bound in a transaction that has locked the row of the epoch to share it; a claim changes
that row. So each bind is before a claim or after it, never across.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Text, bindparam, case, exists, insert, select, update
from sqlalchemy.dialects import postgresql

from hsmcore.fleet.machine import EpochRow
from hsmcore.recovery.hold import CLOSED, new_mark
from hsmcore.recovery.incident import count, word
from hsmcore.state import Store
from hsmcore.state.database import NOW
from hsmcore.state.exchange import Answers, Change, Decide, Question
from hsmcore.state.schema import FLEET, FLEET_HOST, WATERMARK

_unanswered: Final = (
    exists().where(FLEET_HOST.c.retired == 0, FLEET_HOST.c.incident < FLEET.c.incident).correlate(FLEET)
)
# Made once: to make a statement takes SQLAlchemy longer than the database takes to do it.
_FIELDS: Final = (
    FLEET.c.epoch, FLEET.c.holder, FLEET.c.host, FLEET.c.renewals, FLEET.c.released, FLEET.c.system, FLEET.c.timeline,
    FLEET.c.incident, FLEET.c.held,
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
# A mark of a hold stays; none is written where positions may be lost already.
_same: Final = (FLEET.c.system == bindparam("on")) & (FLEET.c.timeline == bindparam("line"))
_mark: Final = case((FLEET.c.held.is_not(None), FLEET.c.mark), (~_unanswered & _same, bindparam("token", type_=Text)))
_RELEASE: Final = update(FLEET).where(_MINE).values(released=1, reason=bindparam("why"), mark=_mark)
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
_NEW_HOST: Final = insert(FLEET_HOST).values(seen_ns=NOW, retired=0, note="")
# Hosts that start at once on a new database all find no row, and one of them makes it.
_NEW_FLEET: Final = postgresql.insert(FLEET).on_conflict_do_nothing()
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
    epoch, holder, host, renewals, released, system, timeline, number, held, is_open = found[0]
    server = word(system), word(timeline)
    incident = count(number) if is_open else 0
    known = EpochRow(count(epoch), word(holder), word(host), count(renewals), bool(count(released)), incident, server)
    return known if held is None else known._replace(held=word(held))


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


def release(fleet: str, epoch: int, instance: str, reason: str, store: Store) -> Decide[None]:
    """Return what gives the epoch up in a transaction of the store, if the process holds it, and marks that nothing is
    bound until the next claim."""
    mine = {"fleet": fleet, "mine": epoch, "me": instance, "why": reason, "token": new_mark(epoch)}

    def decide(_: Answers) -> tuple[None, list[Change]]:
        system, timeline = store.identity
        return None, [Change(_RELEASE, [mine | {"on": system, "line": timeline}])]

    return decide


def of_host(host: str) -> Question:
    """Return what reads the row of a host."""
    return Question(_HOST, {"own": host})


def speak(answers: Answers, host: str, instance: str, state: str) -> tuple[bool, list[Change]]:
    """Write down the state of a host, if its row was asked for with `of_host`; also of one that the database has lost,
    which then has each incident to answer. Returns False if another process speaks for it now."""
    values = {"instance": instance, "state": state}
    for found in answers:
        if not found:
            return True, [Change(_NEW_HOST, [{"name": host, "incident": 0, **values}])]
        before = word(found[0][1])
        # Without a process: it was lost, and is there again by an incident that this one began.
        mine = before in (instance, "")
        return mine, [Change(_ALIVE, [{"own": host, "before": before, **values}], required=True)] if mine else []
    return True, []


def prepare(found: Sequence[Sequence[Any]], fleet: str) -> list[Change]:
    """Make the row of the epoch, if `looking` has found none."""
    first = {"epoch": 0, "holder": "", "host": "", "claimed_ns": 0, "renewals": 0, "released": 1}
    rest = {"timeline": "", "system": "", "incident": 0, "reason": ""}
    return [] if found else [Change(_NEW_FLEET, [{"name": fleet} | first | rest])]


def life_of(found: Sequence[Sequence[Any]]) -> tuple[str, int] | None:
    """Return who speaks for a host and when it did last, by the database's clock, by its row; None: nobody does."""
    if not found:
        return None
    _, instance, seen_ns, state, *_ = found[0]
    return None if state == CLOSED else (str(instance), int(seen_ns))


def enter(answers: Answers, host: str, instance: str) -> tuple[EpochRow, Change]:
    """Let a process speak for a host, by the answers to `locking` and `of_host`. A host that is new has nothing to say
    to incidents that are answered; one that was retired and has answered all belongs to the fleet again. Returns the
    row of the epoch."""
    row, values = shared(answers[0]), {"instance": instance, "state": "follower"}
    number = count(answers[0][0][7]) if answers[0] else 0
    if answers[1]:
        _, before, _, _, answered, retired, _ = answers[1][0]
        back = {"retired": count(retired) if count(answered) < number else 0}
        return row, Change(_ALIVE, [{"own": host, "before": before, **values, **back}], required=True)
    past = 0 if row.incident else number
    return row, Change(_NEW_HOST, [{"name": host, "incident": past, **values}])
