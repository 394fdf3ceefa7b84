"""Approvals of rotations, as stored."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, func, not_, select

from hsmcore.state.errors import NotApproved
from hsmcore.state.schema import APPROVAL, insert_row
from hsmcore.state.store import Tables


@dataclass(frozen=True, slots=True)
class Approval:
    """One approval. The row is a claim; its `proof` shows whether it is true."""

    approver: str
    method: str
    totp_step: int | None
    proof: str


class Approvals(Tables):
    """Reads and writes `approval`."""

    async def add(self, rotation: int, given: Approval) -> None:
        """Note an approval; it replaces an earlier one of the same approver. Raises NotApproved for a one-time code
        that was used for another rotation, or an older one."""

        def work(connection: Connection) -> None:
            ours = (APPROVAL.c.rotation_id == rotation) & (APPROVAL.c.approver == given.approver)
            if given.totp_step is not None:
                others = select(func.max(APPROVAL.c.totp_step)).where(APPROVAL.c.approver == given.approver, not_(ours))
                if (connection.execute(others).scalar() or -1) >= given.totp_step:
                    raise NotApproved(f"{given.approver} has used this code before", hint="Wait for the next code.")
            connection.execute(delete(APPROVAL).where(ours))
            insert_row(connection, APPROVAL, **asdict(given), rotation_id=rotation, time_ns=time.time_ns())

        await self._store.run(work)

    async def of(self, rotation: int) -> list[Approval]:
        """Return the approvals of a rotation, oldest first."""
        columns = (APPROVAL.c.approver, APPROVAL.c.method, APPROVAL.c.totp_step, APPROVAL.c.proof)
        query = select(*columns).where(APPROVAL.c.rotation_id == rotation).order_by(APPROVAL.c.id)
        return [Approval(**row) for row in await self._store.rows(query)]
