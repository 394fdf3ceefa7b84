"""Approvals of rotations, as stored."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import Connection, delete, select

from hsmcore.state.schema import APPROVAL, insert_row
from hsmcore.state.store import Tables

METHOD: Final = "signature"


@dataclass(frozen=True, slots=True)
class Approval:
    """One approval. The row is a claim; its `proof` shows whether it is true."""

    approver: str
    proof: str


class Approvals(Tables):
    """Reads and writes `approval`."""

    async def add(self, rotation: int, given: Approval) -> None:
        """Note an approval; it replaces an earlier one of the same approver."""

        def work(connection: Connection) -> None:
            before = (APPROVAL.c.rotation_id == rotation) & (APPROVAL.c.approver == given.approver)
            connection.execute(delete(APPROVAL).where(before))
            known = {"rotation_id": rotation, "method": METHOD, "time_ns": time.time_ns()}
            insert_row(connection, APPROVAL, **asdict(given), **known)

        await self._store.run(work)

    async def of(self, rotation: int) -> list[Approval]:
        """Return the approvals of a rotation, oldest first, without those by another method, of an older version."""
        ours = (APPROVAL.c.rotation_id == rotation) & (APPROVAL.c.method == METHOD)
        query = select(APPROVAL.c.approver, APPROVAL.c.proof).where(ours).order_by(APPROVAL.c.id)
        return [Approval(**row) for row in await self._store.rows(query)]
