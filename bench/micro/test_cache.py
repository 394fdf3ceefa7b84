"""The signature cache: alone in C, through the binding, and through `await km.sign`."""

from __future__ import annotations

import asyncio

import pytest
from bench.micro.kit import PerCall
from pytest_benchmark.fixture import BenchmarkFixture

from hsmcore import KeyManager, _native

ENTRIES = 1_024
KEY = 0
SIGNATURE = bytes(64)


def messages(count: int, size: int) -> list[bytes]:
    return [number.to_bytes(4, "little") + bytes(size - 4) for number in range(count)]


@pytest.fixture
def full() -> _native.Cache:
    """A cache that holds as much as it may."""
    cache = _native.Cache(ENTRIES)
    for message in messages(ENTRIES, 200):
        assert cache.put(KEY, message, SIGNATURE)
    return cache


@pytest.mark.benchmark(group="cache")
@pytest.mark.parametrize("size", [32, 200, 1_232, 16_000])
def test_hit_in_c(benchmark: BenchmarkFixture, size: int) -> None:
    """One held message again and again: hashing and comparing all its bytes."""
    cache = _native.Cache(1)
    (message,) = messages(1, size)
    cache.put(KEY, message, SIGNATURE)
    calls = 10_000
    spent = [cache.time_hits(KEY, message, calls) for _ in range(10)]
    benchmark.pedantic(cache.time_hits, (KEY, message, calls), rounds=10)  # type: ignore[no-untyped-call]
    benchmark.extra_info["ns_per_call"] = round(sorted(spent)[5] / calls, 1)


@pytest.mark.benchmark(group="cache")
def test_hit_through_the_binding(per_call: PerCall, full: _native.Cache) -> None:
    held = messages(ENTRIES, 200)

    def hits() -> None:
        for message in held:
            full.get(KEY, message)

    per_call(hits, ENTRIES)
    assert full.stats()["hits"] >= ENTRIES


@pytest.mark.benchmark(group="cache")
def test_miss(per_call: PerCall, full: _native.Cache) -> None:
    unknown = messages(2 * ENTRIES, 200)[ENTRIES:]

    def misses() -> None:
        for message in unknown:
            full.get(KEY, message)

    per_call(misses, ENTRIES)
    assert full.stats()["hits"] == 0


@pytest.mark.benchmark(group="cache")
def test_put_that_evicts(per_call: PerCall, full: _native.Cache) -> None:
    """More messages than fit, in turn: each one is new and pushes the oldest out, wiping it."""
    unknown = messages(4 * ENTRIES, 200)[ENTRIES:]

    def puts() -> None:
        for message in unknown:
            full.put(KEY, message, SIGNATURE)

    per_call(puts, len(unknown))
    assert full.stats()["entries"] == ENTRIES
    assert full.stats()["evictions"] >= len(unknown)


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
