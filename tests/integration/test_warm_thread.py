"""What the thread that keeps a processor awake does for a lone caller: beside a device of 5 ms nothing at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.managers import until

import hsmcore
from hsmcore_bench.harness.locate import CHAOS_MODULE, NOOP_MODULE, native
from hsmcore_bench.suite.devices import DEVICES

needs_modules = pytest.mark.skipif(native(CHAOS_MODULE) is None or native(NOOP_MODULE) is None, reason="not built")


def rounds_of_the_warmer() -> int:
    """So often it has gone to sleep: a thread that is woken once does so once more."""
    for task in Path("/proc/self/task").iterdir():
        if task.joinpath("comm").read_text().strip() == "hsm-warmer":
            lines = task.joinpath("status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))
    return 0


@pytest.fixture
def manager(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HSM_PIN", "0000")
    configuration = tmp_path / "device.json"
    configuration.write_text(json.dumps(DEVICES[request.param].configuration(str(native(NOOP_MODULE)))))
    config = {"modulePath": str(native(CHAOS_MODULE)), "moduleArgs": f"config={configuration}", "sessions": 2,
              "tokenLabel": "noop", "keyLabel": "noop-key", "pin": {"env": "HSM_PIN"}}  # fmt: skip
    return hsmcore.create_key_manager({"keyManager": {"type": "pkcs11", "config": config, "maxCacheSize": 0}})


@needs_modules
@pytest.mark.parametrize("manager", ["5ms"], indirect=True)
async def test_it_sleeps_beside_a_slow_device(manager):
    async with manager:
        await until(lambda: rounds_of_the_warmer() > 0)
        before = rounds_of_the_warmer()
        for number in range(20):
            await manager.sign(b"lone %d" % number)
        assert rounds_of_the_warmer() == before


@needs_modules
@pytest.mark.parametrize("manager", ["transparent"], indirect=True)
async def test_it_wakes_beside_a_fast_one(manager):
    """The same caller: what the test above counts is what it does here."""
    async with manager:
        await until(lambda: rounds_of_the_warmer() > 0)
        before, number = rounds_of_the_warmer(), 0
        while rounds_of_the_warmer() == before:
            await manager.sign(b"lone %d" % (number := number + 1))
