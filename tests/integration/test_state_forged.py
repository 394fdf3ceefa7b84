"""A writer of the sealed state store beside a running key manager: no key is destroyed, made or activated, no approval
counts, no order is obeyed, no budget is given; signing goes on, and each forged state is told."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from sqlalchemy import insert
from tests.integration.test_rotation import M, rules
from tests.integration.test_rotation_forged import APPROVERS, BOB, CAROL, FORGERIES, Forger
from tests.support.forged import UNSEALED, Original, add_fleet, forgeries, unsealed
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start, until

import hsmcore
from hsmcore.config import Secret
from hsmcore.failover import health
from hsmcore.failover.events import Event
from hsmcore.failover.history import History
from hsmcore.manager import background, notices
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.manager.rotation import service
from hsmcore.manager.rotation.approvals import by_signature, statement
from hsmcore.manager.rotation.steps import consent
from hsmcore.metrics import read
from hsmcore.metrics.catalog import STORE_NOT_GENUINE
from hsmcore.recovery import marks as alone
from hsmcore.state import Desired, Store, StoreBehind, StoreNotGenuine
from hsmcore.state.schema import BACKUP, SPENT, insert_row
from hsmcore.state.sealed_rows import SEALED, fingerprint

pytestmark = [pytest.mark.integration, one_loop]
SECRET = "s" * 32
LEAST = {
    "key_version": 50, "rotation_setting": 15, "rotation": 60, "rotation_step": 30, "approval": 20, "backup": 30,
    "emergency_episode": 40, "desired_state": 20, "watermark": 20, "spent": 10,
    "fleet": 40, "fleet_host": 30, "fleet_floor": 13, "role": 20, "audit_mark": 15, "": 30,
}  # fmt: skip
"""States that SQLite takes in the store of the test: nearly 300 in all. unit/test_state_seal.py finds each."""
SOME = "some of each"
"""As a table: every eighth state of each table, from another one in each. All are tried by `make check-deep`."""
BLOCK = {"overlapDays": 1, "destroyAfterDays": 0, "approvals": 2, "approvers": APPROVERS}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for module, name in ((service, "LOOK_SECONDS"), (background, "_LOOK_SECONDS"), (health, "FOLLOW_S"),
                         (health, "TICK_S")):  # fmt: skip
        monkeypatch.setattr(module, name, 0.005)
    monkeypatch.setattr(consent, "LOOK_AGAIN_NS", 5_000_000)


@pytest.fixture
def token(fresh_token):
    """The key that signs, one of another program, and one whose label looks like a rotation's."""
    names = ("ed25519", "unrelated", "ed25519-key-0a1b2c3d")
    return fresh_token(*({"name": name, "kind": "ed25519", "label": f"{name}-key"} for name in names[:2]),
                       {"name": "lookalike", "kind": "ed25519", "label": names[2]})  # fmt: skip


def sealed(token, tmp_path, secret=SECRET, *, audit=True, **block):
    config = token.config(**rules(tmp_path, **block))
    if audit:
        config["sequencer"]["keyManager"]["auditLogFile"] = str(tmp_path / "audit" / "audit.log")
    # A slow machine is no reason for a request to fail.
    config["sequencer"]["keyManager"] |= {"failover": {"emergencyModeEnabled": True}, "requestTimeoutMs": 30_000}
    if secret is not None:
        config["sequencer"]["stateSecret"] = secret
    return config


async def marked(manager):
    """Until the changes so far have their mark: who puts back what was before it has an older store."""
    found = manager._background._marks

    async def settled():
        return found._seen == await found._store.run(lambda connection: fingerprint(connection, alone._WATCHED))

    await becomes(settled)


