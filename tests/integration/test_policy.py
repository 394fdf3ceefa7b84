"""What a policy lets a key sign, on the module: kinds, positions, callers, transactions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from contextlib import closing

import psycopg
import pytest
from solana_keychain import SignerError, SignerErrorCode
from solders.pubkey import Pubkey
from solders.system_program import AssignParams, assign
from tests.integration.test_rotation import rules
from tests.support.levels import OTHER, SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import becomes, counters, opened, start, until
from tests.support.policed import key, made, moving, ordered
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.cli.app import run as cli
from hsmcore.errors import (
    BadArgument,
    ConfigurationError,
    DeadlineExceeded,
    DoubleSign,
    HsmError,
    PolicyRefused,
    QueueFull,
)
from hsmcore.manager.policy import callers as rates
from hsmcore.manager.policy import watermark
from hsmcore.solana import HsmcoreSigner
from hsmcore.state import StoreNotGenuine

pytestmark = pytest.mark.integration


def policed(token, folder, kinds=("block",), *, key="ed25519", rules=None, **policy):
    more = {"stateFile": str(folder / "state.db"), "auditLogFile": str(folder / "audit.log"), **(rules or {})}
    return token.config(key, policy={"kinds": list(kinds), **policy}, **more)


async def records(manager, **match):
    return [record async for record in manager.audit.query(match=match)]


async def test_a_key_signs_the_kinds_that_it_lists(world, tmp_path):
    async with opened(policed(world, tmp_path, ["tx-v0", "block"])) as manager:
        payer = Pubkey.from_bytes(manager.public_key)
        for message, kind in ((moving(payer, 1), "tx-v0"), (ordered(1), "block")):
            for claimed in (None, kind):
                signature = await manager.sign(message, kind=claimed)
                assert is_good("ed25519", manager.public_key, message, signature)
            receipt = await manager.sign_with_receipt(message, kind=kind)
            assert receipt.signature == signature
        for message in (b"any", bytes(32), moving(payer, 1, version="legacy"), ordered(1, kind="state-root"),
                        b"\xffsolana offchain\x00", b"\x90" * 70, moving(payer, 1) + b"\0",
                        b"\xffhsmcore probe\x00" + bytes(16)):  # fmt: skip
            with pytest.raises(PolicyRefused):
                await manager.sign(message)
        for message, claimed in ((moving(payer, 1), "block"), (ordered(1), "tx-v0")):
            with pytest.raises(PolicyRefused):
                await manager.sign(message, kind=claimed)
        refused = manager._guard.refused.total()
        for claimed in ("nonsense", 5, "Block", "batch-root", "prehashed"):
            for sign in (manager.sign, manager.sign_with_receipt):
                with pytest.raises(BadArgument, match="kinds are tx-legacy, "):
                    await sign(ordered(1), kind=claimed)
            with pytest.raises(BadArgument, match="kinds are tx-legacy, "):
                await manager.sign_many([ordered(1)], kind=claimed)
        assert manager._guard.refused.total() == refused


@one_loop
async def test_what_is_refused_costs_no_call_and_is_recorded(world, shim, tmp_path):
    config = policed(world, tmp_path, rules={"maxCacheSize": 0})
    config["sequencer"]["keyManager"]["config"]["modulePath"] = shim.path
    async with opened(config) as manager:
        await manager.sign(ordered(1))
        calls = shim.calls("C_Sign"), shim.calls("C_SignInit")
        with hsmcore.caller("somebody"), pytest.raises(PolicyRefused):
            await manager.sign(b"raw bytes")
        with pytest.raises(DoubleSign):
            await manager.sign_with_receipt(ordered(1, b"other"))
        refused = await manager.sign_many([b"raw", ordered(2)], return_exceptions=True)
        assert [type(one) for one in refused] == [PolicyRefused, bytes]
        with pytest.raises(PolicyRefused) as raised:
            await manager.sign_many([ordered(3), b"raw"])
        assert raised.value.index == 1
        assert (shim.calls("C_Sign"), shim.calls("C_SignInit")) == (calls[0] + 1, calls[1] + 1)
        assert counters(manager)["failures"] == 0
        found = await records(manager, error="POLICY_REFUSED")
        assert [record["operation"] for record in found] == ["sign", "sign", "sign-many"]
        assert (found[0]["caller"], "raw" in found[0]["reason"]) == ("somebody", True)
        [double] = await records(manager, error="DOUBLE_SIGN")
        assert "position 1 of default/block" in double["reason"]
        good = await records(manager, operation="sign", position=1)
        assert [(record["kind"], record["domain"]) for record in good] == [("block", "default/block")]


async def test_one_digest_for_a_position(world, tmp_path):
    config = policed(world, tmp_path, ["block", "state-root"])
    async with opened(config) as manager:
        signature = await manager.sign(ordered(5, b"a"))
        assert await manager.sign(ordered(5, b"a")) == signature  # of the cache, too
        for message in (ordered(5, b"b"), ordered(5, b"c")):
            with pytest.raises(DoubleSign) as caught:
                await manager.sign(message)
        assert await manager.sign(ordered(5, b"b", kind="state-root"))
        with pytest.raises(DoubleSign) as caught:
            await manager.sign_many([ordered(6, b"a"), ordered(6, b"b")])
        assert caught.value.index == 1
        done = await manager.sign_many([ordered(7, b"a"), ordered(7, b"b")], return_exceptions=True)
        assert [type(one) for one in done] == [bytes, DoubleSign]
    async with opened(config) as manager:
        assert await manager.sign(ordered(5, b"a")) == signature
        with pytest.raises(DoubleSign) as caught:
            await manager.sign(ordered(5, b"b"))
        assert caught.value.position == 5
        assert caught.value.domain == "default/block"


async def test_a_new_process_gets_what_was_bound_last(world, tmp_path):
    """It may not have been handed out; and what another writer made of the store is only given if it stands there."""
    config = policed(world, tmp_path, ["block", "state-root"])
    async with opened(config) as manager:
        assert await manager.unfinished("default/block") is None
        for position in (3, 4):
            signature = await manager.sign(ordered(position))
            assert await manager.unfinished("default/block") is None
    async with opened(config) as manager:
        found = await manager.unfinished("default/block")
        assert found[:2] == ("block", 4)
        assert (found.message, len(found.digest)) == (ordered(4), 32)
        assert await manager.sign(found.message, kind=found.kind, position=found.position) == signature
        assert await manager.unfinished("default/block") is None
    unlogged = policed(world, tmp_path, ["block", "state-root"], rules={"auditLogFile": None})
    for forged in (ordered(5), ordered(4, kind="state-root"), ordered(4, domain="another"), b"raw"):
        digest = hashlib.sha256(forged).hexdigest()
        with closing(sqlite3.connect(tmp_path / "state.db")) as raw, raw:
            raw.execute("UPDATE watermark SET message = ?", (forged.hex(),))
            raw.execute("UPDATE bound SET digest = ? WHERE position = 4", (digest,))
        async with opened(unlogged) as manager:
            assert (await manager.unfinished("default/block")).message is None


async def test_a_position_is_read_and_not_believed(world, tmp_path):
    own = {
        "kind": "block",
        "prefix": "4c32424b",
        "length": 44,
        "position": {"offset": 4, "bytes": 8, "order": "little"},
    }
    config = policed(world, tmp_path, ["block", "state-root"], domain="chain", formats=[own])

    def block(position, content):
        return b"L2BK" + position.to_bytes(8, "little") + content * 32

    async with opened(config) as manager:
        await manager.sign(ordered(1, domain="chain"), position=1)
        for position in (2, 0, -1, "1", 1.0):
            with pytest.raises(PolicyRefused):
                await manager.sign(ordered(1, domain="chain"), position=position)
        with pytest.raises(PolicyRefused):  # another chain's
            await manager.sign(ordered(2, domain="other"))
        await manager.sign(block(7, b"a"), kind="block")
        with pytest.raises(DoubleSign):
            await manager.sign(block(7, b"b"))
        with pytest.raises(DoubleSign):  # one chain, whatever the form
            await manager.sign(ordered(7, domain="chain"))
        digest = b"\x42" * 32  # has no position in it, and its caller's word is none
        for arguments in ({}, {"kind": "state-root"}, {"kind": "state-root", "position": 3}, {"position": 4}):
            with pytest.raises(PolicyRefused, match="hsmcore.payload" if "kind" in arguments else None):
                await manager.sign(digest, **arguments)
        root = hsmcore.payload("state-root", "chain", 3, digest)
        signature = await manager.sign(root, kind="state-root", position=3)
        assert is_good("ed25519", manager.public_key, root, signature)
        with pytest.raises(DoubleSign):
            await manager.sign(hsmcore.payload("state-root", "chain", 3, b"\x43" * 32))


@pytest.mark.parametrize("callers", [None, {"roots": {"kinds": ["state-root"]}, "other": {"kinds": ["digest32"]}}])
async def test_no_key_signs_a_bare_digest_beside_its_position(world, tmp_path, callers, capfd):
    """The second digest at position 7 was refused as a state root, and signed without a kind."""
    config, signed = policed(world, tmp_path, ["state-root", "digest32"], callers=callers), []

    async def sign_two():
        async with opened(config) as manager:
            with hsmcore.caller("roots"):
                signed.append(await manager.sign(b"\x42" * 32, kind="state-root", position=7))
            with hsmcore.caller("other"):
                signed.append(await manager.sign(b"\x43" * 32))

    with pytest.raises(ConfigurationError, match="digest32") as caught:
        await sign_two()
    assert (signed, caught.value.path) == ([], "$.sequencer.keyManager.policy")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli(["doctor", "--config", str(tmp_path / "config.json")]) != 0
    assert "digest32" in "".join(capfd.readouterr())


async def test_without_a_policy_everything_is_as_before_and_a_claim_is_refused(world):
    async with opened(world.config()) as manager:
        assert await manager.sign(b"anything")
        for arguments in ({"kind": "block"}, {"position": 1}):
            with pytest.raises(BadArgument, match="policy"):
                await manager.sign(ordered(1), **arguments)
            with pytest.raises(BadArgument, match="policy"):
                await manager.sign_with_receipt(ordered(1), **arguments)


@one_loop
async def test_a_buffer_that_changes_meanwhile_is_signed_as_it_was_judged(world, tmp_path):
    async with opened(policed(world, tmp_path)) as manager:
        buffer, kept = bytearray(ordered(1, b"a")), ordered(1, b"a")
        task = asyncio.get_running_loop().create_task(manager.sign(buffer))
        await asyncio.sleep(0)
        buffer[-1] ^= 1
        assert is_good("ed25519", manager.public_key, kept, await task)


@one_loop
async def test_every_key_of_the_domain_obeys(fresh_token, tmp_path):
    """Failover to another key, and the emergency key."""
    site = Site(tmp_path, fresh_token, SAME, OTHER)
    failover = {"acceptOtherKeys": ["secondary"], "emergencyModeEnabled": True}
    config = site.config(failover=failover, policy={"kinds": ["block"]}, maxCacheSize=100)
    async with opened(config) as manager:
        receipts = [await manager.sign_with_receipt(ordered(1, b"a"))]
        site.kill(0)
        receipts.append(await manager.sign_with_receipt(ordered(2, b"a")))
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(1, b"b"))
        site.kill(1)
        receipts.append(await manager.sign_with_receipt(ordered(3, b"a"), timeout=20))
        for position in (1, 2):
            with pytest.raises(DoubleSign):
                await manager.sign(ordered(position, b"b"))
        assert [receipt.level for receipt in receipts] == ["primary", "secondary", "emergency"]
        assert len({receipt.public_key for receipt in receipts}) == 3
        site.revive(0)
        site.revive(1)
        await until(lambda: manager._path.levels.active == 0)
        for position in (1, 2, 3):
            with pytest.raises(DoubleSign):
                await manager.sign(ordered(position, b"b"))


@one_loop
async def test_a_rotation_inherits_what_was_bound(fresh_token, tmp_path):
    config = fresh_token().config(**rules(tmp_path), policy={"kinds": ["block"]})
    async with opened(config) as manager:
        old = manager.public_key
        await manager.sign(ordered(1, b"a"))
        await manager.rotate_key()
        assert manager.public_key != old
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(1, b"b"))
        again = await manager.sign(ordered(1, b"a"))  # under the new key
        assert is_good("ed25519", manager.public_key, ordered(1, b"a"), again)


@one_loop
async def test_callers_have_their_kinds_rates_and_places(world, shim, tmp_path, monkeypatch):
    now = [10**18]
    monkeypatch.setattr(rates, "monotonic_ns", lambda: now[0])
    callers = {
        "blocks": {"kinds": ["block"], "inFlight": 2},
        "fees": {"kinds": ["tx-v0"], "perSecond": 3},
        "all": {},
    }
    config = policed(world, tmp_path, ["block", "tx-v0"], callers=callers, rules={"maxCacheSize": 0})
    config["sequencer"]["keyManager"]["config"]["modulePath"] = shim.path
    async with opened(config) as manager:
        transaction = moving(key(1), 1)
        with pytest.raises(PolicyRefused, match="does not say who"):
            await manager.sign(transaction)
        with hsmcore.caller("mallory"), pytest.raises(PolicyRefused, match="mallory"):
            await manager.sign(transaction)
        with hsmcore.caller("blocks"):
            with pytest.raises(PolicyRefused, match="tx-v0"):
                await manager.sign(transaction)
            await manager.sign(ordered(1))
            shim.hold()
            tasks = [asyncio.get_running_loop().create_task(manager.sign(ordered(n))) for n in (2, 3)]
            await shim.until_inside(2)
            with pytest.raises(QueueFull, match="2 requests open") as caught:
                await manager.sign(ordered(4))
            assert (caught.value.retry_after_ms, caught.value.maybe_signed) == (100, False)
            with hsmcore.caller("all"):
                other = asyncio.get_running_loop().create_task(manager.sign(moving(key(2), 1)))
            tasks[0].cancel()
            await asyncio.wait({tasks[0]})
            shim.release()
            await tasks[1]
            await other
            await manager.sign(ordered(4))
        with hsmcore.caller("fees"):
            done = [await _outcome(manager.sign(moving(key(1), n))) for n in range(5)]
            assert done.count(None) == 3
            refused = [one for one in done if one is not None]
            assert [type(one) for one in refused] == [QueueFull] * 2
            assert "3 signatures a second" in str(refused[0])
            now[0] += refused[1].retry_after_ms * 10**6
            await manager.sign(moving(key(1), 9))
        found = await records(manager, operation="sign", result="ok")
        assert {record["caller"] for record in found} == {"blocks", "all", "fees"}


@one_loop
async def test_a_batch_is_counted_whole_and_what_is_refused_gives_its_places_back(world, shim, tmp_path, monkeypatch):
    monkeypatch.setattr(rates, "monotonic_ns", lambda: 10**18)
    callers = {"a": {"inFlight": 8, "kinds": ["raw", "block"]}, "b": {"perSecond": 2}}
    config = policed(world, tmp_path, ["raw", "block"], callers=callers, rules={"maxCacheSize": 0})
    config["sequencer"]["keyManager"]["config"]["modulePath"] = shim.path
    async with opened(config) as manager:
        batch = [b"m%d" % number for number in range(9)]
        with hsmcore.caller("a"):
            for _ in range(3):
                with pytest.raises(BadArgument, match="a batch of 9; caller 'a' may have 8 requests open") as caught:
                    await manager.sign_many(batch)
                assert not caught.value.retryable
                refused = await manager.sign_many([*batch, bytes(32)], return_exceptions=True)
                assert [type(one) for one in refused] == [BadArgument] * 9 + [PolicyRefused]
                with pytest.raises(PolicyRefused):
                    await manager.sign_many([*batch[:7], bytes(32)])
            assert len(await manager.sign_many(batch[:8])) == 8
            await manager.sign(ordered(1, b"a"))
            with pytest.raises(DoubleSign):
                await manager.sign_many([*batch[:7], ordered(1, b"b")])
            shim.hold()
            both = start(manager.sign_many([ordered(1, b"b"), b"m"], return_exceptions=True))
            await shim.until_inside(1)
            more = start(manager.sign_many(batch[:7]))  # with the one that is being signed, as many as it may
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):
                await manager.sign(b"m")
            shim.release()
            assert [type(one) for one in await both] == [DoubleSign, bytes]
            assert len(await more) == 7
        with hsmcore.caller("b"):
            assert len(await manager.sign_many(batch)) == 9  # what a second does not allow is owed
            with pytest.raises(QueueFull) as full:
                await manager.sign(b"m")
            assert full.value.retryable
            assert full.value.retry_after_ms > 1000
            with pytest.raises(SignerError) as told:
                await HsmcoreSigner(manager).sign_message(b"m")
            assert told.value.code is SignerErrorCode.NOT_AVAILABLE
            late = await manager.sign_many(batch[:2], return_exceptions=True)
            assert [type(one) for one in late] == [QueueFull] * 2


async def _outcome(work):
    try:
        await work
    except HsmError as error:
        return error


async def test_what_leaves_an_owned_account_has_a_rate(world, tmp_path, monkeypatch):
    """On a clock of rates that stands still."""
    monkeypatch.setattr(rates, "monotonic_ns", lambda: 10**18)
    owned = {str(key(8)): {"perMinute": 10**9}}
    rules = {"programs": {"System": ["Transfer", "Assign"]}, "owned": owned}
    async with opened(policed(world, tmp_path, ["tx-v0"], transactions=rules)) as manager:
        first = moving(key(8), 4 * 10**8)
        for _ in range(3):
            assert await manager.sign(first) == await manager.sign(first, kind="tx-v0")
        with pytest.raises(PolicyRefused, match="Assign names"):
            await manager.sign(made(key(8), [assign(AssignParams(pubkey=key(8), owner=key(7)))]))
        messages = [moving(key(8), amount * 10**8) for amount in (4, 5, 5, 2)] + [moving(key(6), 10**12)]
        batch = await manager.sign_many(messages, return_exceptions=True)
        assert [type(one) for one in batch] == [bytes, bytes, bytes, QueueFull, bytes]
        with pytest.raises(QueueFull, match="what owned lets leave") as caught:
            await manager.sign_many([moving(key(8), 10**8), moving(key(8), 2 * 10**8)])
        assert (caught.value.index, caught.value.retry_after_ms) == (1, 12_000)


async def test_one_call_does_not_end_a_domain(world, tmp_path, capfd):
    """Nanoseconds taken for a height: every later block was refused, for ever."""
    config = policed(world, tmp_path, maxAhead=10_000)
    config["sequencer"]["stateSecret"] = "s" * 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    async with opened(config) as manager:
        for position in (1_000_000, 1_000_001, 1_010_001):
            await manager.sign(ordered(position))
        for position in ((1 << 63) - 1, 1_020_002):
            with pytest.raises(PolicyRefused, match="maxAhead"):
                await manager.sign(ordered(position))
            explain = ["policy", "explain", ordered(position).hex(), "--config", str(tmp_path / "config.json")]
            assert await asyncio.to_thread(cli, explain) == 1
        assert "maxAhead" in capfd.readouterr().out
        await manager.sign(ordered(1_010_002))
        floor = ["policy", "floor", "set", "block", "2000000", "--reason", "after an outage"]
        assert await asyncio.to_thread(cli, [*floor, "--config", str(tmp_path / "config.json")]) == 0
        await manager.sign(ordered(2_000_001))


@one_loop
async def test_what_is_not_kept_gets_a_floor_that_is_recorded(world, tmp_path, monkeypatch):
    monkeypatch.setattr(watermark, "_LOOK_SECONDS", 0.05)
    async with opened(policed(world, tmp_path, maxAhead=1024, keepPositions=1024)) as manager:
        for position in (100, 1100, 2100, 3100):
            await manager.sign(ordered(position))

        async def recorded():
            return [(record["position"], record["reason"]) for record in await records(manager, operation="command")]

        async def given_up():
            return (1100, "keepPositions 1024") in await recorded()

        await becomes(given_up)
        with pytest.raises(PolicyRefused, match=r"the floor \d+ \(keepPositions 1024\)"):
            await manager.sign(ordered(1100))
        await manager.sign(ordered(3100))
        [first, *_] = await records(manager, operation="command")
        assert {name: first[name] for name in ("command", "domain", "result")} == {
            "command": "policy floor set", "domain": "default/block", "result": "ok",
        }  # fmt: skip


def rows(folder):
    with closing(sqlite3.connect(folder / "state.db")) as raw:
        return {position for (position,) in raw.execute("SELECT position FROM bound")}


@one_loop
@pytest.mark.parametrize("ends", ["deadline", "cancelled"])
async def test_requests_that_end_while_the_store_is_busy_bind_nothing(world, tmp_path, ends):
    """The store was locked for a second, and each position that waited for it was bound afterwards."""
    loop = asyncio.get_running_loop()
    async with opened(policed(world, tmp_path)) as manager:
        await manager.sign(ordered(1))
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            timeout = 0.3 if ends == "deadline" else 60
            asked = [loop.create_task(manager.sign(ordered(number), timeout=timeout)) for number in range(2, 23)]
            if ends == "cancelled":
                await asyncio.sleep(0.05)
                for task in asked:
                    task.cancel()
            done = await asyncio.gather(*asked, return_exceptions=True)
            raw.execute("COMMIT")
        expected = DeadlineExceeded if ends == "deadline" else asyncio.CancelledError
        assert {type(one) for one in done} == {expected}
        if ends == "deadline":
            assert all("not bound" in str(one) and not one.maybe_signed for one in done)
        await manager.sign(ordered(2, b"built again"))  # and so the group that waited for the lock has ended
        assert rows(tmp_path) == {1, 2}
        for number in range(3, 23):
            await manager.sign(ordered(number, b"built again"))


@one_loop
async def test_what_a_transaction_has_taken_up_says_that_it_may_be_bound(fresh_token, tmp_path, postgres):
    url = postgres.database()
    database = url.rpartition("/")[2]
    fleet = {"store": {"url": url}, "name": "tests", "singleNode": True, "ttlMs": 30_000}
    config = policed(fresh_token(), tmp_path, rules={"fleet": fleet, "stateFile": None, "auditLogFile": None})
    async with opened(config) as manager:
        await until(lambda: manager.fleet.state == "holder")
        await manager.sign(ordered(1))
        with psycopg.connect(url) as other:  # has asked, and cannot write
            other.execute("LOCK TABLE hsmcore_tests.bound IN SHARE MODE")
            one = asyncio.get_running_loop().create_task(manager.sign(ordered(2), timeout=3))
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            await until(lambda: postgres.execute(waits, database)[0][0] > 0 or one.done())
            two = asyncio.get_running_loop().create_task(manager.sign(ordered(3), timeout=0.2))
            with pytest.raises(DeadlineExceeded, match="not bound"):
                await two
            with pytest.raises(DeadlineExceeded, match="may be bound"):
                await one
        with pytest.raises(DoubleSign):
            await manager.sign(ordered(2, b"another"))
        await manager.sign(ordered(3, b"another"))


async def test_a_changed_store_stops_its_positions_only(world, tmp_path):
    config = policed(world, tmp_path, ["block", "tx-v0"])
    config["sequencer"]["stateSecret"] = "s" * 32
    async with opened(config) as manager:
        await manager.sign(ordered(1))
        await manager.sign(ordered(2))
    with sqlite3.connect(tmp_path / "state.db") as raw:
        raw.execute("DELETE FROM bound WHERE position = 2")
    raw.close()
    async with opened(config) as manager:
        with pytest.raises(StoreNotGenuine):
            await manager.sign(ordered(2, b"another"))
        await manager.sign(ordered(3))
        await manager.sign(moving(key(1), 5))


def test_explain_and_floors(world, tmp_path, capfd):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(policed(world, tmp_path)))

    def command(*arguments):
        code = cli([*arguments, "--json", "--config", str(path)])
        out = capfd.readouterr().out
        return code, json.loads(out or "null")

    code, found = command("policy", "explain", ordered(5).hex())
    assert (code, found["kind"], found["position"], found["signed"]) == (0, "block", 5, True)
    code, found = command("policy", "explain", "0011", "--kind", "block")
    assert (code, found["kind"], found["signed"]) == (1, "raw", False)
    (tmp_path / "block.bin").write_bytes(ordered(5))
    assert command("sign", str(tmp_path / "block.bin"), "--kind", "block")[0] == 0
    code, found = command("policy", "explain", str(tmp_path / "block.bin"))
    assert (code, found["signed"], found["holder"] != "") == (0, True, True)
    code, found = command("policy", "explain", ordered(5, b"x").hex())
    assert (code, found["why"]) == (1, "another payload was bound to the position")
    assert command("policy", "floor", "set", "block", "5", "--reason", "final")[0] == 0
    assert command("policy", "floor", "set", "block", "5", "--reason", "final")[0] == 1
    for wrong in (("block", "6"), ("tx-v0", "6", "--reason", "x")):
        assert command("policy", "floor", "set", *wrong)[0] == 2
    assert command("policy", "floor", "show")[1] == [
        {"domain": "default/block", "floor": 5, "highest": 5, "reason": "final"}
    ]
    code, found = command("policy", "explain", ordered(5).hex())
    assert (code, "floor" in found["why"]) == (1, True)
    assert command("sign", str(tmp_path / "block.bin"))[0] == 1
    assert '"command":"policy floor set"' in (tmp_path / "audit.log").read_text()
