"""A key binds positions in the domain and by the formats in which it did before, whatever the configuration says."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.integration.test_rotation import rules as rotating
from tests.support.commands import commands
from tests.support.levels import OTHER, SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.policed import ordered
from tests.support.raw_store import beside

import hsmcore
from hsmcore.cli.output import NO_USE_AGAIN, StartFailed, starting
from hsmcore.config import load
from hsmcore.doctor.store import check_store
from hsmcore.errors import DoubleSign
from hsmcore.recovery.reconcile import reconcile
from hsmcore.state import DomainMismatch, Store, StoreBehind, domains

pytestmark = [pytest.mark.integration]
FORMAT = {"kind": "block", "prefix": "4c32424b", "length": 76}
LITTLE, BIG = ({**FORMAT, "position": {"offset": 4, "bytes": 8, "order": order}} for order in ("little", "big"))
ROOTS = {**LITTLE, "kind": "state-root"}
LONGER = {**LITTLE, "length": 80}
POLICY = {"kinds": ["block"], "domain": "my-rollup", "formats": [LITTLE]}


def block(position: int, content: bytes) -> bytes:
    """A layer 2's own block."""
    return b"L2BK" + position.to_bytes(8, "little") + content * 64


@pytest.fixture
def lives(fresh_token, tmp_path):
    """Makes configurations of one key, store, log and seal."""
    token = fresh_token()

    def config(policy=POLICY, **more):
        named = {
            "stateFile": str(tmp_path / "state.db"),
            "auditLogFile": str(tmp_path / "audit.log"),
            "maxCacheSize": 0,
        }
        rules = {name: value for name, value in {**named, "policy": policy, **more}.items() if value is not None}
        made = token.config(**rules)
        made["sequencer"]["stateSecret"] = "s" * 32
        (tmp_path / "config.json").write_text(json.dumps(made))
        return made

    return config


async def begun(config):
    """Bind block A at position 7. Returns the key."""
    async with opened(config) as manager:
        await manager.sign(block(7, b"A"))
        with pytest.raises(DoubleSign):
            await manager.sign(block(7, b"B"))
        return manager.public_key


async def refused(config):
    """The error of a start, which is refused for good."""
    with pytest.raises(StartFailed) as caught, starting():
        async with opened(config):
            pass
    error = caught.value.error
    assert (type(error), caught.value.code) == (DomainMismatch, NO_USE_AGAIN)
    return error


EDITS = {
    "a capital": ({"domain": "My-rollup"}, "domain My-rollup"),
    "a letter that looks alike": ({"domain": "my-rolIup"}, "domain my-rolIup"),
    "no domain": ({"domain": "default"}, "domain default"),
    "byte order": ({"formats": [BIG]}, "8 bytes big at 4"),
    "kind": ({"kinds": ["state-root"], "formats": [ROOTS]}, "state-root 4c32424b"),
    "another format": ({"formats": [LONGER]}, "of 80 bytes"),
    "no formats, raw": ({"kinds": ["block", "raw"], "formats": []}, "with block"),
    "raw alone": ({"kinds": ["raw"], "formats": []}, "no kind with a position"),
    "no policy": (None, "no kind with a position"),
}


@one_loop
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("logged", [True, False], ids=["log", "no log"])
async def test_no_edit_makes_a_key_forget_what_it_has_bound(edit, logged, lives, tmp_path, capfdbinary):
    """Each was signed: another block at a bound position."""
    changed, says = EDITS[edit]
    more = {} if logged else {"auditLogFile": None}
    key = await begun(lives(**more))
    config = lives(None if changed is None else {**POLICY, **changed}, **more)
    [step] = [one for one in await asyncio.to_thread(lambda: [*check_store(load(config))]) if one.name == "key-domain"]
    assert (step.outcome, key.hex() in step.found) == ("warn", True)
    error = await refused(config)
    said = str(error)
    assert "domain my-rollup with block, block 4c32424b of 76 bytes, position 8 bytes little at 4" in said
    assert says in said.partition("$.sequencer.keyManager.policy has")[2]
    assert f"hsmcore policy rebind {key.hex()} --reason TEXT" in error.hint
    await begun(lives(**more))
    lives(None if changed is None else {**POLICY, **changed}, **more)
    with commands(tmp_path, capfdbinary, "policy") as command:
        code, done, _ = await asyncio.to_thread(command, "rebind", key.hex(), "--reason", "another chain")
    assert code == 0
    [rebound] = done["rebound"]
    assert (rebound["publicKey"], rebound["before"]["domain"]) == (key.hex(), "my-rollup")
    async with opened(config) as manager:
        assert manager.public_key == key
        if changed is None or "raw" in changed.get("kinds", ()):
            await manager.sign(block(7, b"B"))
        if logged:
            [found] = [one async for one in manager.audit.query(match={"command": "policy rebind"})]
            assert (found["reason"], found["public_key"], found["previous"]) == (
                "another chain",
                [key.hex()],
                ["my-rollup"],
            )
    if changed is not None and changed.get("formats", True):
        await refused(lives(**more))  # the way back is another rebind, unless it adds forms only


