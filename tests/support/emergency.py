"""A key manager's failover with a SoftHSM token in the place of the emergency key: the emergency level with real
signatures and a real store, in this process or in a child that a test can kill.

As a program: `python -m tests.support.emergency STORE CONFIG MOST` signs with 64 callers until the budget refuses; for
each signature that was handed out it writes one byte to standard output, and ends with 0.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.support.managers import until

from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.config import load
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.errors import AllLevelsFailed, EmergencyRefused
from hsmcore.failover.levels import EMERGENCY, Level, Levels
from hsmcore.failover.service import FailoverService
from hsmcore.manager.verification import VerifierPool
from hsmcore.members import make_member
from hsmcore.state import Store

INTERVAL = 50_000_000


class Rig:
    """A primary and an emergency member; `drop` takes the primary away, `restore` brings it back."""

    def __init__(self, configs: list[dict[str, Any]], store: Path, most: int, seconds: int = 3600) -> None:
        block = {
            "emergencyModeEnabled": True,
            "emergencyModeRestrictions": {"maxTransactions": most, "maxTimeSeconds": seconds},
        }
        loaded = [
            load({"sequencer": {"keyManager": c["sequencer"]["keyManager"] | {"failover": block}}}) for c in configs
        ]
        self.config, self.store_path = loaded[0], store
        names = ["primary", EMERGENCY]
        self.endpoints = [
            Endpoint(
                f"{names[n]}-member",
                n,
                INTERVAL,
                names[n],
                lambda c=config, n=n: make_member(c.key_manager, c.key_manager, names[n], frozenset()),
            )
            for n, config in enumerate(loaded)
        ]
        self.events = Events()
        self.verifiers = VerifierPool()
        self.service: FailoverService

    async def __aenter__(self) -> Self:
        levels = Levels(
            [Level("primary", 2, INTERVAL), Level(EMERGENCY, 1, INTERVAL, other_keys=True)],
            self.endpoints,
        )
        store = await Store.open(self.store_path)
        self.service = FailoverService(
            self.config, levels, store, lambda v, m, s: self.verifiers.verify([v], m, s), AuditLog(None), self.events
        )
        await self.service._start()
        await self.service.health.begin()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.service.close()
        self.verifiers.close()

    async def drop(self) -> None:
        """The primary is drained, as the store says; the emergency level follows."""
        await self.service.health._desired.set(f"drain:{self.endpoints[0].name}", "yes", "test")
        await until(lambda: self.service.router.in_emergency or self.service.levels.emergency_spent)

    async def restore(self) -> None:
        """The primary signs again, and the emergency key is gone."""
        await self.service.health._desired.set(f"drain:{self.endpoints[0].name}", None, "")
        await until(lambda: self.service.levels.active == 0 and self.endpoints[1].member is None)


async def _child(store: str, configs: str, most: int) -> None:
    async with Rig(json.loads(configs), Path(store), most) as rig:
        await rig.drop()

        async def signer(number: int) -> None:
            count = 0
            while True:
                count += 1
                with suppress(AllLevelsFailed, EmergencyRefused):
                    await rig.service.router.sign(f"{os.getpid()} {number} {count}".encode(), 5.0)
                    os.write(1, b"x")
                    continue
                return

        await asyncio.gather(*(signer(number) for number in range(64)))


if __name__ == "__main__":
    asyncio.run(_child(sys.argv[1], sys.argv[2], int(sys.argv[3])))
