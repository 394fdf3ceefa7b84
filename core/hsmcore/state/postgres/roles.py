"""Roles in a fleet's database: a row for each, held for a while by one process of one host.

The holder renews its row; when it has been silent for longer than `seconds`, another process may take the role, which
raises the row's epoch. Writes of the former holder are refused from then on: each transaction of the task that holds
the role, and of the tasks begun in it, first reads whether the epoch is still its own. So it does not matter whose
clock is right, or how long a process was stopped.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy import Connection, bindparam, insert, select, update

from hsmcore.base.log import get_logger
from hsmcore.errors import HsmError
from hsmcore.state.database import Database, Work, now_ns
from hsmcore.state.errors import RoleLost, StoreBusy
from hsmcore.state.schema import ROLE

T = TypeVar("T")

_FREE: Final = 0
_READ: Final = select(ROLE.c.epoch, ROLE.c.holder, ROLE.c.until_ns).where(ROLE.c.name == bindparam("role"))
_CHANGE: Final = update(ROLE).where(ROLE.c.name == bindparam("role"), ROLE.c.epoch == bindparam("before"))


@dataclass(slots=True)
class _Held:
    database: Database
    role: str
    epoch: int
    holder: str
    over: bool = False

    def require(self, connection: Connection) -> None:
        """Raise RoleLost if another process has taken the role."""
        row = connection.execute(_READ, {"role": self.role}).first()
        # A database that has lost commits may have counted to this epoch again, for another process.
        if row is None or (row.epoch, row.holder) != (self.epoch, self.holder):
            holder = "no process" if row is None else row.holder
            raise RoleLost(f"{self.database.shown}: the role {self.role!r} was lost: {holder} has it now")


_ROLES: Final[ContextVar[tuple[_Held, ...]]] = ContextVar("roles", default=())


def under_roles(database: Database, work: Work[T]) -> Work[T]:
    """Return `work` after a check of the roles that this task has in the database."""
    held = [role for role in _ROLES.get() if role.database is database and not role.over]
    if not held:
        return work

    def checked(connection: Connection) -> T:
        for role in held:
            role.require(connection)
        return work(connection)

    return checked


@asynccontextmanager
async def row_role(database: Database, role: str, seconds: float) -> AsyncIterator[None]:
    """Hold a role of a fleet's database. Raises StoreBusy, StoreError."""
    holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    taken = await _in_thread(database, lambda connection: _take(connection, database, role, holder, seconds))
    held = _Held(database, role, taken, holder)
    _ROLES.set((*(other for other in _ROLES.get() if not other.over), held))
    renewing = asyncio.create_task(_renew(held, seconds))
    try:
        yield
    finally:
        held.over = True
        renewing.cancel()
        with suppress(asyncio.CancelledError):
            await renewing
        with suppress(HsmError):  # its time runs out
            await asyncio.shield(_in_thread(database, lambda connection: _give_back(connection, held)))


def _take(connection: Connection, database: Database, role: str, holder: str, seconds: float) -> int:
    now = now_ns(connection)
    row = connection.execute(_READ, {"role": role}).first()
    until = now + int(seconds * 1e9)
    if row is None:
        connection.execute(insert(ROLE), {"name": role, "epoch": 1, "holder": holder, "until_ns": until})
        return 1
    if row.until_ns > now:
        raise StoreBusy(f"{database.shown}: another process, {row.holder}, has the role {role!r}")
    values = {"epoch": row.epoch + 1, "holder": holder, "until_ns": until}
    connection.execute(_CHANGE, {"role": role, "before": row.epoch} | values)
    return int(row.epoch) + 1


async def _renew(held: _Held, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds / 3)
        try:
            await _in_thread(held.database, lambda connection: _extend(connection, held, seconds))
        except RoleLost as error:
            get_logger().error("a role was lost", role=held.role, reason=str(error))
            return
        except HsmError as error:
            get_logger().warning("a role could not be renewed", role=held.role, reason=str(error))


def _extend(connection: Connection, held: _Held, seconds: float) -> None:
    held.require(connection)
    until = now_ns(connection) + int(seconds * 1e9)
    connection.execute(_CHANGE, {"role": held.role, "before": held.epoch, "until_ns": until})


def _give_back(connection: Connection, held: _Held) -> None:
    held.require(connection)
    connection.execute(_CHANGE, {"role": held.role, "before": held.epoch, "until_ns": _FREE})


async def _in_thread(database: Database, work: Callable[[Connection], T]) -> T:
    database.require_own_process()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(database.thread, lambda: database.transact(work, lenient=False))