async def rows(folder):
    """The rows of the store."""
    store = await Store.open_to_read(folder / "state.db")
    try:
        return await store.run(domains.everything)
    finally:
        await store.close()


@one_loop
async def test_the_audit_log_is_the_second_witness(lives, tmp_path):
    """The store's row is gone, as in a store of before; the log has key and domain of each record."""
    plain = lives()
    del plain["sequencer"]["stateSecret"]
    await begun(plain)
    beside(tmp_path / "state.db", "DELETE FROM key_domain")
    changed = lives({**POLICY, "domain": "My-rollup"})
    del changed["sequencer"]["stateSecret"]
    assert "in domain my-rollup with forms that are not known, says the audit log" in str(await refused(changed))
    await begun(plain)
    assert [one.domain for one in (await rows(tmp_path)).values()] == ["my-rollup"]


@one_loop
async def test_a_store_that_is_lost_is_rebuilt_with_the_domain(lives, tmp_path):
    key = await begun(lives())
    lost = [path.unlink() for path in tmp_path.glob("state.db*")]
    assert lost
    changed = lives({**POLICY, "domain": "My-rollup"})
    with pytest.raises(StoreBehind):
        async with opened(changed):
            pass
    await reconcile(load(changed), ring_compared=False)
    assert (await rows(tmp_path))[key] == domains.KeyDomain("my-rollup", ())
    assert "My-rollup" in str(await refused(changed))
    await begun(lives())
    assert "block 4c32424b" in str((await rows(tmp_path))[key])


@one_loop
async def test_a_key_that_rotation_made_binds_where_the_one_before_did(fresh_token, tmp_path):
    config = fresh_token().config(**rotating(tmp_path), policy={"kinds": ["block"], "domain": "chain"})
    async with opened(config) as manager:
        old = manager.public_key
        await manager.sign(ordered(1, domain="chain"))
        await manager.rotate_key()
        new = manager.public_key
        assert (await rows(tmp_path))[new] == (await rows(tmp_path))[old]
    config["sequencer"]["keyManager"]["policy"]["domain"] = "Chain"
    assert new.hex() in str(await refused(config))


@one_loop
async def test_no_key_becomes_current_that_has_bound_elsewhere(fresh_token, tmp_path):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "second", "kind": "ed25519"})
    state = {"stateFile": str(tmp_path / "state.db")}
    async with opened(token.config("second", policy={"kinds": ["block"], "domain": "other"}, **state)) as manager:
        await manager.sign(ordered(1, domain="other"))
    async with opened(token.config(policy={"kinds": ["block", "raw"], "domain": "chain"}, **state)) as manager:
        key_id = await manager.get_current_key_id()
        with pytest.raises(DomainMismatch, match="domain other"):
            await manager.set_current_key_id(token.keys["second"].id)
        assert await manager.get_current_key_id() == key_id
        await manager.sign(ordered(1, domain="chain"))


