"""The gateway's wire face: signatures, batches, answers that are asked for again, keys, turns, and records."""

import hashlib
import json
import os
import shutil
import ssl

import pytest
from nacl.signing import VerifyKey
from tests.support.authority import Authority
from tests.support.chaos import Chaos, wrap
from tests.support.loops import one_loop
from tests.support.managers import becomes, until
from tests.support.policed import ordered
from tests.support.wire import read_signed
from tests.support.wire_site import ME, many, one_of, refusals, sign, site

from hsmcore._native import Digest, verify
from hsmcore.errors import BadArgument, ConfigurationError, HsmError, PolicyRefused
from hsmcore.gateway import Client
from hsmcore.gateway import replay as memory
from hsmcore.gateway.operations import _managed
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type, frame

pytestmark = pytest.mark.integration
M = b"a message"
DIGEST = bytes(range(32))
LONG = {"timeout_ms": 120_000}
"""Longer than anything takes on a busy machine."""
UID = os.getuid()


async def test_a_message_is_signed_and_the_answer_says_with_what(world, tmp_path):
    async with site(world.config(), tmp_path) as gateway, gateway.peer() as peer:
        assert peer.welcome.client == "app"
        assert peer.welcome.slots == ("default",)
        [key] = [one for one in peer.welcome.keys if one.current]
        assert (key.public_key, key.kinds) == (gateway.manager.public_key, wire.UNLIMITED)
        found = await peer.signed(sign(1, M))
        VerifyKey(key.public_key).verify(M, found.signature)
        assert (found.version, found.level, found.audit_seq) == (key.version, "primary", None)
        assert await peer.signed(sign(2, M, version=key.version)) == found


async def test_answers_come_for_every_request_of_one_read(world, tmp_path):
    async with site(world.config(), tmp_path) as gateway, gateway.peer() as peer:
        peer.send(*(sign(number, b"%d" % number) for number in range(1, 201)))
        answers = [await peer.next() for _ in range(200)]
        assert {one.request for one in answers} == set(range(1, 201))
        for one in answers:
            signature = read_signed(one.body).signature
            VerifyKey(gateway.manager.public_key).verify(b"%d" % one.request, signature)
        assert gateway.server.desk.open == 0


@one_loop
async def test_a_batch_has_an_outcome_for_each_message(world, tmp_path):
    async with site(world.config(maxMessageBytes=64), tmp_path) as gateway, gateway.peer() as peer:
        found = await peer.ask(many(1, M, b"x", M))
        version, outcomes = wire.read_signed_many(found.body)
        assert version == next(one.version for one in peer.welcome.keys if one.current)
        assert outcomes[0] == outcomes[2] == await gateway.manager.sign(M)
        found = await peer.ask(many(4, M, b"x" * 65, b"", M))  # what cannot be signed fails alone
        outcomes = wire.read_signed_many(found.body)[1]
        assert outcomes[0] == outcomes[3] == await gateway.manager.sign(M)
        said = [(one.status, one.retryable, one.maybe_signed) for one in outcomes[1:3]]
        assert said == [("MESSAGE_TOO_LARGE", False, False), ("BAD_ARGUMENT", False, False)]
        found = await peer.ask(many(5, b""))
        assert [one.status for one in wire.read_signed_many(found.body)[1]] == ["BAD_ARGUMENT"]
        refusal = await peer.refused(many(2))
        assert refusal.status == "BAD_ARGUMENT"
        refusal = await peer.refused(many(3, *[M] * 1025))
        assert refusal.status == "BAD_ARGUMENT"


@one_loop
async def test_errors_are_those_of_the_key_manager(world, tmp_path):
    async with site(world.config(maxMessageBytes=64), tmp_path) as gateway, gateway.peer() as peer:
        assert (await peer.refused(sign(1, b"x" * 65))).status == "MESSAGE_TOO_LARGE"
        assert (await peer.refused(sign(2, M, kind="block"))).status == "BAD_ARGUMENT"
        assert (await peer.refused(sign(3, M, version=999))).status == "KEY_NOT_FOUND"
        assert (await peer.refused(sign(4, M, slot=7))).status == "POLICY_REFUSED"
        assert gateway.server.desk.open == 0
        await peer.signed(sign(5, M))


