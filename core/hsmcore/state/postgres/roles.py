"""Roles in a fleet's database: a row for each, held for a while by one process of one host.

The holder renews its row; when it has been silent for longer than `seconds`, another process may take the role, which
raises the row's epoch. A process that sees the row for the first time goes by the database's clock; one that has seen a
renewal waits that long by its own boot clock; and a row that stays the same for so long is free whatever its date says.

Writes of the former holder are refused from then on: each transaction of the task that holds the role, and of the tasks
begun in it, first reads whether the epoch is still its own. So it does not matter whose clock is right, or how long a
process was stopped.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import bindparam, insert, select, update

from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.base.steady import boottime
from hsmcore.base.waiting import shielded
from hsmcore.errors import HsmError
from hsmcore.state.database import NOW, Database
from hsmcore.state.errors import RoleLost, StoreBusy
from hsmcore.state.exchange import Answers, Change, Decide, Question
from hsmcore.state.schema import ROLE

T = TypeVar("T")

_FREE: Final = 0
_READ: Final = select(ROLE.c.epoch, ROLE.c.holder, ROLE.c.until_ns).where(ROLE.c.name == bindparam("role"))
_NOW: Final = Question(select(NOW))
_ADD: Final = insert(ROLE)
_CHANGE: Final = update(ROLE).where(ROLE.c.name == bindparam("role"), ROLE.c.epoch == bindparam("before"))


@dataclass(slots=True)
class _Held:
    database: Database
    role: str
    epoch: int
    holder: str
    over: bool = False

    @property
    def question(self) -> Question:
        """What reads the role's row."""
        return Question(_READ, {"role": self.role})

    def require(self, rows: Sequence[Sequence[Any]]) -> None:
        """Raise RoleLost if by the answer another process has taken the role."""
        # A database that has lost commits may have counted to this epoch again, for another process.
        if not rows or tuple(rows[0][:2]) != (self.epoch, self.holder):
            holder = rows[0][1] if rows else "no process"
            raise RoleLost(f"{self.database.shown}: the role {self.role!r} was lost: {holder} has it now")

    def until(self, answers: Answers, seconds: float | None = None) -> tuple[None, list[Change]]:
        """Return what has the role end so long after now; without `seconds`, at once. Raises as `require`."""
        self.require(answers[0])
        until = _FREE if seconds is None else answers[1][0][0] + int(seconds * 1e9)
        values = {"role": self.role, "before": self.epoch, "until_ns": until}
        return None, [Change(_CHANGE, [values], required=True)]


_ROLES: Final[ContextVar[tuple[_Held, ...]]] = ContextVar("roles", default=())


def fence(database: Database) -> tuple[list[Question], Callable[[Answers], None]]:
    """Return what each transaction of this task asks first, for the roles that it has in the database; and what raises
    RoleLost by the answers, behind which others may follow."""
    held = [role for role in _ROLES.get() if role.database is database and not role.over]

    def require(answers: Answers) -> None:
        for role, rows in zip(held, answers, strict=False):
            role.require(rows)

    return [role.question for role in held], require


class RolesSeen:
    """The rows of roles that others hold, as a process sees them. Belongs to the store's thread. `shown`: the database,
    for people."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self._seen: dict[str, tuple[Sequence[Any], int, bool]] = {}

    def is_free(self, role: str, row: Sequence[Any], now: int, seconds: float) -> bool:
        """Whether a role may be taken. `now`: by the database's clock, which may be wrong."""
        if row[2] == _FREE:
            self._seen.pop(role, None)
            return True
        before = self._seen.get(role)
        if before is None or before[0] != row:
            self._seen[role] = row, boottime(), before is not None
        _, since, is_renewed = self._seen[role]
        return boottime() - since >= seconds * 1e9 or (row[2] <= now and not is_renewed)


@asynccontextmanager
async def row_role(database: Database, role: str, seconds: float, seen: RolesSeen) -> AsyncIterator[None]:
    """Hold a role of a fleet's database. Raises StoreBusy, StoreError."""
    holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    asked = [Question(_READ, {"role": role}), _NOW]
    taken = await _in_thread(database, asked, lambda answers: _taken(answers, seen, role, holder, seconds))
    held = _Held(database, role, taken, holder)
    _ROLES.set((*(other for other in _ROLES.get() if not other.over), held))
    scope = Scope()
    scope.defer(lambda: _give_back(held))
    scope.start(_renew(held, seconds), failed="a role is not renewed")
    try:
        yield
    finally:
        held.over = True
        await scope.close()


def _taken(answers: Answers, seen: RolesSeen, role: str, holder: str, seconds: float) -> tuple[int, list[Change]]:
    [rows, [[now]]] = answers
    until = now + int(seconds * 1e9)
    if not rows:
        return 1, [Change(_ADD, [{"name": role, "epoch": 1, "holder": holder, "until_ns": until}])]
    epoch, other, _ = rows[0]
    if not seen.is_free(role, tuple(rows[0]), now, seconds):
        raise StoreBusy(f"{seen.shown}: another process, {other}, has the role {role!r}")
    values = {"role": role, "before": epoch, "epoch": epoch + 1, "holder": holder, "until_ns": until}
    return epoch + 1, [Change(_CHANGE, [values], required=True)]


async def _renew(held: _Held, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds / 3)
        try:
            await _in_thread(held.database, [held.question, _NOW], lambda found: held.until(found, seconds))
        except RoleLost as error:
            get_logger().error("a role was lost", role=held.role, reason=str(error))
            return
        except HsmError as error:
            get_logger().warning("a role could not be renewed", role=held.role, reason=str(error))


async def _give_back(held: _Held) -> None:
    with suppress(HsmError):  # its time runs out
        await shielded(_in_thread(held.database, [held.question], held.until))


async def _in_thread(database: Database, questions: Sequence[Question], decide: Decide[T]) -> T:
    database.require_own_process()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(database.thread, lambda: database.exchange(questions, decide, lenient=False))