class Watched:
    """A key manager whose keys and looks are counted."""

    def __init__(self, manager, monkeypatch):
        self.manager, self.path, self.rotation = manager, manager._path, manager._background.rotation
        self.told, self.looks = [], [0, 0]
        manager.on("store-not-genuine", lambda details: self.told.append(details["scope"]))
        for number, (owner, name) in enumerate(((self.rotation, "_work"), (self.path.health, "_follow"))):
            self._count(monkeypatch, number, owner, name)

    def _count(self, monkeypatch, number, owner, name):
        original = getattr(owner, name)

        async def counted():
            try:
                await original()
            finally:
                self.looks[number] += 1

        monkeypatch.setattr(owner, name, counted)

    async def looked(self):
        """Until rotation and health monitor have each begun and ended a look."""
        before = tuple(self.looks)
        await until(lambda: all(now > then + 1 for now, then in zip(self.looks, before, strict=True)))

    async def state(self):
        """What no forged row may change."""
        levels = self.path.levels
        return {
            "keys": {record.id for record in await self.path.member.control.list_keys()},
            "signs": await self.manager.get_current_key_id(),
            "signature": await self.manager.sign(M),
            "states": {key.id: key.state for key in list(self.manager.keys())},
            "levels": (levels.mode, levels.active, levels.forced),
            "drained": [member.drained for member in levels.members],
        }


async def approve(manager, *names):
    """Approve the rotation that waits."""
    rotation = manager._background.rotation

    async def waits():
        return any(entry.run.step == "approve" for entry in await rotation.rotations.open())

    await becomes(waits)
    entry = next(each for each in await rotation.rotations.open() if each.run.step == "approve")
    old = next(key for key in await rotation.keys.all() if key.version == entry.old)
    text = statement(entry, old)
    for approver, key in zip(rotation._rules.approvers, (BOB, CAROL), strict=True):
        if approver.name in names:
            await rotation._approvals.add(entry.id, by_signature(approver, text, key.sign(text).signature))
    return entry.id


def some(tables, states):
    return [state for number, table in enumerate(tables) for state in [*states(table)][number % 4 :: 8]]


@pytest.mark.slow("looks of a running key manager at each forged state")
@pytest.mark.parametrize("table", [SOME, *(pytest.param(table, marks=pytest.mark.deep) for table in LEAST)])
async def test_no_forged_state_has_an_effect_and_each_is_told(token, tmp_path, monkeypatch, table):
    """A rotation in its overlap, one that has one of two approvals, an emergency budget, orders."""
    async with opened(sealed(token, tmp_path, **BLOCK)) as manager:
        rotating = start(manager.rotate_key())
        await approve(manager, "bob", "carol")
        await rotating
        desired = Desired(manager._background._store)
        await desired.set("rotate", "now", "again")
        waiting = await approve(manager, "bob")
        await desired.set("drain:another", "yes", "no member of this one")
        backup = {"key_id": "01", "public_key": "01", "place": "p", "name": "n", "method": "wrapped", "sha256": "00"}
        await manager._background._store.run(lambda on: insert_row(on, BACKUP, **backup, made_ns=1))
        mark = Watermark(manager._background._store, "host:1")
        await mark.require(PayloadPlace("chain/block", 1, "ab"))
        await manager._background._store.run(lambda on: on.execute(insert(SPENT).values(name="a", minute=1, amount=1)))
        await manager._background._store.run(add_fleet)
        budget = manager._path.budget
        await budget.spend()
        watched = Watched(manager, monkeypatch)
        await watched.looked()
        await marked(manager)
        before, original, tried = await watched.state(), Original(tmp_path / "state.db"), Counter()
        assert len(before["keys"]) == 4
        for forgery in some(LEAST, forgeries) if table == SOME else forgeries(table):
            watched.told.clear()
            if original.forge(forgery):
                tried[forgery.table] += 1
                expected = {forgery.scope} if forgery.scope else set(SEALED)
                await until(lambda expected=expected: set(watched.told) >= expected)
                assert set(watched.told) == expected, forgery.name
                await watched.looked()
                assert await watched.state() == before, forgery.name
                if "budget" in expected:
                    with pytest.raises(StoreNotGenuine):
                        await budget._reserve(1)
                if "policy" in expected:
                    with pytest.raises(StoreNotGenuine):
                        await mark.require(PayloadPlace("chain/block", 2, "ab"))
            original.put_back()
            await until(lambda: not manager._background.store_problems)
        assert tried.keys() == LEAST.keys() if table == SOME else tried[table] >= LEAST[table]
        steps = await watched.rotation.rotations.steps(waiting)
        assert {step["step"] for step in steps} == {"approve"}
        assert steps[-1]["details"]["approvedBy"] == ["bob"]
        records = [record async for record in manager.audit.query(match={"operation": "store-not-genuine"})]
        assert len(records) >= tried.total()