@one_loop
async def test_a_member_that_comes_later_with_a_key_of_another_domain_costs_that_member(fresh_token, tmp_path):
    site = Site(tmp_path, fresh_token, SAME, OTHER)
    config = site.config(failover={"acceptOtherKeys": ["secondary"]}, policy={"kinds": ["block"]})
    gone = {"function": "C_OpenSession", "every": 1, "action": "return", "ckr": "CKR_DEVICE_REMOVED"}
    site.members[1].write(faults=[gone])
    async with opened(config) as manager:
        await manager.sign(ordered(1))
        store = await Store.open(tmp_path / "state.db")
        other = site.tokens[1].keys["ed25519"].public_key
        await store.run(lambda on: domains.put_back(on, {other: "elsewhere"}, 1))
        await store.close()
        site.members[1].write()
        await until(lambda: "elsewhere" in manager.members()[1].reason)
        await manager.sign(ordered(2))
        assert manager.members()[1].member is None
    assert other.hex() in str(await refused(config))


def fleet_of(token, folder, url, host, **policy):
    """The configuration of a host."""
    fleet = {"store": {"url": url}, "name": "tests", "host": host, "singleNode": True, "ttlMs": 4000}
    more = {"fleet": fleet, "policy": {**POLICY, **policy}, "maxCacheSize": 0}
    return token.config(**more, auditLogFile=str(folder / f"{host}.log"))


@one_loop
async def test_all_hosts_of_a_fleet_obey_one_row(fresh_token, tmp_path, postgres, capfdbinary):
    token, url = fresh_token(), postgres.database()
    one, two = fleet_of(token, tmp_path, url, "one"), fleet_of(token, tmp_path, url, "two", domain="My-rollup")
    async with opened(one) as first:
        await until(lambda: first.fleet.state == "holder")
        async with opened(two) as second:  # when it starts, nothing is bound
            await first.sign(block(7, b"A"))
            await first.fleet.release("a test")
            for force in (False, True):
                with pytest.raises(DomainMismatch, match="domain my-rollup"):
                    await second.fleet.claim(force=force, reason="a test")
                assert (second.fleet.state, second.fleet.epoch) == ("follower", 1)
            await until(lambda: "domain my-rollup" in second.fleet.reason)
            with pytest.raises(hsmcore.NotHolder):
                await second.sign(block(7, b"B"))
        await refused(two)
        await first.fleet.claim()
        with pytest.raises(DoubleSign):
            await first.sign(block(7, b"B"))
        await first.sign(block(8, b"A"))
        (tmp_path / "config.json").write_text(json.dumps(two))
        with commands(tmp_path, capfdbinary, "policy") as command:
            code, done, _ = await asyncio.to_thread(command, "rebind", "--reason", "another chain")
        assert (code, len(done["rebound"])) == (0, 1)
        with pytest.raises(hsmcore.NotHolder):  # at once, though it has found nothing wrong with its key
            await first.sign(block(9, b"A"))
        await until(lambda: first.fleet.state == "follower")
        with pytest.raises(DomainMismatch, match="domain My-rollup"):
            await first.fleet.claim(force=True, reason="a test")
    async with opened(two) as second:
        await until(lambda: second.fleet.state == "holder")
        await second.sign(block(7, b"B"))


@one_loop
async def test_no_rebind_while_a_key_manager_binds(lives, tmp_path, capfdbinary):
    config = lives(auditLogFile=None)
    async with opened(config) as manager:
        await manager.sign(block(7, b"A"))
        with commands(tmp_path, capfdbinary, "policy") as command:
            code, _, said = await asyncio.to_thread(command, "rebind", "--reason", "too early")
        assert code == 1
        assert "a key manager runs on the state store" in said


@one_loop
async def test_a_backup_has_the_domains(lives, tmp_path, capfdbinary):
    key, saved = await begun(lives()), str(tmp_path / "backup.hsmstate")
    with commands(tmp_path, capfdbinary, "state") as command:
        assert (await asyncio.to_thread(command, "backup", "--to", saved))[0] == 0
        assert [path.unlink() for path in tmp_path.glob("state.db*")]
        restored = await asyncio.to_thread(command, "restore", saved, "--reconcile", "--reason", "a test")
        assert restored[0] == 0
        _, shown, _ = await asyncio.to_thread(command, "seal")
    [row] = shown["domains"]
    assert (row["public_key"], row["domain"], "8 bytes little at 4" in row["forms"]) == (key.hex(), "my-rollup", True)
    await refused(lives({**POLICY, "formats": [BIG]}))
    await begun(lives())
