"""Where a key manager keeps its state if the configuration does not say so, and what it finds there."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import structlog
from tests.support.loops import one_loop
from tests.support.managers import opened

import hsmcore
from hsmcore.config import load
from hsmcore.manager.rotation.store import Rotations
from hsmcore.serve.ledger import Ledger
from hsmcore.state import Approval, Approvals, Desired, Keys, Store

pytestmark = pytest.mark.integration


@one_loop
async def test_the_log_names_the_store_and_the_audit_log(world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config = world.config(keyRotation={"overlapDays": 1})
    path = load(config).key_manager.state_path
    assert path.parent == tmp_path / "hsmcore"
    with structlog.testing.capture_logs() as said:
        async with opened(config):
            assert path.is_file()
        config["sequencer"]["keyManager"] |= {"auditLogFile": str(tmp_path / "audit.log")}
        del config["sequencer"]["keyManager"]["keyRotation"]
        async with opened(config):
            pass
    files = [(line["state_store"], line["audit_log"]) for line in said if line["event"] == "key manager opens"]
    assert files == [(str(path), None), (None, str(tmp_path / "audit.log"))]


@one_loop
async def test_configurations_share_no_store_unless_they_did(fresh_token, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    one, other = (fresh_token().config(keyRotation={"overlapDays": 1}) for _ in range(2))
    async with opened(one) as first, opened(other) as second:
        assert first.public_key != second.public_key
    path = load(one).key_manager.state_path
    path.rename(path.with_name("hsmcore-state.db"))
    with structlog.testing.capture_logs() as said:
        async with opened(one) as manager:
            await manager.sign(b"x")
    assert [line["log_level"] for line in said if "all configurations shared" in line["event"]] == ["warning"]
    assert not path.exists()


@one_loop
async def test_no_second_ring_of_a_key_is_begun_unasked(fresh_token, tmp_path, monkeypatch):
    """As when a cluster is named by its id now, no longer by its address."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config = fresh_token().config(keyRotation={"overlapDays": 1})
    async with opened(config):
        path = load(config).key_manager.state_path
    before = path.rename(path.with_name("hsmcore-state-softhsm-before-00000000.db"))
    with pytest.raises(hsmcore.KeyMismatch, match=f"lies in {before}"):
        await hsmcore.create_key_manager(config).initialize()
    for chosen in (before, tmp_path / "new.db"):
        config["sequencer"]["keyManager"]["stateFile"] = str(chosen)
        async with opened(config) as manager:
            assert await manager.sign(b"x")


@one_loop
async def test_orders_for_members_and_levels_that_are_gone_block_nothing(world, tmp_path):
    store = await Store.open(tmp_path / "state.db")
    for name, value in (("drain:softhsm:gone", "1"), ("readmit:softhsm:gone", "7"), ("force", "secondary")):
        await Desired(store).set(name, value, "it was there then")
    await store.close()
    config = world.config(stateFile=str(tmp_path / "state.db"), failover={"emergencyModeEnabled": True})
    async with opened(config) as manager:
        assert (await manager.sign_with_receipt(b"x")).level == "primary"
        assert manager.describe()["failover"]["forced"] is None


@one_loop
async def test_what_the_console_shows_of_approvals_proves_nothing(world, tmp_path):
    config = load(world.config(stateFile=str(tmp_path / "state.db"), keyRotation={"overlapDays": 1}))
    store = await Store.open(tmp_path / "state.db")
    current = await Keys(store).begin("aa" * 8, b"\1" * 32, "ed25519", "key", ["softhsm:primary"], "as configured")
    rotation = await Rotations(store).begin("manual", current.version, "key-2", None)
    await Approvals(store).add(rotation.id, Approval("alice", "a proof"))
    await store.close()
    ledger = Ledger(config)
    shown = await ledger.view()
    await ledger.close()
    assert shown["rotation"]["approvals"] == {str(rotation.id): [{"approver": "alice", "method": "signature"}]}
    assert "a proof" not in str(shown)


@one_loop
async def test_a_ring_that_is_not_genuine_is_no_reason_to_look_for_another(fresh_token, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config = fresh_token().config(keyRotation={"overlapDays": 1})
    config["sequencer"]["stateSecret"] = "s" * 32
    async with opened(config):
        path = load(config).key_manager.state_path
    with closing(sqlite3.connect(path)) as forger:
        forger.execute("UPDATE key_version SET label = 'forged'")
        forger.commit()
    async with opened(config) as manager:
        assert await manager.sign(b"x")
