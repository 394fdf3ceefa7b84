"""A sequencer under a steady load: transactions come at their rate, however long earlier ones take."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any, Final

import structlog
from solders.hash import Hash
from solders.transaction import VersionedTransaction

from hsmcore.errors import HsmError
from hsmcore_bench.demo.builder import Unsigned
from hsmcore_bench.demo.runner import CHUNK, Outcome

RATE: Final = 500  # transactions a second
BLOCK: Final = 100  # transactions
Tell = Callable[[str], None]
Sign = Callable[[Hash], Awaitable[tuple[Unsigned, bytes]]]
"""Builds a transaction on a blockhash and has it signed."""
Execute = Callable[[Unsigned, VersionedTransaction, Outcome], None]


@dataclass(slots=True)
class Played:
    """What happened in an act, in seconds from the first transaction."""

    outcome: Outcome = field(default_factory=Outcome)
    events: list[dict[str, Any]] = field(default_factory=list)
    signed_by: Counter[str] = field(default_factory=Counter)
    signed_at: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def longest_pause(self) -> float:
        """Without a signature, in seconds."""
        times = sorted(self.signed_at)
        return max((later - earlier for earlier, later in pairwise(times)), default=0.0)

    def summary(self) -> dict[str, Any]:
        """What every act says in --json."""
        return {
            **self.outcome.counts(),
            "ratePerSecond": RATE,
            "signedBy": dict(self.signed_by),
            "events": self.events,
            "longestPauseMs": round(self.longest_pause * 1e3, 2),
            "seconds": round(self.seconds, 3),
        }


async def steady_block(until: float, blockhash: Hash, outcome: Outcome, sign: Sign, execute: Execute) -> None:
    """One block's transactions, the last of them at `until` (of perf_counter); what is signed is executed as soon as
    the block is over."""
    signing: list[asyncio.Future[tuple[Unsigned, bytes]]] = []
    begun = until - BLOCK / RATE
    for number in range(BLOCK):
        outcome.built += 1
        signing.append(asyncio.ensure_future(sign(blockhash)))
        await asyncio.sleep(max(0.0, begun + (number + 1) / RATE - perf_counter()))
    for number, task in enumerate(signing):
        try:
            transfer, signature = await task
        except HsmError as error:
            name = type(error).__name__
            outcome.failed[name] = outcome.failed.get(name, 0) + 1
            continue
        execute(transfer, transfer.attach(signature), outcome)
        if number % CHUNK == CHUNK - 1:
            await asyncio.sleep(0)


def silent(_logger: Any, _method: str, _event: Any) -> Any:
    """A log processor that keeps nothing: an outage that is made on purpose would fill the log."""
    raise structlog.DropEvent
