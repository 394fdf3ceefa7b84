"""hsmcore.gateway.Client against the real gateway: on SoftHSM, over wires that are cut, and through kill -9."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from tests.support.authority import Authority
from tests.support.chaos import Chaos, wrap
from tests.support.gateways import Cutter, GatewayProcess, Staller, gateway
from tests.support.loops import one_loop
from tests.support.managers import becomes, start, until
from tests.support.wire_site import ME, site

from hsmcore.errors import (
    DeadlineExceeded,
    EmptyMessage,
    HsmError,
    KeyNotCurrent,
    KeyNotFound,
    MemberDown,
    MessageTooLarge,
    PolicyRefused,
)
from hsmcore.gateway import Client, ClientTls

pytestmark = pytest.mark.integration
TWO_KEYS = ({"name": "ed25519", "kind": "ed25519"}, {"name": "second", "kind": "ed25519"})


def valid(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(public_key).verify(message, signature)
    except BadSignatureError:
        return False
    return True


def keys_by_message(log: Path) -> dict[str, set[str]]:
    """The keys that signed each message, by its SHA-256, going by the audit log."""
    found = defaultdict(set)
    for line in log.read_text().splitlines():
        record = json.loads(line)
        if record["operation"] in ("sign", "unclaimed") and record.get("result") == "ok":
            found[record["message_sha256"]].add(record["key_id"])
    return found


@one_loop
async def test_a_connection_that_stalls_fails_no_request(world, tmp_path):
    clients = {"app": {**ME["app"], "inFlight": 4}}
    async with site(world.config(maxCacheSize=0), tmp_path, clients) as served, AsyncExitStack() as rest:
        staller = Staller(served.path, b"this one stalls")
        await staller.listen(str(tmp_path / "stalls.sock"))
        rest.push_async_callback(staller.close)
        async with Client(f"unix:{tmp_path}/stalls.sock", connections=2, timeout=60) as km:
            await until(lambda: len(served.server.connections) == 2)
            late = asyncio.create_task(km.sign(b"this one stalls"))
            await staller.stalled.wait()
            for number in range(100):  # answered, and not acknowledged: the first one is open
                await km.sign(b"%d" % number)
            staller.released.set()
            assert valid(km.public_key, b"this one stalls", await late)
        assert served.server.desk.requests["app", "OK"] == 101


async def test_what_a_key_manager_does_a_client_does(world, tmp_path):
    config = world.config(auditLogFile=str(tmp_path / "audit.log"))
    async with gateway(tmp_path, config) as served, Client(served.addresses[0], connections=2, program="tests") as km:
        key = world.keys["ed25519"]
        assert km.public_key == key.public_key
        assert await km.get_current_key_id() == key.id
        assert [version.public_key for version in km.keys()] == [key.public_key]  # noqa: SIM118  # no mapping
        messages = [b"message %d" % number for number in range(200)]
        signatures = await asyncio.gather(*map(km.sign, messages))
        assert all(valid(key.public_key, *pair) for pair in zip(messages, signatures, strict=True))
        assert await km.sign_many(messages, 30) == signatures
        receipt = await km.sign_with_receipt(memoryview(b"message 3"))
        assert (receipt.signature, receipt.key_id, receipt.public_key, receipt.level) == (
            signatures[3],
            key.id,
            key.public_key,
            "primary",
        )
        assert receipt.audit_seq is not None
        assert await km.sign(b"m", key_id=key.id)
        assert await km.verify(messages[0], signatures[0])
        assert not await km.verify(messages[1], signatures[0], key.id)
        assert (await km.get_cache_stats())["max_size"] == 10_000
        for message, expected in ((b"", EmptyMessage), (bytes(1 << 20), MessageTooLarge)):
            with pytest.raises(expected):
                await km.sign(message)
        with pytest.raises(KeyNotFound):
            await km.sign(b"m", key_id="00ff")
        with pytest.raises(KeyNotFound):
            await km.verify(b"m", bytes(64), "00ff")


async def test_keys_are_generated_chosen_and_told(fresh_token, tmp_path):
    token = fresh_token(*TWO_KEYS)
    told = []
    async with gateway(tmp_path, token.config()) as served, Client(served.addresses[0]) as km:
        km.on("key-changed", told.append)
        first, second = await km.get_current_key_id(), await km.generate_key()
        await becomes(lambda: _knows(km, second))
        await km.set_current_key_id(second)
        await becomes(lambda: _signs_with(km, second))
        assert told == [{"key_id": second, "previous": first}]
        assert valid(km.public_key, b"m", await km.sign(b"m"))
        with pytest.raises(KeyNotCurrent) as failure:
            await km.sign(b"n", key_id=first)
        assert not failure.value.maybe_signed
        await km.deactivate_key(first)
        with pytest.raises(HsmError):
            await km.set_current_key_id(first)


@one_loop
async def test_a_client_s_own_check_passes_nothing_that_one_of_its_key_managers_refuses(world, tmp_path):
    config = {"keyManagers": {
        name: {**world.config(key)["sequencer"]["keyManager"], "maxMessageBytes": most}
        for name, key, most in (("large", "ed25519", 100), ("small", "ecdsa-p256", 64))
    }}  # fmt: skip
    clients = {"test": {"uid": [os.getuid()], "keys": ["large", "small"]}}
    async with site(config, tmp_path, clients) as served:
        for name in ("large", "small"):
            async with Client(served.addresses[0], name) as km:
                assert await km.sign(bytes(64))
                with pytest.raises(MessageTooLarge, match="at most 64"):
                    await km.sign_many([b"m", bytes(65)])


@one_loop
async def test_a_key_is_backed_up_for_a_client_that_manages(fresh_token, tmp_path):
    rotation = {"enabled": False, "backupEnabled": True, "backupLocation": str(tmp_path)}
    config = fresh_token({"name": "p256", "kind": "ecdsa-p256"}).config("p256", keyRotation=rotation)
    clients = {"test": {**ME["app"], "manages": True}}
    async with site(config, tmp_path, clients) as served, Client(served.addresses[0]) as km:
        made = await km.generate_key()
        blob = await km.export_key_backup(made)
        assert made.encode() in blob
        with pytest.raises(KeyNotFound):
            await km.export_key_backup("00ff")
    async with site(config, tmp_path) as served, Client(served.addresses[0]) as km:
        with pytest.raises(PolicyRefused, match="manage"):
            await km.export_key_backup(made)


@one_loop
async def test_what_its_rate_does_not_allow_now_waits_within_the_timeout(world, tmp_path):
    clients = {"app": {**ME["app"], "perSecond": 20}}
    async with site(world.config(), tmp_path, clients) as served, Client(served.addresses[0], timeout=50) as km:
        asked = [km.sign(b"%d" % number) for number in range(40)]
        signatures = await asyncio.gather(*asked, km.sign_many([b"a", b"b"]))
        assert len(signatures) == 41
        assert served.server.desk.requests["app", "OK"] == 41
        assert served.server.desk.requests["app", "QUEUE_FULL"] > 0


@one_loop
async def test_a_batch_that_a_rotation_meets_is_signed_under_both_keys(fresh_token, tmp_path):
    chaos = Chaos(tmp_path, wrap(fresh_token(*TWO_KEYS)))
    config = chaos.config(settings={"sessions": 1})
    async with site(config, tmp_path, inFlight=4) as served, Client(served.addresses[0], timeout=120) as km:
        manager = served.manager
        before, after = km.public_key, await manager.generate_key()
        calls = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True, every=1)
        messages = [b"%d" % number for number in range(8)]
        batch = asyncio.create_task(km.sign_many(messages))
        await until(lambda: chaos.calls("C_Sign") > calls and served.server.desk.queues["default"].turns.under_way == 4)
        await manager.set_current_key_id(after)
        chaos.clear()
        chaos.release()
        signatures = await batch
        for at, (message, signature) in enumerate(zip(messages, signatures, strict=True)):
            assert valid(before if at < 4 else manager.public_key, message, signature)
        assert manager.public_key != before


async def _knows(km, key_id):
    return key_id in [version.id for version in km.keys()]  # noqa: SIM118  # no mapping


async def _signs_with(km, key_id):
    return await km.get_current_key_id() == key_id


async def test_certificates_say_who_a_client_is(world, tmp_path):
    authority = Authority(tmp_path)
    own, mine = authority.issue("gateway", ips=["127.0.0.1"]), authority.issue("client", dns=["sequencer.test"])
    other = authority.issue("other", dns=["other.test"])
    settings = {
        "listen": ["tls:127.0.0.1:0"],
        "tls": {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file},
        "clients": {"test": {"names": ["dns:sequencer.test"], "keys": ["default"]}},
    }
    async with gateway(tmp_path, world.config(), **settings) as served:
        tls = ClientTls(mine.certificate, mine.key, authority.file)
        async with Client(served.addresses[0], tls=tls) as km:
            message = b"over TLS"
            assert valid(km.public_key, message, await km.sign(message))
        with pytest.raises(HsmError):
            await Client(served.addresses[0], tls=ClientTls(other.certificate, other.key, authority.file)).initialize()
        absent = ClientTls(str(tmp_path / "absent.pem"), mine.key, authority.file)
        with pytest.raises(MemberDown, match=r"absent\.pem") as failure:
            await Client(served.addresses[0], tls=absent).initialize()
        assert "ClientTls" in failure.value.hint


@one_loop
@pytest.mark.parametrize("seed", range(3))
async def test_connections_that_break_anywhere_cost_no_request(world, tmp_path, seed):
    log = tmp_path / "audit.log"
    async with gateway(tmp_path, world.config(auditLogFile=str(log))) as served:
        cutter = Cutter(random.Random(seed), served.addresses[0].removeprefix("unix:"), 12_000)
        cutter.cutting = False  # initialize() meets whole connections
        await cutter.listen(str(tmp_path / "cut.sock"))
        try:
            async with Client(f"unix:{tmp_path}/cut.sock", connections=2, timeout=60) as km:
                cutter.cutting = True
                messages = [b"seed %d, %d" % (seed, number) for number in range(600)]
                at_once = asyncio.Semaphore(40)

                async def one(message):
                    async with at_once:
                        return await km.sign(message)

                signatures = await asyncio.gather(*map(one, messages))
                public_key = km.public_key
                cutter.cutting = False
            assert cutter.cuts > 5
        finally:
            await cutter.close()
    assert all(valid(public_key, *pair) for pair in zip(messages, signatures, strict=True))
    assert {len(keys) for keys in keys_by_message(log).values()} == {1}


async def one_life(served: GatewayProcess, chance: random.Random, kill: bool) -> None:
    await asyncio.sleep(chance.uniform(0.02, 0.2))
    await (served.kill() if kill else served.end())
    await served.start()


@one_loop
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=[pytest.mark.deep, pytest.mark.timeout(1200)])])
def test_kill_9_under_load_settles_each_promise_once_and_never_signs_under_two_keys(run, fresh_token, tmp_path, kills):
    run(kill_nine(fresh_token, tmp_path, kills), timeout=55.0 * kills)


async def kill_nine(fresh_token, tmp_path, kills):
    token, chance, log = fresh_token(*TWO_KEYS), random.Random(kills), tmp_path / "audit.log"
    config = token.config(auditLogFile=str(log))
    async with gateway(tmp_path, config) as served, Client(served.addresses[0], connections=2, timeout=30) as km:
        outcomes, stopped, number = {}, asyncio.Event(), 0

        async def sequencer():
            nonlocal number
            while not stopped.is_set():
                message = b"transaction %d" % (number := number + 1)
                try:
                    outcome = await km.sign(message)
                except HsmError as error:
                    outcome = error
                assert message not in outcomes
                outcomes[message] = outcome

        async def rotator():
            """Another key is current again and again, so that a second signature could be under another one."""
            ids = [token.keys[name].id for name in ("second", "ed25519")]
            while not stopped.is_set():
                try:
                    await km.set_current_key_id(ids[0])
                except HsmError:
                    continue
                ids.reverse()
                await asyncio.sleep(0.01)

        tasks = [start(sequencer()) for _ in range(32)] + [start(rotator())]
        try:
            for _ in range(kills):
                await one_life(served, chance, kill=True)
                done = len(outcomes)
                await becomes(lambda before=done: _more(outcomes, before + 50))
        finally:
            stopped.set()
        await asyncio.gather(*tasks)
    assert len(outcomes) == number
    publics = {key.public_key for key in token.keys.values()}
    signed = {message: one for message, one in outcomes.items() if isinstance(one, bytes)}
    assert all(any(valid(key, message, one) for key in publics) for message, one in signed.items())
    by_message = keys_by_message(log)
    assert by_message
    assert {len(keys) for keys in by_message.values()} == {1}
    for message, one in outcomes.items():
        recorded = hashlib.sha256(message).hexdigest() in by_message
        if isinstance(one, bytes):
            assert recorded
        else:
            assert one.maybe_signed or not recorded, one
            assert isinstance(one, (KeyNotCurrent, MemberDown, DeadlineExceeded)), one


async def _more(outcomes, than):
    return len(outcomes) > than
