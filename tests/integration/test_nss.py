"""NSS softoken and its quirks: raw EC points, exact buffers, CKR_HOST_MEMORY after a logout."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from tests.support.chaos import Chaos, Wrapped, needs_chaos
from tests.support.loops import one_loop
from tests.support.managers import counters, opened
from tests.support.nss import KEYS, Nss, make_nss
from tests.support.terminal import PROGRAM

import hsmcore
from hsmcore.errors import PinIncorrect


@pytest.fixture(scope="module")
def nss(tmp_path_factory: pytest.TempPathFactory) -> Nss:
    """A database of the tests' own."""
    return make_nss(tmp_path_factory.mktemp("nss"))


pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("key", KEYS)
@one_loop
async def test_it_signs(nss, key, isolation):
    async with opened(nss.config(key, isolation=isolation, verifySignatures="always")) as manager:
        messages = [os.urandom(size) for size in (1, 63, 64, 1232, 9000)] * 10
        signatures = await manager.sign_many(messages)
        assert all(nss.is_good(key, *pair) for pair in zip(messages, signatures, strict=True))
        assert await manager.verify(messages[0], signatures[0])
        assert not await manager.verify(messages[1], signatures[0])
        assert counters(manager)["recoveries"] == {}


@one_loop
async def test_it_is_recognized_without_being_named(nss):
    config = nss.config("ed25519")
    del config["sequencer"]["keyManager"]["config"]["quirks"]
    async with opened(config) as manager:
        assert manager._path.member.engine.token()["quirks"] == "nss"
        assert nss.is_good("ed25519", b"x", await manager.sign(b"x"))


@one_loop
async def test_a_wrong_pin_is_refused_once(nss, tmp_path):
    wrong = tmp_path / "pin"
    wrong.touch(mode=0o600)
    wrong.write_text("not it")
    manager = hsmcore.create_key_manager(nss.config("ed25519", pin={"file": str(wrong)}))
    for _attempt in range(2):
        with pytest.raises(PinIncorrect) as caught:
            await manager.initialize()
    assert "another attempt" in str(caught.value)
    async with opened(nss.config("ed25519")) as manager:
        assert nss.is_good("ed25519", b"x", await manager.sign(b"x"))


@needs_chaos
@pytest.mark.parametrize("action", ["logout", "kill-all-sessions", "wrong-signature"])
@pytest.mark.parametrize("key", KEYS)
@one_loop
async def test_it_recovers(nss, tmp_path, key, action):
    chaos = Chaos(tmp_path, Wrapped(nss.module, nss.settings(key)))
    settings = {"moduleArgs": f"{chaos.args} args={nss.args}", "verifySignatures": "always"}
    async with opened(chaos.config(settings=settings)) as manager:
        assert nss.is_good(key, b"before", await manager.sign(b"before"))
        # After a logout NSS says CKR_HOST_MEMORY, which of any other token would be the end of it.
        chaos.fault("C_Sign" if action == "wrong-signature" else "C_SignInit", action)
        for number in range(20):
            message = f"{action} {number}".encode()
            assert nss.is_good(key, message, await manager.sign(message))
        assert sum(counters(manager)["recoveries"].values()) >= 1
        if action == "logout":
            assert "RELOGIN" in counters(manager)["recoveries"]
            assert chaos.calls("C_Login") == 2
        assert chaos.stats()["skipped"] == 0


def test_a_key_for_key_agreement_is_not_shown_as_one_that_signs(tmp_path):
    """NSS's X25519 key has the key type of EC keys, and the OID that others give to Ed25519."""
    nss = make_nss(tmp_path)
    noise = tmp_path / "noise"
    noise.write_bytes(os.urandom(64))
    made = ["certutil", "-G", "-k", "ec", "-q", "curve25519", "-d", f"sql:{tmp_path}", "-f", nss.pin_file, "-z", noise]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    (tmp_path / "hsm.json").write_text(json.dumps(nss.config("ed25519")))
    command = [*PROGRAM, "keys", "list", "--json", "--config", tmp_path / "hsm.json"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    algorithms = {key["id"]: key["algorithm"] for key in shown}
    assert {name: algorithms.pop(identity) for name, identity in KEYS.items()} == {name: name for name in KEYS}
    assert list(algorithms.values()) == [None]
