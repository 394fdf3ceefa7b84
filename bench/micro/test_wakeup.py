"""One in flight: submit, wake a worker, wake the loop. What a lone caller pays beyond the HSM."""

from __future__ import annotations

import asyncio

import pytest
from bench.micro.kit import PerCall
from pytest_benchmark.fixture import BenchmarkFixture

from hsmcore import KeyManager

CALLS = 500


@pytest.mark.benchmark(group="wake-up")
def test_one_in_flight(per_call: PerCall, runner: asyncio.Runner, manager: KeyManager, message: bytes) -> None:
    async def loop() -> None:
        for _ in range(CALLS):
            await manager.sign(message)

    per_call(lambda: runner.run(loop()), CALLS)


@pytest.mark.benchmark(group="wake-up")
def test_after_a_pause(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, manager: KeyManager, message: bytes
) -> None:
    """Workers sleep by then: a spin that ended is not counted as speed."""

    def pause() -> tuple[tuple[()], dict[str, object]]:
        runner.run(asyncio.sleep(0.01))
        return (), {}

    benchmark.pedantic(lambda: runner.run(manager.sign(message)), setup=pause, rounds=50)  # type: ignore[no-untyped-call]


@pytest.mark.benchmark(group="wake-up")
def test_the_loop_alone(per_call: PerCall, runner: asyncio.Runner) -> None:
    """For comparison: a future that another callback of the same loop resolves."""

    async def loop() -> None:
        here = asyncio.get_running_loop()
        for _ in range(CALLS):
            future = here.create_future()
            here.call_soon(future.set_result, None)
            await future

    per_call(lambda: runner.run(loop()), CALLS)
