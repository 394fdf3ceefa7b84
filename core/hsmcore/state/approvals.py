"""Who has approved which rotation."""

from __future__ import annotations

import time

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from hsmcore.errors import HsmError
from hsmcore.state.schema import APPROVAL
from hsmcore.state.store import Store


class NotApproved(HsmError):
    """An approval was refused."""

    default_hint = "See `hsmcore rotate status` for what is to be approved, and by whom."


class Approvals:
    """Reads and writes `approval`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, rotation: int, approver: str, method: str, totp_step: int | None = None) -> list[str]:
        """Note an approval; returns who has approved so far. The same person counts once. Raises NotApproved for a
        one-time code that was used before."""

        def work(connection: Connection) -> list[str]:
            if approver not in _of(connection, rotation):
                if totp_step is not None and (_last_step(connection, approver) or -1) >= totp_step:
                    raise NotApproved(f"{approver} has used this code before", hint="Wait for the next code.")
                values = {"rotation_id": rotation, "approver": approver, "method": method, "totp_step": totp_step}
                try:
                    connection.execute(insert(APPROVAL).values(**values, time_ns=time.time_ns()))
                except IntegrityError:
                    raise NotApproved(f"{approver} has used this code before") from None
            return _of(connection, rotation)

        return await self._store.run(work)

    async def of(self, rotation: int) -> list[str]:
        """Who has approved, in that order."""
        return await self._store.run(lambda connection: _of(connection, rotation))


def _of(connection: Connection, rotation: int) -> list[str]:
    query = select(APPROVAL.c.approver).where(APPROVAL.c.rotation_id == rotation).order_by(APPROVAL.c.id)
    return list(connection.execute(query).scalars())


def _last_step(connection: Connection, approver: str) -> int | None:
    query = select(APPROVAL.c.totp_step).where(APPROVAL.c.approver == approver, APPROVAL.c.totp_step.is_not(None))
    return max(connection.execute(query).scalars(), default=None)
