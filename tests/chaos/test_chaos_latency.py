"""Latency, capacity, and the profiles that set both."""

from __future__ import annotations

import ctypes
import json
import shutil
import statistics
import threading
import time
from typing import Any

import pytest
from tests.support.paths import CHAOS, NOOP, PROFILES
from tests.support.pkcs11_client import CKR_DEVICE_MEMORY, CKR_OK, Module
from tests.support.scenarios import Bench, Control, ready, scenario_initialize


def scenario_latency(module: Module, count: int, sizes: list[int] | None = None) -> Any:
    """Milliseconds of each C_Sign, and of how late the machine wakes a thread that sleeps for one, measured in turn."""
    _slot, session, key = ready(module)
    times, late = [], []
    for i in range(count):
        started = time.perf_counter()
        time.sleep(0.001)
        late.append((time.perf_counter() - started) * 1e3 - 1)
        message = bytes(sizes[i % len(sizes)]) if sizes else b"message"
        started = time.perf_counter()
        assert module.sign(session, message)[0] == CKR_OK
        times.append((time.perf_counter() - started) * 1e3)
    others = []
    for _ in range(100):
        started = time.perf_counter()
        module.sign_init(session, key)
        others.append((time.perf_counter() - started) * 1e3)
    length = ctypes.c_ulong()
    query = []
    for _ in range(10):
        started = time.perf_counter()
        module("C_Sign", session, b"x", 1, None, ctypes.byref(length))
        query.append((time.perf_counter() - started) * 1e3)
    module("C_Finalize", None)
    return {"times": times, "late": statistics.mean(late), "others": min(others), "query": min(query)}


def scenario_capacity(module: Module, control: str, workers: int, each: int) -> Any:
    slot, main_session, _key = ready(module)
    sessions = [module.session(slot) for _ in range(workers)]
    rvs: list[int] = []

    def work(session: int) -> None:
        rvs.extend(module.sign(session, b"message")[0] for _ in range(each))

    pool = [threading.Thread(target=work, args=(s,)) for s in sessions]
    started = time.monotonic()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    seconds = time.monotonic() - started
    stats = Control(control)("stats")
    module("C_CloseSession", main_session)
    module("C_Finalize", None)
    return {"seconds": seconds, "rvs": rvs, "slot": stats["slots"][0], "sessions": stats["sessions"]}


def test_constant_latency_is_kept_and_costs_others_nothing(bench: Bench) -> None:
    latency = {"C_Sign": {"kind": "constant", "microseconds": 5000}}
    result = bench.noop(scenario_latency, {"count": 40}, latency=latency)
    assert min(result["times"]) >= 5.0
    assert min(result["times"]) < 7.0
    assert result["others"] < 1
    assert result["query"] < 4


@pytest.mark.parametrize(
    ("latency", "low", "high", "mean"),
    [
        ({"kind": "uniform", "minMicroseconds": 1000, "maxMicroseconds": 3000}, 1.0, 3.0, 2.0),
        (
            {"kind": "exponential", "offsetMicroseconds": 1000, "meanMicroseconds": 1000, "capMicroseconds": 5000},
            1,
            5,
            1.98,
        ),
        ({"kind": "lognormal", "meanMicroseconds": 2000, "sigma": 0.25}, 0.8, 5.0, 2.0),
        ({"kind": "lognormal", "medianMicroseconds": 2000, "sigma": 0.5}, 0.3, 12.0, 2.27),
    ],
    ids=lambda v: v["kind"] if isinstance(v, dict) else "",
)
def test_distributions(bench: Bench, latency: dict[str, Any], low: float, high: float, mean: float) -> None:
    result = bench.noop(scenario_latency, {"count": 300}, latency={"C_Sign": latency})
    times, late = result["times"], result["late"]
    assert min(times) >= low
    # A sleeping thread wakes a little late: 0.06 ms when idle, more when others want the processor.
    assert statistics.quantiles(times, n=4)[-1] < high + 2.0 + 3 * late
    assert mean * 0.85 < statistics.mean(times) < mean * 1.15 + 1.0 + 3 * late


