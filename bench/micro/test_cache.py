"""The signature cache through `await km.sign`. `hsmcore-cachebench` times it alone."""

from __future__ import annotations

import asyncio

import pytest
from bench.micro.kit import PerCall

from hsmcore import KeyManager

ENTRIES = 1_024


def messages(count: int, size: int) -> list[bytes]:
    return [number.to_bytes(4, "little") + bytes(size - 4) for number in range(count)]


@pytest.mark.benchmark(group="cache")
@pytest.mark.parametrize("manager", [10_000], indirect=True)
def test_awaited_hit(per_call: PerCall, runner: asyncio.Runner, manager: KeyManager) -> None:
    held = messages(ENTRIES, 200)
    runner.run(manager.sign_many(held))

    async def hits() -> None:
        for message in held:
            await manager.sign(message)

    async def counted() -> int:
        return int(manager.get_cache_stats()["hits"])

    per_call(lambda: runner.run(hits()), ENTRIES)
    assert runner.run(counted()) >= ENTRIES
