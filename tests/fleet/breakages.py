"""Builds that are broken on purpose, each in the way that some other signer was: the checker must see each of them.

A breakage replaces functions of hsmcore in the signer's process; hsmcore itself has no switches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import bindparam, delete, update
from tests.support.policed import ordered

BREAKAGES: Final[dict[str, Callable[[], None]]] = {}
AGE_NS: Final = 150_000_000


def _breakage(work: Callable[[], None]) -> Callable[[], None]:
    BREAKAGES[work.__name__] = work
    return work


@_breakage
def reclaimed_by_age() -> None:
    """A bound position is given up when it is so old that its signer must have failed."""
    from hsmcore.manager.policy.watermark import Watermark
    from hsmcore.state.schema import BOUND, WATERMARK

    taken = Watermark._taken

    def forget(connection: Any) -> None:
        connection.execute(delete(BOUND).where(BOUND.c.bound_ns < time.time_ns() - AGE_NS))
        connection.execute(WATERMARK.update().values(bits="0"))

    async def forgetful(self: Watermark, wants: Any, now: int) -> Any:
        await self._store.run(forget, turn=False)
        return await taken(self, wants, now)

    Watermark._taken = forgetful  # type: ignore[method-assign]


@_breakage
def unwitnessed() -> None:
    """Nobody compares the audit logs with the database."""
    from hsmcore.fleet.membership import Membership

    async def no_look(self: Membership, log: Any) -> None:
        pass

    Membership.watch_over = no_look  # type: ignore[method-assign]


@_breakage
def unfenced() -> None:
    """Positions are bound by each host that is asked: neither it nor the transaction looks who holds the epoch."""
    from hsmcore.fleet import rows
    from hsmcore.fleet.membership import Membership

    Membership.fence = lambda self, found: rows.shared(found).epoch  # type: ignore[method-assign]
    Membership.require = lambda self: None  # type: ignore[method-assign]


@_breakage
def unshared() -> None:
    """A bind reads who holds the epoch, and does not lock it: a claim may come between that and its end. And it writes
    the watermark whatever another host has written since: either of the two would be enough."""
    from sqlalchemy import and_, bindparam, or_, update

    from hsmcore.fleet import rows
    from hsmcore.state import positions
    from hsmcore.state.database import Database
    from hsmcore.state.postgres.database import ServerDatabase

    rows._SHARE = rows._LOOK  # type: ignore[misc]
    named, was = positions.WATERMARK.c.name == bindparam("domain"), positions._CHANGE._where_criteria[1:]
    whatever = update(positions.WATERMARK).where(named, or_(named, and_(*was)))
    positions._CHANGE = whatever.execution_options(hot=True)  # type: ignore[misc]
    ServerDatabase.binding = Database.binding  # type: ignore[method-assign]


@_breakage
def let_go() -> None:
    """A commit that the server lets go, because synchronous_standby_names is emptied, counts as one that has waited. A
    failover then loses it, as with `not_synchronous`."""
    from hsmcore.state.postgres.link import Facts

    unwitnessed()
    Facts.lasts = lambda self, after: True  # type: ignore[method-assign]


@_breakage
def forgetful() -> None:
    """A bind is not compared with what the process itself has bound."""
    from hsmcore.fleet.membership import Membership

    Membership.require_kept = lambda self, *_: None  # type: ignore[method-assign]


@_breakage
def misfinished() -> None:
    """What is given to be finished is another payload than the one that is bound."""
    from hsmcore.manager.policy import watermark

    newest = watermark.positions.newest  # type: ignore[attr-defined]

    def another(connection: Any, domain: str, *rest: Any) -> Any:
        found = newest(connection, domain, *rest)
        return found and found._replace(message=ordered(found.position, b"another"))

    watermark.positions.newest = another  # type: ignore[attr-defined]


@_breakage
def uncounted() -> None:
    """A renewal is written however often the lease was renewed, so a copy of the process renews it too."""
    from hsmcore.fleet import rows
    from hsmcore.fleet.machine import Machine

    rows._RENEW = (
        update(rows.FLEET)
        .where(rows._MINE)
        .values(  # type: ignore[misc]
            renewals=rows.FLEET.c.renewals + 1, mark=bindparam("by")
        )
        .returning(rows.FLEET.c.epoch)
    )
    Machine.is_copied = lambda self, row: False  # type: ignore[method-assign]


@_breakage
def unheld() -> None:
    """Positions are bound during a hold, too. The audit logs would put right what is lost then: they say nothing."""
    from hsmcore.recovery import witness

    async def nothing(self: Any, doubts: int = 0, *_: Any) -> witness.Compared:
        return witness.Compared(doubts)

    witness.require_not_held = lambda held: None  # type: ignore[attr-defined]
    witness.Witness.compare = nothing  # type: ignore[method-assign]


@_breakage
def walled() -> None:
    """A host that is behind the chain never claims the epoch, as if that were not an order but a rule."""
    from hsmcore.fleet.gate import ClaimGate

    ClaimGate.is_patient = lambda self, row, now: True  # type: ignore[method-assign]


@_breakage
def not_synchronous() -> None:
    """A commit is confirmed before the synchronous standby has it, as with synchronous_commit = local. A failover then
    loses it, which the audit logs would put right: so they are not compared."""
    from hsmcore.state.postgres import link as server_link

    unwitnessed()
    server_link._COMMIT_AT_LEAST = "'local'"  # type: ignore[misc]