def test_latency_per_byte(bench: Bench) -> None:
    latency = {"kind": "constant", "microseconds": 1000, "perByteMicroseconds": 100, "freeBytes": 64}
    times = bench.noop(scenario_latency, {"count": 30, "sizes": [10, 64, 114]}, latency={"C_Sign": latency})["times"]
    assert min(times[0::3]) < 3
    assert min(times[1::3]) < 3
    assert 6 <= min(times[2::3]) < 8


def test_capacity_bounds_what_is_served_at_once(bench: Bench) -> None:
    latency = {"C_Sign": {"kind": "constant", "microseconds": 20000}}
    arguments = {"control": str(bench.socket), "workers": 8, "each": 6}
    result = bench.noop(
        scenario_capacity, arguments, latency=latency, capacity={"servers": 3}, socket=str(bench.socket)
    )
    assert result["slot"]["servingMax"] == 3
    assert result["slot"]["waitingMax"] == 5
    assert result["slot"]["serving"] == result["slot"]["waiting"] == result["slot"]["refused"] == 0
    assert set(result["rvs"]) == {CKR_OK}
    assert result["sessions"] == 9
    # 48 requests, 3 at a time, 20 ms each: 320 ms whatever the host's threads do.
    assert result["seconds"] >= 0.319


def test_a_full_queue_overflows(bench: Bench) -> None:
    latency = {"C_Sign": {"kind": "constant", "microseconds": 1_000_000}}
    capacity = {"servers": 2, "queue": 1, "overflow": "CKR_DEVICE_MEMORY"}
    arguments = {"control": str(bench.socket), "workers": 8, "each": 1}
    result = bench.noop(scenario_capacity, arguments, latency=latency, capacity=capacity, socket=str(bench.socket))
    assert sorted(result["rvs"]) == [CKR_OK] * 3 + [CKR_DEVICE_MEMORY] * 5
    assert result["slot"]["refused"] == 5
    assert result["slot"]["waitingMax"] == 1


def test_profiles_do_what_their_names_say(bench: Bench) -> None:
    expected = {"cloudhsm-hsm2m-x2": 3000, "cloudhsm-hsm2m-x3": 4500, "cloudhsm-hsm2m-x6": 7000, "network-5ms": 25600}
    assert {p.stem for p in PROFILES.glob("*.json")} == {*expected, "yubihsm2", "cloudhsm"}
    for name, rate in expected.items():
        profile = json.loads((PROFILES / f"{name}.json").read_text())
        latency = profile["latency"]["C_Sign"]
        mean = latency.get("meanMicroseconds") or latency["microseconds"]
        assert abs(profile["capacity"]["servers"] / mean * 1e6 / rate - 1) < 0.01
    result = bench.noop(scenario_latency, {"count": 6}, profile="yubihsm2", profileDir=str(PROFILES))
    assert min(result["times"]) >= 105
    assert min(result["times"]) < 150


def test_a_profile_sets_the_rate_of_the_device(bench: Bench) -> None:
    arguments = {"control": str(bench.socket), "workers": 16, "each": 40}
    fields = {"profile": "cloudhsm-hsm2m-x2", "profileDir": str(PROFILES), "socket": str(bench.socket)}
    result = bench.noop(scenario_capacity, arguments, **fields)
    assert result["slot"]["servingMax"] == 12
    assert set(result["rvs"]) == {CKR_OK}
    assert 640 / result["seconds"] / 3000 < 1.1


def test_profiles_lie_next_to_the_module(bench: Bench) -> None:
    shutil.copy(CHAOS, bench.folder)
    shutil.copytree(PROFILES, bench.folder / "profiles")
    config = bench.config(NOOP, profile="network-5ms")
    assert bench.run(scenario_initialize, config, module=bench.folder / CHAOS.name).checked()["rv"] == CKR_OK
    own = bench.config(NOOP, profile="network-5ms", latency={"C_Sign": {"kind": "none"}})
    result = bench.run(scenario_latency, own, module=bench.folder / CHAOS.name, count=20).checked()
    assert min(result["times"]) < 3, "the file's own fields come after the profile's"