@one_loop
async def test_an_unknown_kind_costs_its_request_alone_if_the_frame_is_good(world, tmp_path):
    def of_tomorrow(asked):
        return asked[:16] + bytes((len(wire.KINDS),)) + asked[17:]

    async with site(world.config(), tmp_path) as gateway, gateway.peer() as peer:
        for number, asked in enumerate((sign(1, M), many(2, M, M), one_of(3, M)), 1):
            refusal = await peer.refused(of_tomorrow(asked))
            assert (refusal.status, refusal.retryable, refusal.maybe_signed) == ("BAD_ARGUMENT", False, False)
            assert "kind" in refusal.text
            assert await peer.signed(sign(number, M)), "the number was not used up"
        cut = frame(Type.SIGN_MANY, 4, of_tomorrow(many(4, M))[16:-1])
        assert (await peer.refused(cut)).status == "BAD_ARGUMENT"
        assert await peer.ends() == b""


async def test_the_keys_are_listed_once_for_all_connections_of_a_client(world, tmp_path, monkeypatch):
    async with site(world.config(), tmp_path) as gateway, gateway.peer(), gateway.peer():
        server, listed = gateway.server, []
        keys = server.desk.keys

        def counted(client):
            listed.append(client.name)
            return keys(client)

        monkeypatch.setattr(server.desk, "keys", counted)
        server.tell_keys()
        assert listed == ["app"]


