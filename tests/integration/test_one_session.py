"""A module that bears one session, such as tpm2-pkcs11: it gets one, whatever the configuration says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.chaos import TPM2, Chaos, supervisor_of, wrap
from tests.support.managers import counters, opened, until
from tests.support.verifiers import is_good

import hsmcore

pytestmark = [pytest.mark.integration, pytest.mark.chaos]


def config_of(chaos: Chaos, isolation: str) -> dict[str, Any]:
    """Four sessions, and no quirks: the module is recognized by what it says of itself."""
    chaos.write(library=TPM2)
    config = chaos.config(settings={"sessions": 4, "isolation": isolation, "hangAfterMs": 200})
    del config["sequencer"]["keyManager"]["config"]["quirks"]
    return config


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_it_signs_with_one_session(world, tmp_path, isolation):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(config_of(chaos, isolation)) as manager:
        messages = [f"caller {number}".encode() for number in range(100)]
        signatures = await asyncio.gather(*(manager.sign(message) for message in messages))
        for message, signature in zip(messages, signatures, strict=True):
            assert is_good("ed25519", manager.public_key, message, signature)
        assert counters(manager)["workers"] == 1
        assert chaos.calls("C_OpenSession") == 2  # one of them logs in


async def test_a_host_whose_one_session_hangs_is_started_again(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(config_of(chaos, "process")) as manager:
        supervisor = supervisor_of(manager)
        chaos.fault("C_Sign", "hang", forever=True)
        with pytest.raises(hsmcore.HsmError):
            await manager.sign(b"it hangs", timeout=0.3)
        await until(lambda: supervisor.restarts == 1)
        assert is_good("ed25519", manager.public_key, b"next", await manager.sign(b"next"))
