"""Hosts of a fleet without HSMs, each with its membership: what it binds stands behind its fence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.audit_logs import settings
from tests.support.fleet_hosts import BLOCKS, digest, message

from hsmcore.audit import AuditLog
from hsmcore.config.fleet import Fleet
from hsmcore.errors import HsmError
from hsmcore.fleet.membership import Membership
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.state import Store
from hsmcore.state.seal import SealSecret


class Host:
    """One host."""

    def __init__(self, member: Membership, store: Store, log: AuditLog) -> None:
        self.member, self.log = member, log
        self.mark = Watermark(store, f"{member.host}:1", member)

    async def sign(self, position: int, text: object = "") -> str:
        """Bind a payload, and record it. Returns the name of the error, or ""."""
        payload = text or f"{BLOCKS} {position}"
        try:
            await self.mark.require(PayloadPlace(BLOCKS, position, digest(payload)))
        except HsmError as error:
            return type(error).__name__
        self.log.record("sign", message=message(payload), result="ok", kind="block", domain=BLOCKS, position=position)
        return ""


@asynccontextmanager
async def attending(place: Fleet, folder: Path, secret: SealSecret | None = None) -> AsyncIterator[Host]:
    """A host that takes part in its fleet. `folder`: of its audit log. `secret`: of the store's seal."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240
    log = AuditLog(str(folder / "audit.log"), settings())
    await log.open()
    member, store = await Membership.open(place, secret), await Store.open(place, secret)
    host = Host(member, store, log)
    try:
        await member.watch_over(log)
        member.begin(lambda *_, **__: None)
        yield host
    finally:
        await host.mark.close()
        await member.close()
        await store.close()
        await log.close()
