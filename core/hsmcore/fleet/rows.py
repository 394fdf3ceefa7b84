"""The rows of a fleet in its database: who holds the epoch, and which hosts there are. For Asking and Store.exchange.

A payload with a position is bound in a transaction that has locked the row of the epoch against claims; a claim changes
that row. So each bind is before a claim or after it, never across. A renewal changes the row, too, and waits for no
bind: to bind takes the lock that an update of other columns than a key's leaves alone, FOR KEY SHARE, and a claim takes
the one that it does not, FOR UPDATE.

A change here carries its own condition, since it goes into one message with its COMMIT, and is unconditional only where
it may be done twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, Text, bindparam, case, exists, or_, select, update
from sqlalchemy.dialects import postgresql

from hsmcore.fleet.machine import EpochRow
from hsmcore.fleet.orders import COLUMNS, Verb
from hsmcore.recovery.hold import CLOSED, new_mark
from hsmcore.recovery.incident import count, word
from hsmcore.state import Store
from hsmcore.state.database import NOW
from hsmcore.state.exchange import Answers, Change, Decide, Question
from hsmcore.state.schema import FLEET, FLEET_HOST, WATERMARK

Rows = Sequence[Sequence[Any]]
"""The answer to a question."""

_unanswered: Final = (
    exists().where(FLEET_HOST.c.retired == 0, FLEET_HOST.c.incident < FLEET.c.incident).correlate(FLEET)
)
# Made once: to make a statement takes SQLAlchemy longer than the database takes to do it.
_FIELDS: Final = (
    FLEET.c.epoch, FLEET.c.holder, FLEET.c.host, FLEET.c.renewals, FLEET.c.released, FLEET.c.system, FLEET.c.timeline,
    FLEET.c.incident, FLEET.c.held, FLEET.c.renewed_by, _unanswered.label("open"),
)  # fmt: skip
_OF: Final = FLEET.c.name == bindparam("fleet")
_LOOK: Final = select(*_FIELDS).where(_OF)
_SHARE: Final = _LOOK.with_for_update(read=True, key_share=True, of=FLEET)
_SEEN: Final = (FLEET.c.renewals >= bindparam("seen")) & FLEET.c.held.is_(None) & ~_unanswered
_ON: Final = (FLEET.c.system == bindparam("system")) & (FLEET.c.timeline == bindparam("timeline"))
_LOCK: Final = _LOOK.with_for_update(of=FLEET)
_SEE: Final = (
    select(*_FIELDS, FLEET_HOST.c.instance, FLEET_HOST.c.seen_ns, FLEET_HOST.c.state, *COLUMNS.values())
    .select_from(FLEET.outerjoin(FLEET_HOST, FLEET_HOST.c.name == bindparam("own")))
    .where(_OF)
)
_MINE: Final = (
    _OF & (FLEET.c.epoch == bindparam("mine")) & (FLEET.c.holder == bindparam("me")) & (FLEET.c.released == 0)
)
_AS_SEEN: Final = FLEET.c.renewals == bindparam("seen")
# `hot`: these write no column that the seal of a store vouches for (state/sealed_rows.py).
_RENEW: Final = (
    update(FLEET)
    .where(_MINE, _AS_SEEN)
    .values(renewals=FLEET.c.renewals + 1, renewed_by=bindparam("by"))
    .returning(FLEET.c.epoch)
    .execution_options(hot=True)
)
# A mark of a hold stays; none is written where positions may be lost already.
_same: Final = (FLEET.c.system == bindparam("on")) & (FLEET.c.timeline == bindparam("line"))
_mark: Final = case((FLEET.c.held.is_not(None), FLEET.c.mark), (~_unanswered & _same, bindparam("token", type_=Text)))
_RELEASE: Final = update(FLEET).where(_MINE).values(released=1, reason=bindparam("why"), mark=_mark)
_CLAIM: Final = (
    update(FLEET)
    .where(
        _OF,
        FLEET.c.epoch == bindparam("last"),
        FLEET.c.incident == bindparam("known"),
        or_(bindparam("forced") == 1, _AS_SEEN & (FLEET.c.released == bindparam("free"))),
    )
    .values(
        epoch=bindparam("next"),
        holder=bindparam("me"),
        host=bindparam("at"),
        reason=bindparam("why"),
        renewed_by=bindparam("by"),
        claimed_ns=NOW,
        renewals=0,
        released=0,
    )
    .returning(FLEET.c.epoch, FLEET.c.holder, FLEET.c.host)
)
_ALIVE: Final = update(FLEET_HOST).where(FLEET_HOST.c.name == bindparam("own")).values(seen_ns=NOW)
_STILL: Final = _ALIVE.where(FLEET_HOST.c.instance.in_((bindparam("me"), ""))).execution_options(hot=True)
_ENTERS: Final = _ALIVE.where(
    FLEET_HOST.c.instance == bindparam("before"), FLEET_HOST.c.seen_ns == bindparam("last")
).values(retired=case((FLEET_HOST.c.incident < bindparam("number"), FLEET_HOST.c.retired), else_=0))
# Processes that start at once on a new database all find no row, and one of them makes it.
_NEW_HOST: Final = postgresql.insert(FLEET_HOST).values(seen_ns=NOW, retired=0, note="").on_conflict_do_nothing()
_NEW_FLEET: Final = postgresql.insert(FLEET).on_conflict_do_nothing()
HIGHS: Final = Question(
    select(WATERMARK.c.name, WATERMARK.c.high, WATERMARK.c.bits, (WATERMARK.c.message > "").label("kept"))
)
"""The highest position of each domain that is bound, what is bound behind it, and whether its message is kept."""


class Seen(NamedTuple):
    """What one look finds. `speaker`: the process that speaks for this host, or did last, at `seen_ns` of the
    database's clock; "": the database forgot it; None: it has no row of the host. `orders`: the reason of each."""

    row: EpochRow
    speaker: str | None = None
    seen_ns: int = 0
    state: str = CLOSED
    orders: Mapping[Verb, str] = {}

    @property
    def life(self) -> tuple[str, int] | None:
        """Which process speaks for this host, and when it did last; None: none does."""
        return None if self.speaker is None or self.state == CLOSED else (self.speaker, self.seen_ns)


