"""A key manager on the no-op module, and loops long enough that one clock reading is nothing beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop
from bench.micro.kit import PerCall
from pytest_benchmark.fixture import BenchmarkFixture

import hsmcore
from hsmcore import KeyManager
from hsmcore_bench.harness.locate import NOOP_MODULE, native

ROUNDS = 20
MESSAGE = bytes(range(200))


@pytest.fixture(scope="session")
def message() -> bytes:
    return MESSAGE


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as made:
        yield made


@pytest.fixture
def manager(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[KeyManager]:
    """One worker, cache off unless the test asks for `max_cache_size`."""
    module = native(NOOP_MODULE)
    if module is None:
        pytest.skip(f"{NOOP_MODULE} was not built")
    monkeypatch.setenv("HSM_PIN", "0000")
    config = {"modulePath": str(module), "tokenLabel": "noop", "keyLabel": "noop-key", "sessions": 1}
    made = hsmcore.create_key_manager(
        {
            "keyManager": {
                "type": "pkcs11",
                "config": {**config, "pin": {"env": "HSM_PIN"}},
                "maxCacheSize": getattr(request, "param", 0),
            }
        }
    )
    runner.run(made.initialize())
    yield made
    runner.run(made.close())


@pytest.fixture
def per_call(benchmark: BenchmarkFixture) -> PerCall:
    """Measure a function that makes `calls` calls; `ns_per_call` joins the figures in the JSON file."""

    def measure(function: Callable[[], object], calls: int) -> None:
        benchmark.pedantic(function, rounds=ROUNDS, warmup_rounds=2)  # type: ignore[no-untyped-call]
        if benchmark.stats is not None:  # None under --benchmark-disable
            benchmark.extra_info["ns_per_call"] = round(benchmark.stats["median"] / calls * 1e9, 1)

    return measure
