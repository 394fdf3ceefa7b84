"""The connection of a host's lease, as the host uses it: each message says now and then that the host lives, and ends
with one look."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final

from hsmcore.base.log import get_logger
from hsmcore.base.steady import boottime
from hsmcore.fleet import rows
from hsmcore.fleet.duties import Duties
from hsmcore.fleet.entry import RENEWALS, SECOND
from hsmcore.fleet.machine import NOWHERE, EpochRow, Machine
from hsmcore.recovery.hold import CLOSED
from hsmcore.state.exchange import Asking, Change, Question

_SPEAKS: Final = 2
"""How often a host says that it lives, in the life of a lease."""


class HostLine:
    """One host's. Belongs to one event loop. `compare`: called with each row that is read, before it is passed on."""

    def __init__(
        self, asking: Asking, fleet: str, host: str, machine: Machine, compare: Callable[[EpochRow], None]
    ) -> None:
        self.asking, self._host, self._machine, self._compare = asking, host, machine, compare
        self._fleet, self._sees = fleet, rows.seeing(fleet, host)
        self.limit = machine.ttl / RENEWALS / SECOND
        """Seconds after which an answer is worth nothing."""
        self.server, self._incarnation = NOWHERE, ""
        """That has answered last."""
        self.duties: Duties | None = None
        self.superseded = False
        """Whether another process is this host: this one signs no more, and claims nothing."""
        self.closes = False
        """Whether this is the last message."""
        self._spoke_at, self._said = 0, ""
        self._is_known = True
        """Whether the database has a row of this host."""

    async def ask(
        self, *work: Question | Change, writes: int | None = None, seconds: float = 0.0
    ) -> tuple[EpochRow, Sequence[rows.Rows]]:
        """Do something and look. `writes`: the question that is a renewal or a claim. Returns the row of the epoch as
        it is then, and the answers. Raises StoreError."""
        machine, began = self._machine, boottime()
        state = CLOSED if self.closes else machine.state
        due = began >= self._spoke_at + machine.ttl // _SPEAKS
        speaks = due or not self._is_known or state not in (self._said, "claiming")
        spoken = [rows.speak(self._host, machine.instance, state, known=self._is_known)] if speaks else []
        told = await self.asking.ask([*work, *spoken, self._sees], seconds or self.limit)
        *answers, last = told.answers
        if writes is not None:
            machine.is_marked(again=told.again)
        machine.answered(told.server, boottime())
        self._incarnation, self.server = told.incarnation, told.server
        seen = rows.seen(last)
        if speaks:
            self._spoke_at, self._said = began, state
        self._is_known = seen.speaker is not None
        self._compare(seen.row)
        if seen.speaker not in (None, "", machine.instance):
            self._supersede("another process speaks for this host, or it was retired")
        elif machine.is_copied(seen.row) and (writes is None or not answers[writes]):
            self._supersede("a copy of this process renews the lease")
        elif self.duties is not None and not self.closes:
            self.duties.heard(seen.orders, told.incarnation)
        return seen.row, answers

    async def confirm(self, *, writes: bool) -> bool:
        """Ask whether the row is still as it was seen, on the server that answered last; `writes`: renew the lease,
        without a look. Returns whether that is so. Raises StoreError."""
        machine, row, began = self._machine, self._machine.row, boottime()
        if not writes:
            return await self.asking.still(rows.still(self._fleet, row), self._incarnation, self.limit)
        mark = machine.marks(secrets.token_hex(8))
        told = await self.asking.ask([rows.renew(self._fleet, row, mark)], self.limit)
        machine.is_marked(again=told.again)
        if not told.answers[0] or told.incarnation != self._incarnation:
            return False
        machine.renewed(row._replace(renewals=row.renewals + 1, renewed_by=mark), began, boottime())
        return True

    def _supersede(self, why: str) -> None:
        if not self.superseded:
            self.superseded = True
            get_logger().error("this process of the fleet signs no more", reason=why, host=self._host)
        if self._machine.epoch:
            self._machine.gives_up(why)
