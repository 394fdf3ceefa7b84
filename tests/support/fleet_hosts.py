"""Hosts of a fleet without HSMs: each has an audit log of its own, and all share one store."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from tests.support.audit_logs import settings

from hsmcore.audit import AuditLog
from hsmcore.errors import FleetBehind, HsmError
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.recovery.witness import Witness
from hsmcore.state import Store
from hsmcore.state.positions import BoundRow

KEY = b"\1" * 32
"""The key that signs."""
BLOCKS = "chain/block"
FLEET = "sequencer"


def message(text: object) -> bytes:
    """A payload. Its digest is what is bound."""
    return f"{text}".encode()


def digest(text: object) -> str:
    """The digest of `message`."""
    return hashlib.sha256(message(text)).hexdigest()


class Somewhere(Store):
    """A store that says which database it is."""

    at: tuple[str, str] = ("", "")

    @property
    def identity(self) -> tuple[str, str]:
        """As Store."""
        return self.at


class Host:
    """One host. `sign` binds as the policy does, behind the fence, and records as the engine does. `place`: of the
    store; without one, a file that says it is `at` some database."""

    def __init__(
        self,
        folder: Path,
        name: str,
        secret: Any = None,
        at: tuple[str, str] = ("", ""),
        place: Any = None,
        **audit: Any,
    ) -> None:
        self.folder, self.name, self.secret, self.at, self.place = folder, name, secret, at, place
        self.log = AuditLog(str(folder / name / "audit.log"), settings(**audit))

    async def __aenter__(self) -> Self:
        (self.folder / self.name).mkdir(exist_ok=True)
        await self.log.open()
        self.store: Any
        if self.place is None:
            self.store = await Somewhere.open(self.folder / "state.db", self.secret)
            self.store.at = self.at
        else:
            self.store = await Store.open(self.place, self.secret)
        self.mark = Watermark(self.store, f"{self.name}:1")
        self.witness = Witness(self.store, FLEET, self.name, f"{self.name}:1:abcd", self.log)
        self.store.on_connect(self.witness.connected)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.mark.close()
        await self.store.close()
        await self.log.close()

    async def sign(self, position: int, text: object = "", domain: str = BLOCKS, *, recorded: bool = True) -> None:
        """Have a payload bound, remembered and recorded, unless something refuses it."""
        payload = text or f"{domain} {position}"
        standing = await self.witness.standing()
        if standing.open:
            raise FleetBehind(f"incident {standing.number} is open")
        self.witness.require_server((standing.system, standing.timeline))
        place = PayloadPlace(domain, position, digest(payload))
        await self.mark.require(place)
        self.witness.bound([BoundRow(*place[:3], f"{self.name}:1", 1)])
        if recorded:
            self.record(position, payload, domain)

    def record(self, position: int, payload: object, domain: str = BLOCKS) -> None:
        """Record a signature."""
        said = self.mark.shown("block", PayloadPlace(domain, position, digest(payload)))
        self.log.record("sign", message=message(payload), result="ok", public_key=KEY, **said)

    async def refused(self, position: int, text: object = "", domain: str = BLOCKS) -> str:
        """The name of the error of `sign`; "" if there is none."""
        try:
            await self.sign(position, text, domain)
        except HsmError as error:
            return type(error).__name__
        return ""

    async def digests(self) -> dict[int, str]:
        """What is bound in `BLOCKS`."""
        return dict(await self.store.run(_digests))


def _digests(connection: Any) -> list[tuple[int, str]]:
    found = connection.exec_driver_sql("SELECT position, digest FROM bound WHERE domain = 'chain/block'")
    return [(position, text) for position, text in found]


def beside(folder: Path, *statements: str) -> None:
    """Write into the store as its database may lose: without hsmcore's knowledge."""
    with closing(sqlite3.connect(folder / "state.db")) as raw, raw:
        for statement in statements:
            raw.execute(statement)


def join(folder: Path, *names: str) -> None:
    """Note hosts as members of the fleet, as they do themselves at their start."""
    nothing = "'', 0, '', 0, 0, '', NULL, NULL, NULL, NULL"
    beside(folder, *(f"INSERT INTO fleet_host VALUES ('{name}', {nothing})" for name in names))  # noqa: S608


def lose_from(folder: Path, position: int) -> None:
    """Take back every bind from a position on."""
    lost = f"DELETE FROM bound WHERE position >= {position}"  # noqa: S608  # a number of the test's own
    high = "(SELECT coalesce(max(position), -1) FROM bound WHERE domain = name)"
    beside(folder, lost, f"UPDATE watermark SET high = {high}, bits = '1'")  # noqa: S608  # made here


def copy(folder: Path, name: str) -> None:
    """Keep the store as it is, under a name. No host may have it open."""
    shutil.copy(folder / "state.db", folder / name)


def put_back(folder: Path, name: str) -> None:
    """Put a copy in the place of the store."""
    for end in ("-wal", "-shm"):
        (folder / f"state.db{end}").unlink(missing_ok=True)
    shutil.copy(folder / name, folder / "state.db")
