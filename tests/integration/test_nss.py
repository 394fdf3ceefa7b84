"""NSS softoken and its quirks: raw EC points, exact buffers, CKR_HOST_MEMORY after a logout."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.nss import KEYS, Nss, make_nss
from tests.support.terminal import PROGRAM


@pytest.fixture(scope="module")
def nss(tmp_path_factory: pytest.TempPathFactory) -> Nss:
    """A database of the tests' own."""
    return make_nss(tmp_path_factory.mktemp("nss"))


pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]


@one_loop
async def test_it_is_recognized_without_being_named(nss):
    config = nss.config("ed25519")
    del config["sequencer"]["keyManager"]["config"]["quirks"]
    async with opened(config) as manager:
        assert manager._path.member.engine.token()["quirks"] == "nss"
        assert nss.is_good("ed25519", b"x", await manager.sign(b"x"))


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
