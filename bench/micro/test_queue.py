"""Through the rings and back, with a module that costs nothing."""

from __future__ import annotations

import asyncio

import pytest
from bench.micro.kit import PerCall

from hsmcore import KeyManager


@pytest.mark.benchmark(group="queue: awaited sign")
@pytest.mark.parametrize("in_flight", [8, 64, 256, 1024])
def test_sign(per_call: PerCall, runner: asyncio.Runner, manager: KeyManager, message: bytes, in_flight: int) -> None:
    each = 8_192 // in_flight
    own = [message[:-2] + number.to_bytes(2, "little") for number in range(in_flight)]

    async def caller(mine: bytes) -> None:
        for _ in range(each):
            await manager.sign(mine)

    async def all_callers() -> None:
        await asyncio.gather(*map(caller, own))

    per_call(lambda: runner.run(all_callers()), each * in_flight)


@pytest.mark.benchmark(group="queue: sign_many")
@pytest.mark.parametrize("size", [1, 16, 256, 1024, 4096])
def test_sign_many(per_call: PerCall, runner: asyncio.Runner, manager: KeyManager, message: bytes, size: int) -> None:
    batch = [message[:-2] + number.to_bytes(2, "little") for number in range(size)]
    times = max(1, 4_096 // size)

    async def batches() -> None:
        for _ in range(times):
            await manager.sign_many(batch)

    per_call(lambda: runner.run(batches()), size * times)


@pytest.mark.benchmark(group="queue: message size")
@pytest.mark.parametrize("size", [32, 200, 1_232, 16_000])
def test_message_size(per_call: PerCall, runner: asyncio.Runner, manager: KeyManager, size: int) -> None:
    batch = [number.to_bytes(4, "little") + bytes(size - 4) for number in range(256)]

    async def once() -> None:
        assert len((await manager.sign_many(batch))[0]) == 64

    per_call(lambda: runner.run(once()), len(batch))
