"""A planned switchover of a fleet's database, and a host that never comes back: what operators do while no incident is
open.

A *mark* in the fleet's row says that nothing was bound since it was written. A hold writes one, and nothing is bound
until it ends; so does a release of the epoch, until the next claim. Both wait for the binds that are under way, by the
row's lock. A database loses a suffix of its commits: one that has the mark has all that was bound before it. No row can
say that it is the last mark: an older state has an older mark. So the operator names it, as it was before the
switchover, and names each mark once. The hosts' logs may disprove it: an incident for any other reason than another
server takes it away.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, select, update

from hsmcore.errors import BadArgument, FleetBehind
from hsmcore.recovery.incident import count, fleet_row, standing, word
from hsmcore.state.schema import FLEET, FLEET_HOST
from hsmcore.state.store import now_ns

AWAY_LEASES: Final = 2
"""Lives of a lease after which a host that says nothing counts as away."""
CLOSED: Final = "closed"
"""State of a host whose process ended in order."""
RETIRED: Final = "retired"
"""The process that speaks for a retired host: none. One that was only stopped finds that it is not it."""
_RESUME: Final = "It ends with `hsmcore fleet resume`."
_STATUS: Final = "See `hsmcore fleet status`."
_WITHOUT: Final = "Without the mark, each host is to say what it knows: `hsmcore fleet resume --reason TEXT`."


def require_not_held(held: str) -> None:
    """Raise FleetBehind, which is retryable, for a hold's reason."""
    if held:
        error = FleetBehind(f"the fleet is held: {held}", hint=_RESUME)
        error.told_retryable = True
        raise error


def new_mark(epoch: int) -> str:
    """Return a mark for a row with this epoch."""
    return f"{epoch}-{secrets.token_hex(8)}"


def mark_of(row: Mapping[Any, Any]) -> str:
    """Return the mark of a fleet's row if it holds, else "". A claim ends it, unless the fleet is held."""
    mark = word(row["mark"] or "")
    return mark if row["held"] is not None or mark.startswith(f"{count(row['epoch'])}-") else ""


def vouched(epoch: int, timeline: str) -> str:
    """Return the mark of a row whose mark an operator has named on this timeline after the release of this epoch: no
    host has claimed since."""
    return f"named {epoch} {timeline}"


def hold(connection: Connection, name: str, reason: str, server: tuple[str, str]) -> str:
    """Have nothing bound until `resume`. `server`: system and timeline of the database. Returns the mark; of a fleet
    that is held already, a new one. Raises BadArgument where positions may be lost already."""
    row, now = fleet_row(connection, name), standing(connection, name)
    if now.open:
        raise BadArgument(f"incident {now.number} is open, so nothing is bound", hint=_STATUS)
    if (now.system, now.timeline) not in (("", ""), server):
        hint = "Its hosts open an incident, and answer it. " + _STATUS
        raise BadArgument("the database is another one than positions were bound on", hint=hint)
    mark = new_mark(row["epoch"])
    _change(connection, name, mark=mark, held=reason)
    return mark


def resume(connection: Connection, name: str, mark: str, server: tuple[str, str]) -> int:
    """End a hold. With the `mark` that was there before the switchover, this database has lost nothing: no host has to
    answer for it. Without one, another database than before is an incident. Returns the number of the incident that is
    open then, or 0. Raises BadArgument for another mark than the row's, and without one if the fleet is not held."""
    row, now = fleet_row(connection, name), standing(connection, name)
    if not mark and row["held"] is None:
        raise BadArgument("the fleet is not held", hint=_STATUS)
    if mark and mark != mark_of(row):
        what = "the database does not have this mark: it may have lost what was bound, or the mark was used already"
        raise BadArgument(what, hint=_WITHOUT)
    named = mark and row["held"] is None and vouched(row["epoch"], server[1])
    changed: dict[str, Any] = {"mark": named or None, "held": None, "system": server[0], "timeline": server[1]}
    number = now.number if now.open else 0
    if mark and number:
        answered = update(FLEET_HOST).where(FLEET_HOST.c.name.in_(now.waiting)).values(incident=number)
        connection.execute(answered)
        number = 0
    elif not mark and (now.system, now.timeline) not in (("", ""), server):
        number = changed["incident"] = count(now.number + 1)
    _change(connection, name, **changed)
    return number


def retire(connection: Connection, name: str, host: str, reason: str, ttl_ns: int) -> None:
    """Wait for a host no more. Its process, if it was only stopped, holds no epoch until it is started again. Raises
    BadArgument for one that is there, holds the epoch, is not known, or is to answer an incident."""
    row, now = fleet_row(connection, name), standing(connection, name)
    found = connection.execute(select(FLEET_HOST).where(FLEET_HOST.c.name == host)).mappings().first()
    if found is None:
        raise BadArgument(f"the fleet has no host {host!r}", hint=_STATUS)
    if row["released"] == 0 and row["host"] == host:
        raise BadArgument(f"{host} holds the epoch", hint="Have another host claim it: `hsmcore fleet claim --help`.")
    if not is_away(found, now_ns(connection), ttl_ns):
        raise BadArgument(f"{host} is there", hint="End its process first.")
    if host in now.waiting:
        what = f"incident {now.number} waits for {host}, which may have signed what was lost"
        raise BadArgument(what, hint="Start it, or see `hsmcore fleet reconcile --help`.")
    changed = {"retired": 1, "state": CLOSED, "instance": RETIRED, "note": reason}
    connection.execute(update(FLEET_HOST).where(FLEET_HOST.c.name == host).values(**changed))


def is_away(host: Mapping[Any, Any], now: int, ttl_ns: int) -> bool:
    """Whether nothing was heard of a host, by its row, for AWAY_LEASES, or its process has ended."""
    return host["state"] == CLOSED or now - count(host["seen_ns"]) > AWAY_LEASES * ttl_ns


def _change(connection: Connection, name: str, **values: Any) -> None:
    connection.execute(update(FLEET).where(FLEET.c.name == name).values(**values))