@pytest.mark.parametrize("table", [SOME, *(pytest.param(table, marks=pytest.mark.deep) for table in UNSEALED)], ids=str)
async def test_rows_that_are_not_sealed_lead_to_no_act(token, tmp_path, monkeypatch, table):
    """History, reports and the outbox may hold anything: signing, rotation and orders go on, also the telling."""
    monkeypatch.setattr(notices, "_LOOK_SECONDS", 0.005)
    monkeypatch.setattr(notices, "send", lambda url, title, body: "")
    config = sealed(token, tmp_path, **BLOCK)
    config["sequencer"]["keyManager"]["notices"] = {"targets": ["jsons://127.0.0.1:9/nowhere"]}
    async with opened(config) as manager:
        watched, history = Watched(manager, monkeypatch), History(manager._background._store)
        before, original, tried = await watched.state(), Original(tmp_path / "state.db"), 0
        assert await manager._background.notices.announce("failure", "a title", "a body", "an occasion")
        for forgery in some(UNSEALED, unsealed) if table is SOME else unsealed(table):
            await history.note(Event("emergency-reset", reason="never was", details={"reserved": 1}))
            tried += original.write(forgery)
            await watched.looked()
            assert await watched.state() == before, forgery.name
        assert (tried > 9, watched.told) == (True, [])
        original._write(lambda on: on.execute("UPDATE key_version SET note = 'forged'"))
        await until(lambda: watched.told == ["ring"])


@pytest.mark.parametrize("approvals", [0, 2])
async def test_rows_that_order_a_destruction_are_not_followed(token, tmp_path, monkeypatch, approvals):
    """Those of test_rotation_forged.py, which there fail at the last check."""
    forger = Forger(tmp_path)
    async with opened(sealed(token, tmp_path, **{**BLOCK, "approvals": approvals, "overlapDays": 0})) as manager:
        watched = Watched(manager, monkeypatch)
        await marked(manager)
        before, original = await watched.state(), Original(tmp_path / "state.db")
        for forge in FORGERIES:
            for name in ("unrelated", "lookalike", "ed25519"):
                watched.told.clear()
                forge(forger, token.keys[name])
                await until(lambda: "ring" in watched.told)
                await watched.looked()
                assert await watched.state() == before
                with pytest.raises(StoreNotGenuine):
                    await manager.rotate_key()
                with pytest.raises(StoreNotGenuine):
                    await manager.set_current_key_id(token.keys["ed25519"].id)
                original.put_back()
                await until(lambda: not manager._background.store_problems)


async def test_a_start_with_a_forged_ring_signs_and_rotates_nothing_until_it_is_adopted(token, tmp_path):
    config = sealed(token, tmp_path)
    async with opened(config) as manager:
        current = await manager.get_current_key_id()
    Original(tmp_path / "state.db")._write(lambda on: on.execute("UPDATE key_version SET created_ns = 0"))  # overdue
    told = []
    manager = hsmcore.create_key_manager(config)
    manager.on("store-not-genuine", lambda details: told.append(details["scope"]))
    async with manager:
        assert told == ["ring"]
        assert await manager.get_current_key_id() == current
        assert await manager.verify(M, await manager.sign(M))
        with pytest.raises(StoreNotGenuine):
            await manager.rotate_key()
        store = await Store.open(tmp_path / "state.db", Secret.plain(SECRET))
        await store.adopt((await store.seal_status()).digest)
        await store.close()
        await until(lambda: manager._background.rotation.seen is not None)
        assert await manager.rotate_key() != current  # without a restart
        assert await manager.verify(M, await manager.sign(M))


async def test_a_start_does_not_sign_with_a_key_that_only_a_forged_ring_names(token, tmp_path):
    config = sealed(token, tmp_path, audit=False)
    async with opened(config):
        pass
    unrelated = token.keys["unrelated"]
    original = Original(tmp_path / "state.db")
    forged = "UPDATE key_version SET key_id = ?, public_key = ?, label = ?"
    values = (unrelated.id, unrelated.public_key.hex(), unrelated.label)
    for statement_ in (forged, "UPDATE key_version SET state = 'overlap'", "UPDATE key_version SET public_key = 'zz'"):
        original._write(lambda on, text=statement_: on.execute(text, values if text == forged else ()))
        with pytest.raises(StoreNotGenuine, match="its current key is not"):
            async with opened(config):
                pass
        original.put_back()
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == token.keys["ed25519"].id