@pytest.mark.parametrize(("processors", "given", "micros"), [(2, {}, 0), (3, {}, 50), (2, {"spinMicros": 50}, 50)])
async def test_workers_leave_the_processor_to_clients(world, tmp_path, monkeypatch, processors, given, micros):
    """With two processors a worker that polls for the next request would stand in the way of whoever sends it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(processors)))
    async with site(world.config(**given), tmp_path) as gateway, gateway.peer() as peer:
        assert gateway.manager.config.key_manager.spin_micros == micros
        assert (await peer.signed(sign(1, M))).signature


async def test_signatures_are_verified_and_pings_answered(world, tmp_path):
    async with site(world.config(), tmp_path) as gateway, gateway.peer() as peer:
        good = await gateway.manager.sign(M)
        for number, message, valid in ((1, M, 1), (2, b"other", 0)):
            found = await peer.ask(wire.verify(number, wire.Verify("", good, message)))
            assert (found.type, found.request, found.body) == (Type.VERIFIED, number, bytes([valid]))
        found = await peer.ask(frame(Type.PING, 9, b"are you there"))
        assert (found.type, found.request, found.body) == (Type.PONG, 9, b"are you there")


@one_loop
async def test_the_same_number_gets_the_first_answer_and_costs_no_second_call(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    nonce = os.urandom(16)
    async with site(chaos.config(), tmp_path) as gateway:
        async with gateway.peer(nonce) as peer:
            first = await peer.signed(sign(1, M))
            calls = chaos.calls("C_Sign")
            assert await peer.signed(sign(1, M, again=True)) == first
        async with gateway.peer(nonce) as peer:
            assert await peer.signed(sign(1, M, again=True)) == first
            other = await peer.refused(sign(1, b"other", again=True))
            assert (other.status, other.retryable) == ("BAD_ARGUMENT", False)
            peer.send(frame(Type.ACK, 2))
            forgotten = await peer.refused(sign(1, M, again=True))
            assert (forgotten.status, forgotten.maybe_signed) == ("BAD_ARGUMENT", True)
        assert chaos.calls("C_Sign") == calls
        assert gateway.server.repeated == 2


@one_loop
async def test_processes_that_crash_lock_out_no_other_one_and_nothing_of_them_is_signed_again(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "NONCES", 3)
    chaos, nonces = Chaos(tmp_path, wrap(world)), [os.urandom(16) for _ in range(6)]
    async with site(chaos.config(maxCacheSize=0), tmp_path) as gateway:
        client = gateway.server.desk.directory.clients["app"]
        for nonce in nonces:
            async with gateway.peer(nonce) as peer:
                await peer.signed(sign(1, M))
            await until(lambda: not client.connections)
        calls = chaos.calls("C_Sign")
        async with gateway.peer(nonces[0]) as peer:
            for again in (True, False):
                refusal = await peer.refused(sign(1, M, again=again))
                assert (refusal.status, refusal.maybe_signed) == ("BAD_ARGUMENT", True)
            assert chaos.calls("C_Sign") == calls
            assert await peer.signed(sign(2, M))
        async with gateway.peer(nonces[-1]) as peer:
            calls = chaos.calls("C_Sign")
            assert await peer.signed(sign(1, M, again=True)), "the newest ones keep their answers"
            assert chaos.calls("C_Sign") == calls


@one_loop
async def test_a_request_goes_on_when_its_connection_breaks_and_its_answer_waits(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    nonce = os.urandom(16)
    async with site(chaos.config(), tmp_path) as gateway:
        before = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True)
        async with gateway.peer(nonce) as peer:
            peer.send(sign(1, M, **LONG))
            await until(lambda: gateway.server.desk.open == 1)
        await until(lambda: not gateway.server.connections)
        async with gateway.peer(nonce) as peer:
            peer.send(sign(1, M, again=True, **LONG))  # while it is open
            await until(lambda: gateway.server.repeated == 1)
            chaos.release()
            found = read_signed((await peer.next()).body)
            VerifyKey(gateway.manager.public_key).verify(M, found.signature)
        async with gateway.peer(nonce) as peer:
            assert await peer.signed(sign(1, M, again=True, **LONG)) == found
        assert chaos.calls("C_Sign") == before + 1


@one_loop
async def test_what_was_sent_first_and_is_read_last_takes_no_answer_away(world, tmp_path):
    """A connection broke, and its bytes are read after those of the next one."""
    chaos = Chaos(tmp_path, wrap(world))
    nonce = os.urandom(16)
    async with site(chaos.config(), tmp_path) as gateway:
        before = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True)
        async with gateway.peer(nonce) as latest:
            latest.send(sign(1, M, again=True, **LONG))
            await until(lambda: gateway.server.desk.open == 1)
            for repeated in (1, 2):
                async with gateway.peer(nonce) as broken:
                    broken.send(sign(1, M, **LONG))
                    await until(lambda: gateway.server.repeated == repeated)  # noqa: B023  # waited for here
            chaos.release()
            found = read_signed((await latest.next()).body)
            VerifyKey(gateway.manager.public_key).verify(M, found.signature)
        assert chaos.calls("C_Sign") == before + 1


@one_loop
async def test_a_request_can_be_withdrawn(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with site(chaos.config(settings={"sessions": 1}), tmp_path, inFlight=1) as gateway, gateway.peer() as peer:
        calls = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True)
        peer.send(sign(1, M, **LONG), sign(2, b"waits for its turn", **LONG))
        await until(lambda: chaos.calls("C_Sign") > calls and gateway.server.desk.open == 2)
        peer.send(frame(Type.CANCEL, 2), frame(Type.CANCEL, 99))
        found = await peer.next()
        refusal = wire.read_error(found.body)
        assert (found.request, refusal.status, refusal.maybe_signed) == (2, "CANCELLED", False)
        peer.send(frame(Type.CANCEL, 1))
        found = await peer.next()
        refusal = wire.read_error(found.body)
        assert (found.request, refusal.status, refusal.maybe_signed) == (1, "CANCELLED", True)
        chaos.release()
        await peer.signed(sign(3, M))


@one_loop
async def test_a_batch_that_has_begun_in_part_says_which_messages_may_be_signed(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with site(chaos.config(settings={"sessions": 1}), tmp_path, inFlight=3) as gateway, gateway.peer() as peer:
        before = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True, every=1)
        messages = [b"%d" % number for number in range(8)]
        found = await peer.ask(many(1, *messages, timeout_ms=150))
        refusals = wire.read_signed_many(found.body)[1]
        assert {one.status for one in refusals} == {"DEADLINE_EXCEEDED"}
        begun = chaos.calls("C_Sign") - before  # of the three that had their turn, as many as there were sessions
        assert 1 <= begun <= 3
        assert [one.maybe_signed for one in refusals] == [True] * begun + [False] * (8 - begun)
        peer.send(sign(2, M, **LONG), sign(3, M + M, **LONG), sign(4, M + M + M, **LONG), many(5, M, b"x", **LONG))
        await until(lambda: gateway.server.desk.open == 5)
        peer.send(frame(Type.CANCEL, 5))
        found = await peer.next()
        refusal = wire.read_error(found.body)
        assert (found.request, refusal.status, refusal.maybe_signed) == (5, "CANCELLED", False)
        peer.send(many(6, M, b"x", **LONG))
        await until(lambda: gateway.server.desk.open == 5)
        chaos.clear()
        chaos.release()
        assert {(await peer.next()).request for _ in range(4)} == {2, 3, 4, 6}
        turns = gateway.server.desk.queues["default"].turns
        assert (gateway.server.desk.open, turns.waiting, turns.under_way) == (0, 0, 0)


@one_loop
async def test_more_than_may_be_open_waits_and_meets_its_deadline(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    clients = {"app": {**ME["app"], "inFlight": 3}}
    config = chaos.config(settings={"sessions": 1})
    async with site(config, tmp_path, clients, inFlight=1) as gateway, gateway.peer() as peer:
        assert (peer.welcome.credits, peer.welcome.batch) == (3, 3)
        calls = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True)
        peer.send(sign(1, M, **LONG), sign(2, M, **LONG), sign(3, b"late", timeout_ms=60), sign(4, M, **LONG))
        peer.send(sign(5, b"withdrawn", **LONG), sign(6, b"late, too", timeout_ms=60))
        # What is behind those that wait is taken all the same.
        assert (await peer.ask(frame(Type.PING, 0, b"here"))).type is Type.PONG
        refusal = await peer.refused(frame(Type.CANCEL, 5))
        assert (refusal.status, refusal.maybe_signed) == ("CANCELLED", False)
        refusal = await peer.refused(many(7, *[M] * 4))  # which would never have room
        assert (refusal.status, refusal.retryable) == ("BAD_ARGUMENT", False)
        found = [await peer.next() for _ in range(2)]
        assert [one.request for one in found] == [3, 6]
        late = [wire.read_error(one.body) for one in found]
        assert {(one.status, one.maybe_signed) for one in late} == {("DEADLINE_EXCEEDED", False)}
        await until(lambda: chaos.calls("C_Sign") > calls)
        chaos.release()
        assert {(await peer.next()).request for _ in range(3)} == {1, 2, 4}
        refusal = await peer.refused(sign(1, b"other"))
        assert refusal.status == "BAD_ARGUMENT"
        await peer.signed(sign(5, b"withdrawn"))  # was not begun: its number is free


@one_loop
async def test_a_rate_is_kept_and_the_refusal_says_when_to_come_back(world, tmp_path):
    clients = {"app": {**ME["app"], "perSecond": 5}}
    async with site(world.config(), tmp_path, clients) as gateway, gateway.peer() as peer:
        peer.send(*(sign(number, M) for number in range(1, 11)))
        answers = [await peer.next() for _ in range(10)]
        assert sum(one.type is Type.SIGNED for one in answers) == 5
        refusals = [wire.read_error(one.body) for one in answers if one.type is Type.ERROR]
        assert {one.status for one in refusals} == {"QUEUE_FULL"}
        assert all(0 < one.retry_after_ms <= 200 for one in refusals)
    clients = {"app": {**ME["app"], "perSecond": 5}}
    async with site(world.config(), tmp_path, clients) as gateway, gateway.peer() as peer:
        assert (await peer.ask(many(1, *[M] * 25))).type is Type.SIGNED_MANY  # more than a second allows, and owed
        refusal = await peer.refused(sign(2, M))
        assert 0 < refusal.retry_after_ms <= 4200
        if refusal.retry_after_ms > 1000:  # unless the machine is that slow
            assert (await peer.refused(sign(2, M))).status == "QUEUE_FULL"


@one_loop
async def test_a_client_has_only_the_kinds_and_keys_that_are_listed(world, tmp_path):
    policy = {"kinds": ["raw", "block"], "domain": "chain"}
    clients = {"app": {**ME["app"], "kinds": ["raw"]}}
    log = tmp_path / "audit.jsonl"
    config = world.config(policy=policy, stateFile=str(tmp_path / "state.db"), auditLogFile=str(log))
    async with site(config, tmp_path, clients) as gateway, gateway.peer() as peer:
        [key] = [one for one in peer.welcome.keys if one.current]
        assert key.kinds == wire.TRACES | 1 << wire.KINDS.index("raw")
        await peer.signed(sign(1, M, kind="raw"))
        assert (await peer.refused(sign(2, bytes(32)))).status == "POLICY_REFUSED"
        refusal = await peer.refused(sign(3, bytes(32), kind="block", position=1))
        assert (refusal.status, "hsmcore.payload" in refusal.text) == ("POLICY_REFUSED", True)
        _, outcomes = wire.read_signed_many((await peer.ask(many(4, M, bytes(32)))).body)
        assert isinstance(outcomes[0], bytes)
        assert outcomes[1].status == "POLICY_REFUSED"
        _, [outcome] = wire.read_signed_many((await peer.ask(many(5, bytes(32), kind="raw"))).body)
        assert outcome.status == "POLICY_REFUSED"
        assert (await peer.refused(sign(6, bytes(32), kind="prehashed"))).status == "POLICY_REFUSED"
        assert (await peer.refused(sign(7, M, slot=1))).status == "POLICY_REFUSED"
        assert (await peer.refused(wire.manage(8, wire.Manage("generate", "")))).status == "POLICY_REFUSED"
    assert [(one["label"].split()[0], one["command"], one["why"]) for one in refusals(log)] == [
        ("app", "sign default", "kind digest32 not listed"),
        ("app", "sign default", "kind digest32 not listed"),
        ("app", "sign default", "kind digest32 not listed"),
        ("app", "sign default", "kind digest32 not listed"),
        ("app", "sign default", "kind prehashed not listed"),
        ("app", "number 1", "key not listed"),
        ("app", "generate default", "may not manage keys"),
    ]


@one_loop
async def test_a_claim_that_is_wrong_is_recorded_too(world, tmp_path):
    policy, log = {"kinds": ["raw", "digest32"]}, tmp_path / "audit.jsonl"
    config = world.config(policy=policy, auditLogFile=str(log))
    async with site(config, tmp_path) as gateway, gateway.peer() as peer:
        _, [outcome] = wire.read_signed_many((await peer.ask(many(1, bytes(32), kind="raw"))).body)
        assert outcome.status == "POLICY_REFUSED"
    assert [one["why"] for one in refusals(log)] == ["kind digest32 claimed as raw"]


@one_loop
async def test_a_connection_that_stalls_loses_no_request_to_another_one(world, tmp_path):
    clients, nonce = {"app": {**ME["app"], "inFlight": 2}}, os.urandom(16)
    async with site(world.config(maxCacheSize=0), tmp_path, clients) as gateway, gateway.peer(nonce) as stalled:
        async with gateway.peer(nonce) as peer:
            first = [await peer.signed(sign(number, b"%d" % number)) for number in range(2, 40)]
            # 1 was sent before them all, and comes behind them; it may have been sent again on the other one.
            signed = await stalled.signed(sign(1, M))
            assert await peer.signed(sign(1, M, again=True)) == signed
            assert [await peer.signed(sign(number, b"%d" % number)) for number in range(2, 40)] == first
        assert gateway.server.desk.requests["app", "OK"] == 39


@one_loop
async def test_a_client_that_never_acknowledges_is_held_back_and_nothing_is_forgotten(world, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMORY_BYTES", 8000)
    monkeypatch.setattr(memory, "CREDIT_BYTES", 0)
    async with site(world.config(), tmp_path) as gateway, gateway.peer() as peer:
        number, first = 1, await peer.signed(sign(1, M))
        while (answer := await peer.ask(sign(number + 1, b"%d" % number))).type is Type.SIGNED:
            number += 1
            assert number < 1000
        refusal = wire.read_error(answer.body)
        assert (refusal.status, refusal.retryable, refusal.maybe_signed) == ("QUEUE_FULL", True, False)
        assert refusal.retry_after_ms > 0
        assert number > 10
        assert await peer.signed(sign(1, M, again=True)) == first
        peer.send(frame(Type.ACK, number + 1))
        await peer.signed(sign(number + 1, b"%d" % number))


@one_loop
async def test_an_ordered_payload_is_signed_once_for_a_position(world, tmp_path):
    policy = {"kinds": ["block"], "domain": "chain"}
    config = world.config(policy=policy, stateFile=str(tmp_path / "state.db"))
    async with site(config, tmp_path) as gateway, gateway.peer() as peer:
        one, other = (ordered(7, content, domain="chain") for content in (b"one", b"other"))
        first = await peer.signed(sign(1, one, kind="block", position=7))
        VerifyKey(gateway.manager.public_key).verify(one, first.signature)
        refusal = await peer.refused(sign(2, other, kind="block"))
        assert (refusal.status, refusal.retryable) == ("DOUBLE_SIGN", False)
        assert (await peer.refused(sign(3, one, kind="block", position=8))).status == "POLICY_REFUSED"
        refusal = await peer.refused(sign(4, bytes(32), kind="block", position=8))
        assert (refusal.status, "hsmcore.payload(" in refusal.text) == ("POLICY_REFUSED", True)


@one_loop
async def test_every_record_has_the_client(world, tmp_path):
    clients = {"app": ME["app"], "other": {"names": ["dns:other.example"], "keys": ["default"]}}
    config = world.config(auditLogFile=str(tmp_path / "audit.jsonl"))
    async with site(config, tmp_path, clients) as gateway, gateway.peer() as peer:
        first = await peer.signed(sign(1, M))
        assert first.audit_seq
        await peer.ask(many(2, b"x", b"y"))
        await peer.refused(sign(3, M, kind="block"))
    records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    signed = [one for one in records if one["operation"] in ("sign", "sign-many")]
    assert len(signed) == 4
    assert {one.get("caller") for one in signed} == {"app"}


@one_loop
async def test_policy_callers_see_the_client(world, tmp_path):
    policy = {"kinds": ["raw"], "callers": {"app": {"kinds": ["raw"]}}}
    async with site(world.config(policy=policy), tmp_path) as gateway, gateway.peer() as peer:
        await peer.signed(sign(1, M))
    policy = {"kinds": ["raw"], "callers": {"another": {"kinds": ["raw"]}}}
    async with site(world.config(policy=policy), tmp_path) as gateway, gateway.peer() as peer:
        assert (await peer.refused(sign(1, M))).status == "POLICY_REFUSED"


@one_loop
async def test_keys_are_managed_by_whom_may_and_told_to_all(fresh_token, tmp_path):
    token = fresh_token()
    clients = {"app": {**ME["app"], "manages": True}}
    async with site(token.config(), tmp_path, clients) as gateway, gateway.peer() as peer, gateway.peer() as watcher:
        [old] = peer.welcome.keys
        peer.send(wire.manage(1, wire.Manage("generate", "")))
        found = [await peer.next() for _ in range(2)]
        [done] = [one for one in found if one.type is Type.DONE]
        new = done.body.decode()
        [keys] = [wire.read_keys(one.body) for one in found if one.type is Type.KEYS]
        assert {one.id: one.current for one in keys} == {old.id: True, new: False}
        pinned = next(one.version for one in keys if one.id == new)
        assert (await peer.refused(sign(2, M, version=pinned))).status == "KEY_NOT_CURRENT"
        peer.send(wire.manage(3, wire.Manage("set-current", new)))
        found = [await peer.next() for _ in range(2)]
        assert {one.type for one in found} == {Type.DONE, Type.KEYS}
        assert (await peer.refused(sign(4, M, version=old.version))).status == "KEY_NOT_CURRENT"
        signed = await peer.signed(sign(5, M, version=pinned))
        VerifyKey(gateway.manager.public_key).verify(M, signed.signature)
        told = [wire.read_keys((await watcher.next()).body) for _ in range(2)]
        assert {one.id for one in told[1] if one.current} == {new}
        stats = await peer.ask(wire.manage(6, wire.Manage("cache-stats", "")))
        assert json.loads(stats.body)["max_size"] == gateway.manager.get_cache_stats()["max_size"]


@one_loop
async def test_keys_are_not_managed_by_others(world, tmp_path):
    async with site(world.config(), tmp_path) as gateway, gateway.peer() as peer:
        for number, operation in enumerate(("generate", "set-current", "deactivate"), 1):
            asked = wire.manage(number, wire.Manage(operation, gateway.manager.keys()[0].id))
            assert (await peer.refused(asked)).status == "POLICY_REFUSED"
        assert len(gateway.manager.keys()) == 1


@one_loop
async def test_a_digest_is_signed_as_it_is_where_it_is_listed(world, tmp_path):
    policy = {"kinds": ["prehashed"]}
    async with site(world.config("ecdsa-p256", policy=policy), tmp_path) as gateway, gateway.peer() as peer:
        found = await peer.signed(sign(1, DIGEST, kind="prehashed"))
        assert found.version == next(one.version for one in peer.welcome.keys if one.current)
        assert (await peer.refused(sign(2, b"short", kind="prehashed"))).status == "BAD_ARGUMENT"
    async with site(world.config("ecdsa-p256"), tmp_path) as gateway, gateway.peer() as peer:
        assert (await peer.refused(sign(1, DIGEST, kind="prehashed"))).status == "POLICY_REFUSED"


@one_loop
async def test_the_version_of_a_signed_digest_is_the_one_that_signed(world, tmp_path):
    config = world.config("ecdsa-p256", policy={"kinds": ["prehashed"]}, stateFile=str(tmp_path / "s.db"))
    async with site(config, tmp_path) as gateway:
        manager, sign_digest = gateway.manager, gateway.manager.sign_digest
        first = await manager.get_current_key_id()
        second = await manager.generate_key()

        async def flickering(digest, timeout):
            await manager.set_current_key_id(second)
            signed = await sign_digest(digest, timeout)
            await manager.set_current_key_id(first)
            return signed

        manager.sign_digest = flickering
        async with gateway.peer() as peer:
            keys = {one.id: one for one in peer.welcome.keys}
            found = await peer.signed(sign(1, DIGEST, kind="prehashed"))
            assert verify("ecdsa-p256", keys[second].public_key, Digest(DIGEST), found.signature)
            assert found.version == keys[second].version
            refused = await peer.refused(sign(2, DIGEST, kind="prehashed", version=keys[first].version))
            assert (refused.status, refused.maybe_signed) == ("KEY_NOT_CURRENT", True)


@one_loop
async def test_clients_are_known_by_the_names_in_their_certificates(world, tmp_path):
    authority = Authority(tmp_path)
    own = authority.issue("gateway", ips=["127.0.0.1"])
    files = {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file}
    clients = {
        "dns": {"names": ["dns:sequencer.example"], "keys": ["default"]},
        "spiffe": {"names": ["spiffe://chain.example/sequencer"], "keys": ["default"]},
    }
    listen = ["tls:127.0.0.1:0"]
    async with site(world.config(), tmp_path, clients, listen=listen, tls=files) as gateway:

        def context(issued):
            made = ssl.create_default_context(cafile=authority.file)
            if issued is not None:
                made.load_cert_chain(issued.certificate, issued.key)
            return made

        for name, names in (
            ("dns", {"dns": ["other.example", "SEQUENCER.example"]}),
            ("spiffe", {"uris": ["spiffe://chain.example/sequencer"]}),
        ):
            async with gateway.over_tls(context(authority.issue(f"client-{name}", **names))) as peer:
                assert (await peer.hello()).client == name
                await peer.signed(sign(1, M))
        both = authority.issue("both", dns=["sequencer.example"], uris=["spiffe://chain.example/sequencer"])
        for stranger in (
            authority.issue("stranger", dns=["stranger.example"]),
            authority.issue("sequencer.example"),
            both,
        ):
            async with gateway.over_tls(context(stranger)) as peer:
                assert (await peer.refused(wire.hello(bytes(16), "x"))).status == "POLICY_REFUSED"
                assert await peer.ends() == b""
        (tmp_path / "elsewhere").mkdir()
        foreign = Authority(tmp_path / "elsewhere").issue("foreign", dns=["sequencer.example"])
        for nobody in (None, foreign):
            with pytest.raises((OSError, EOFError)):
                async with gateway.over_tls(context(nobody)) as peer:
                    await peer.hello()
        await until(lambda: gateway.server.desk.strangers == 5)


@pytest.mark.parametrize("missing", ["certificateFile", "keyFile", "clientCaFile"])
@one_loop
async def test_a_file_that_cannot_be_read_is_named(world, tmp_path, missing):
    authority = Authority(tmp_path)
    own = authority.issue("gateway", ips=["127.0.0.1"])
    files = {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file}
    files[missing] = str(tmp_path / "absent.pem")
    with pytest.raises(ConfigurationError, match=r"cannot be used: .*/absent\.pem: No such file"):
        async with site(world.config(), tmp_path, {}, listen=["tls:127.0.0.1:0"], tls=files):
            pass


@one_loop
async def test_a_socket_without_its_folder_says_what_to_make(world, tmp_path):
    with pytest.raises(ConfigurationError, match="cannot listen at") as failure:
        async with site(world.config(), tmp_path, {}, listen=[f"unix:{tmp_path}/absent/sign.sock"]):
            pass
    assert failure.value.hint.startswith("Make the socket's folder")


@one_loop
async def test_certificates_are_read_again_when_they_change(world, tmp_path):
    (tmp_path / "new").mkdir()
    old, new = Authority(tmp_path), Authority(tmp_path / "new")
    own = old.issue("gateway", ips=["127.0.0.1"])
    files = {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": old.file}
    clients = {"dns": {"names": ["dns:sequencer.example"], "keys": ["default"]}}

    def context(authority, server):
        issued = authority.issue("client", dns=["sequencer.example"])
        made = ssl.create_default_context(cafile=server.file)
        made.load_cert_chain(issued.certificate, issued.key)
        return made

    served = site(world.config(), tmp_path, clients, listen=["tls:127.0.0.1:0"], tls=files)
    async with served as gateway, gateway.over_tls(context(old, old)) as peer:
        await peer.hello()
        fresh = new.issue("gateway", ips=["127.0.0.1"])
        shutil.copy(fresh.certificate, own.certificate)  # without its key yet: the old pair stays in use
        async with gateway.over_tls(context(old, old)) as other:
            await other.hello()
        shutil.copy(fresh.key, own.key)
        shutil.copy(new.file, old.file)

        async def is_read():
            try:
                async with gateway.over_tls(context(new, new)) as other:
                    await other.hello()
            except (OSError, EOFError):  # the files are looked at once a second
                return False
            return True

        await becomes(is_read)
        with pytest.raises((OSError, EOFError)):  # its authority was removed
            async with gateway.over_tls(context(old, new)) as other:
                await other.hello()
        await peer.signed(sign(1, M))  # a connection from before goes on


@one_loop
async def test_what_is_unfinished_is_told_to_whom_may_have_it_signed(world, tmp_path):
    """The next process gets what the one before may not have handed out, message and all, and signs the same."""
    rules = {"stateFile": str(tmp_path / "state.db"), "auditLogFile": str(tmp_path / "audit.log")}
    config = world.config(policy={"kinds": ["block", "raw"]}, **rules)
    clients = {**ME, "some": {"gid": [os.getgid() + 1], "keys": ["default"], "kinds": ["raw"]}}
    async with site(config, tmp_path, clients) as gateway, Client(gateway.addresses[0]) as km:
        assert await km.unfinished("default/block") is None
        signature = await km.sign(ordered(4))
        # Whether a client has it in hand is not known to the gateway: its next process is told all the same.
        assert (await km.unfinished("default/block")).position == 4
        assert await gateway.manager.unfinished("default/block", handed_out=True)
    async with site(config, tmp_path, clients) as gateway, Client(gateway.addresses[0]) as km:
        found = await km.unfinished("default/block")
        assert found == ("block", 4, hashlib.sha256(ordered(4)).digest(), ordered(4))
        with pytest.raises(BadArgument):
            await km.unfinished("")
        # One that may not have blocks signed does not learn of them.
        some = gateway.server.desk.counter(gateway.server.desk.directory.clients["some"], "default")
        with pytest.raises(PolicyRefused):
            await _managed(some, "unfinished", "default/block")
        assert await _managed(some, "unfinished", "default/none") == "null"
        assert await km.sign(found.message, kind=found.kind, position=found.position) == signature


@one_loop
async def test_a_refusal_has_the_number_by_which_its_record_is_found(world, tmp_path):
    config = world.config(auditLogFile=str(tmp_path / "audit.log"))
    async with site(config, tmp_path) as gateway, Client(gateway.addresses[0]) as km:
        with pytest.raises(HsmError) as caught:
            await km.sign(b"m", kind="block")
        await gateway.manager.audit.flush()
        match = {"via.request": caught.value.request, "result": "error"}
        [record] = [one async for one in gateway.manager.audit.query(match=match)]
    assert record["operation"] == "sign"
