"""One measured phase: many messages, a fixed number of them in flight, nothing else on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Protocol

from hsmcore.errors import HsmError


class Signer(Protocol):
    """The part of a key manager that is needed here."""

    async def sign(self, message: bytes, timeout: float | None = None) -> bytes: ...


@dataclass(slots=True)
class Phase:
    """What one phase gave. Signatures stand in the order of the messages; None where signing failed."""

    signatures: list[bytes | None]
    latencies_ns: list[int] = field(default_factory=list)
    errors: list[HsmError] = field(default_factory=list)
    elapsed_ns: int = 0

    @property
    def rate(self) -> float:
        """Signatures a second."""
        return len(self.latencies_ns) / self.elapsed_ns * 1e9 if self.elapsed_ns else 0.0


async def sign_all(signer: Signer, messages: Sequence[bytes], in_flight: int) -> Phase:
    """Sign every message; a failure is recorded and the others go on."""
    phase = Phase([None] * len(messages))
    work = iter(enumerate(messages))
    began = perf_counter_ns()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(in_flight, len(messages))):
            group.create_task(_take(signer, work, phase))
    phase.elapsed_ns = perf_counter_ns() - began
    return phase


async def _take(signer: Signer, work: Iterator[tuple[int, bytes]], phase: Phase) -> None:
    sign, done = signer.sign, phase.latencies_ns.append
    for index, message in work:
        began = perf_counter_ns()
        try:
            phase.signatures[index] = await sign(message)
        except HsmError as error:
            phase.errors.append(error)
        else:
            done(perf_counter_ns() - began)
