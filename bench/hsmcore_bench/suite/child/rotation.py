"""A key is rotated while hsmcore signs as fast as it can."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

from hsmcore_bench.suite.child.protocol import Job
from hsmcore_bench.suite.child.recovery import Load, Recovering, figures

SIGNS_WITHIN_SECONDS = 5.0  # of the end of the rotation


@dataclass(slots=True)
class TwoKeys(Load):
    """Ed25519 has one signature per message and key: what the first key did not make is kept, to be verified later."""

    others: dict[bytes, set[bytes]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def unexpected(self, message: bytes, signature: bytes) -> bool:
        self.others.setdefault(message, set()).add(signature)
        self.changed.set()
        return True


class Rotating(Recovering):
    """A slice of S seconds is S seconds of signing, a rotation that begins, and S seconds more."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._pool = list(self._expected)

    async def _interrupted(self, seconds: float) -> dict[str, Any]:
        manager = self._manager
        self._expected = await self._sign_all(self._pool)
        load = TwoKeys(manager, self._expected)
        callers = asyncio.gather(*(load.caller(own) for own in self._own))
        try:
            await asyncio.sleep(seconds)
            began = perf_counter_ns()
            rotation = asyncio.ensure_future(manager.rotate_key("benchmark"))
            await asyncio.sleep(seconds)
            new = await rotation
            await asyncio.wait_for(load.changed.wait(), SIGNS_WITHIN_SECONDS)
        finally:
            load.over = True
            await callers
        wrong = load.wrong + await self._not_made_by(new, load.others)
        return {**figures(load.ended, began, seconds), "failed": load.failed, "wrong": wrong}

    async def _not_made_by(self, key_id: str, signatures: Mapping[bytes, set[bytes]]) -> int:
        return sum([not await self._manager.verify(m, s, key_id=key_id) for m, own in signatures.items() for s in own])
