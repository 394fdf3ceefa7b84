"""The note on a key's token, by other makers' modules: they keep it, and a host that knows nothing reads it."""

from __future__ import annotations

import pytest
from tests.contract.rigs.opencryptoki import OpenCryptokiProcess
from tests.contract.rigs.p11kit import P11KitClientProcess, P11KitProxyProcess
from tests.contract.rigs.tpm2 import Tpm2Process
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.policed import ordered

import hsmcore

pytestmark = pytest.mark.integration
KEEPERS = [OpenCryptokiProcess, P11KitClientProcess, P11KitProxyProcess, Tpm2Process]


@pytest.mark.parametrize("rig", KEEPERS, indirect=True, scope="session")
@one_loop
async def test_a_note_is_kept_and_found(rig, tmp_path, monkeypatch):
    def config(name):
        return rig.config(policy={"kinds": ["block"]}, stateFile=str(tmp_path / name))

    async with opened(config("one.db")) as manager:
        await manager.sign(ordered(1))
        own = manager._background._own
        await own.look()
        await own._scope.finish()
        await manager.sign(ordered(2))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other-home"))
    with pytest.raises(hsmcore.StoreBehind, match=r"one\.db.*says the key's token"):
        await hsmcore.create_key_manager(config("two.db")).initialize()