def seeing(fleet: str, host: str) -> Question:
    """Return what reads the row of the epoch, and that of this host with its orders: for `seen`."""
    return Question(_SEE, {"fleet": fleet, "own": host})


def sharing(fleet: str) -> Question:
    """Return what reads the row, and keeps claims away until the end of the transaction. Such a transaction writes, so
    that its end waits for the synchronous standby."""
    return Question(_SHARE, {"fleet": fleet})


def keeping(fleet: str, row: EpochRow, instance: str) -> Question:
    """Return what finds the row, and keeps claims away as `sharing` does, if it is what was seen or has been renewed
    since, and nothing stops binds."""
    server = dict(zip(("system", "timeline"), row.server, strict=True))
    mine = {"fleet": fleet, "mine": row.epoch, "me": instance, "seen": row.renewals}
    return Question(_kept(_SHARE), mine | server, required=True)


@cache
def _kept(shared: Select[Any]) -> Select[Any]:
    return shared.where(_MINE, _SEEN, _ON)


def locking(fleet: str) -> Question:
    """Return what reads the row to change it."""
    return Question(_LOCK, {"fleet": fleet})


def shared(found: Rows) -> EpochRow:
    """Return the row that `sharing` or `locking` has found."""
    if not found:
        return EpochRow()
    epoch, holder, host, renewals, released, system, timeline, number, held, renewed_by, is_open, *_ = found[0]
    server = word(system), word(timeline)
    incident = count(number) if is_open else 0
    return EpochRow(
        count(epoch), word(holder), word(host), count(renewals), bool(count(released)), incident, server,
        word(held or ""), word(renewed_by or ""), count(number),
    )  # fmt: skip


def seen(found: Rows) -> Seen:
    """Return what `seeing` has found."""
    speaker, seen_ns, state, *orders = found[0][len(_FIELDS) :] if found else (None,) * (3 + len(COLUMNS))
    if speaker is None:
        return Seen(shared(found))
    asked = {verb: word(why) for verb, why in zip(COLUMNS, orders, strict=True) if why is not None}
    return Seen(shared(found), word(speaker), count(seen_ns), word(state), asked)


def claim(fleet: str, last: EpochRow, instance: str, host: str, mark: str, reason: str, *, forced: bool) -> Question:
    """Take the epoch after the last one, if the row is still as it was seen; `forced`: also if its holder has renewed
    it since. The answer is empty if it was not taken."""
    values = {"fleet": fleet, "last": last.epoch, "known": last.number, "forced": int(forced), "seen": last.renewals}
    taken = {"free": int(last.released), "next": last.epoch + 1, "me": instance, "at": host, "why": reason, "by": mark}
    return Question(_CLAIM, values | taken)


def renew(fleet: str, row: EpochRow, mark: str) -> Question:
    """Show that the holder lives, if the row is still as it was seen: of two copies of a process, one is told so. It is
    confirmed when the synchronous standby has it, so that a primary that was cut off confirms none. The answer is empty
    if it was not renewed."""
    seen = {"fleet": fleet, "mine": row.epoch, "me": row.holder, "seen": row.renewals, "by": mark}
    return Question(_RENEW, seen)


def release(fleet: str, epoch: int, instance: str, reason: str, store: Store) -> Decide[None]:
    """Return what gives the epoch up in a transaction of the store, if the process holds it, and marks that nothing is
    bound until the next claim."""
    mine = {"fleet": fleet, "mine": epoch, "me": instance, "why": reason, "token": new_mark(epoch)}

    def decide(_: Answers) -> tuple[None, list[Change]]:
        system, timeline = store.identity
        return None, [Change(_RELEASE, [mine | {"on": system, "line": timeline}])]

    return decide


def speak(host: str, instance: str, state: str, *, known: bool) -> Change:
    """Write down the state of a host, unless another process speaks for it. Not `known`: the database has lost it, and
    it has each incident to answer."""
    values = {"instance": instance, "state": state}
    if not known:
        return Change(_NEW_HOST, [{"name": host, "incident": 0, **values}])
    # Without a process: it was lost, and is there again by an incident that this one began.
    return Change(_STILL, [{"own": host, "me": instance, **values}])


def prepare(fleet: str) -> Change:
    """Make the row of the epoch, if there is none."""
    first = {"epoch": 0, "holder": "", "host": "", "claimed_ns": 0, "renewals": 0, "released": 1}
    rest = {"timeline": "", "system": "", "incident": 0, "reason": ""}
    return Change(_NEW_FLEET, [{"name": fleet} | first | rest])


def enter(seen: Seen, host: str, instance: str) -> Change:
    """Let a process speak for a host, if none does since it was seen: the next look says. A host that is new has
    nothing to say to incidents that are answered; one that was retired and has answered all belongs to the fleet
    again."""
    values = {"instance": instance, "state": "follower"}
    if seen.speaker is not None:
        known = {"own": host, "before": seen.speaker, "last": seen.seen_ns, "number": seen.row.number}
        return Change(_ENTERS, [known | values])
    past = 0 if seen.row.incident else seen.row.number
    return Change(_NEW_HOST, [{"name": host, "incident": past, **values}])