async def test_levels_without_rotation_tell_too_and_give_no_budget(token, tmp_path):
    config = sealed(token, tmp_path)
    del config["sequencer"]["keyManager"]["keyRotation"]
    async with opened(config) as manager:
        told, budget, levels = [], manager._path.budget, manager._path.levels
        manager.on("store-not-genuine", lambda details: told.append(details["scope"]))
        await budget.spend()
        assert not levels.emergency_spent
        await marked(manager)
        original = Original(tmp_path / "state.db")
        original._write(lambda on: on.execute("UPDATE emergency_episode SET reserved = 0"))
        await until(lambda: told == ["budget"] and levels.emergency_spent)
        reading = read(manager).samples[STORE_NOT_GENUINE]
        assert {labels[0]: value for labels, value in reading} == {
            scope: int(scope == "budget") for scope in (*SEALED, "file")
        }
        with pytest.raises(StoreNotGenuine):
            await budget.reset("forged")
        original.put_back()
        await until(lambda: not levels.emergency_spent)
        assert len(await manager.sign(M)) == 64


async def test_orders_that_are_forged_before_a_start_are_not_obeyed(token, tmp_path, monkeypatch):
    config = sealed(token, tmp_path)
    async with opened(config):
        pass
    for name, value in (("force", "emergency"), ("emergency", "enabled"), ("rotate", "now")):
        Original(tmp_path / "state.db")._write(
            lambda on, row=(name, value): on.execute("INSERT INTO desired_state VALUES (?, ?, 'forged', 1)", row)
        )
    async with opened(config) as manager:
        watched = Watched(manager, monkeypatch)
        await watched.looked()
        levels = manager._path.levels
        assert (levels.forced, levels.mode, levels.emergency_permitted) == (None, "smart", False)
        assert await manager.get_current_key_id() == token.keys["ed25519"].id
        assert len(await manager._path.member.control.list_keys()) == 3


async def test_what_remains_without_a_running_process(token, tmp_path, state_home):
    """What docs/ROTATION.md says a writer can still do with a sealed store: remove it, and what the user's state folder
    knows of it, so that the next start begins again with the key that the configuration names; or put back the whole of
    an earlier one before a start. With an audit log both are noticed."""
    config = sealed(token, tmp_path, audit=False)
    async with opened(config) as manager:
        first = await manager.get_current_key_id()
        await manager._path.budget.spend()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    earlier = (tmp_path / "state.db").read_bytes()
    async with opened(config) as manager:
        second = await manager.rotate_key()
        assert second != first
    (tmp_path / "state.db").write_bytes(earlier)
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == first
        assert manager._background.store_problems == {}
    for file in tmp_path.glob("state.db*"):
        file.unlink()
    with pytest.raises(StoreBehind):
        await hsmcore.create_key_manager(config).initialize()
    shutil.rmtree(state_home / "stores")
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == first
        assert (await manager._path.budget.status()).episode is None


async def test_a_store_that_has_rows_waits_for_its_adoption(token, tmp_path, caplog):
    """Configuring the secret seals nothing by itself; signing and the ring's key stay as they are."""
    async with opened(sealed(token, tmp_path, secret=None)) as manager:
        current = await manager.get_current_key_id()
    assert "the state store is not sealed" in caplog.text
    async with opened(sealed(token, tmp_path)) as manager:
        assert set(manager._background.store_problems) == set(SEALED)
        assert await manager.get_current_key_id() == current
        with pytest.raises(StoreNotGenuine, match="never sealed"):
            await manager.rotate_key()


async def test_the_secret_is_shown_nowhere(token, tmp_path, caplog):
    secret = "a-secret-that-would-be-found-in-any-output"
    (tmp_path / "state-secret").write_text(secret)
    (tmp_path / "state-secret").chmod(0o600)
    config = sealed(token, tmp_path)
    config["sequencer"]["stateSecret"] = {"file": str(tmp_path / "state-secret")}
    async with opened(config) as manager:
        Original(tmp_path / "state.db")._write(lambda on: on.execute("UPDATE key_version SET note = 'forged'"))
        await until(lambda: bool(manager._background.store_problems))
        shown = json.dumps(manager.describe()) + repr(manager.config) + json.dumps(manager.config.redacted())
    written = b"".join(
        file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and file.name != "state-secret"
    )
    assert secret not in shown + caplog.text
    assert secret.encode() not in written
