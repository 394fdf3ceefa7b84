"""libhsmcore_pkcs11.so and gateways that lie, break the protocol, refuse and end; lists of them."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
from contextlib import contextmanager

import pytest
from tests.support import pkcs11_client as p11
from tests.support.gateways import FakeConnection, FakeGateway, fake_signature, honest
from tests.support.loops import one_loop
from tests.support.paths import ROOT
from tests.support.pkcs11_session import initialized
from tests.support.size import share
from tests.support.wire import signed

from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type

pytestmark = pytest.mark.integration
VECTORS = json.loads((ROOT / "tests" / "wire" / "vectors.json").read_text())
REFUSED = [bytes.fromhex(one["hex"]) for one in VECTORS["refused"] if one["by"] == "client"]
CKM_ECDSA_SHA256, CKR_DATA_LEN_RANGE = 0x1044, 0x21


def refusal(status="QUEUE_FULL", *, retryable=True, maybe_signed=False, after=1, class_="RETRY", text="", holder=""):
    return wire.Refusal(retryable, maybe_signed, after, status, class_, text, holder)


class Caller:
    """A session with the first key; its calls run in a thread, since the gateways are here."""

    def __init__(self, module):
        self.module = module

    def begin(self):
        self.session = self.module.session(self.module.slots()[0])
        self.key = self.module.key(self.session, "default")

    async def __call__(self, message=b"m", mechanism=p11.CKM_EDDSA):
        def work():
            assert self.module.sign_init(self.session, self.key, mechanism) == 0
            rv, length, raw = self.module.sign(self.session, message)
            return rv, raw[:length] if rv == 0 else b""

        return await asyncio.to_thread(work)


@contextmanager
def calling(*addresses, **settings):
    with initialized(*(f"unix:{one}" for one in addresses), **settings) as module:
        yield Caller(module)


@one_loop
async def test_what_breaks_the_protocol_ends_a_connection_and_no_request(tmp_path):
    path = str(tmp_path / "g.sock")
    chance = random.Random(1)
    async with FakeGateway(path) as gateway:
        with calling(path) as sign:
            await asyncio.to_thread(sign.begin)
            for number, bad in enumerate(REFUSED):
                message = b"%d" % number
                before, tried = gateway.accepted, []

                def answer(served, connection, one, bad=bad, tried=tried):
                    if one.type is Type.SIGN and not tried:
                        tried.append(one)
                        # What answers a request names it; each piece by itself.
                        made = bad[:8] + one.request.to_bytes(8, "little") + bad[16:] if len(bad) >= 16 else bad
                        cut = chance.randrange(len(made))
                        connection.transport.write(made[:cut])
                        connection.transport.write(made[cut:])
                    else:
                        honest(served, connection, one)

                gateway.answer = answer
                expected = fake_signature(gateway.public_keys[-1], message)
                assert await sign(message) == (0, expected), bad.hex()
                assert gateway.accepted == before + 1, bad.hex()
                [first, again] = gateway.received(Type.SIGN)[-2:]
                assert (again.request, again.flags, again.body) == (first.request, 2, first.body)


@one_loop
async def test_bytes_that_are_changed_at_random_crash_nothing(tmp_path):
    path = str(tmp_path / "g.sock")
    chance = random.Random(2)

    def mutated(data):
        data = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data[: chance.randrange(1, len(data) + 1)] if chance.random() < 0.3 else data)

    frames = [bytes.fromhex(one["hex"]) for one in VECTORS["frames"] if one["from"] == "gateway"]

    def answer(served, connection, one):
        if one.type is Type.SIGN and chance.random() < 0.5:
            connection.transport.write(mutated(chance.choice(frames)))
        else:
            honest(served, connection, one)

    async with FakeGateway(path) as gateway:
        gateway.answer = answer
        with calling(path, timeout_ms=100) as sign:
            await asyncio.to_thread(sign.begin)
            for _ in range(share(80)):
                if gateway.connections and chance.random() < 0.2:
                    gateway.connections[-1].transport.abort()
                await asyncio.to_thread(sign.module.slots)
                session = sign.session
                await asyncio.to_thread(sign.module.find, session, {p11.CKA_CLASS: p11.CKO_PRIVATE_KEY})
                if await asyncio.to_thread(sign.module.sign_init, session, sign.key) == 0:
                    await asyncio.to_thread(sign.module.sign, session, b"m")


@one_loop
async def test_refusals_that_pass_wait_and_others_are_told(tmp_path):
    path = str(tmp_path / "g.sock")
    async with FakeGateway(path) as gateway:
        refusals = []

        def answer(served, connection, one):
            if one.type is Type.SIGN and refusals:
                connection.transport.write(wire.error(one.request, refusals.pop(0)))
            else:
                honest(served, connection, one)

        gateway.answer = answer
        with calling(path, timeout_ms=2000) as sign:
            await asyncio.to_thread(sign.begin)
            refusals += [refusal(), refusal(), refusal("BUSY", after=0)]
            assert (await sign())[0] == 0
            numbers = [one.request for one in gateway.received(Type.SIGN)]
            assert len(set(numbers)) == 4  # each attempt is a request of its own
            for expected, told in (
                (p11.CKR_FUNCTION_REJECTED, refusal("POLICY_REFUSED", retryable=False, class_="REQUEST_FATAL")),
                (p11.CKR_FUNCTION_REJECTED, refusal("DOUBLE_SIGN", retryable=False, class_="REQUEST_FATAL")),
                (p11.CKR_FUNCTION_FAILED, refusal("QUEUE_FULL", after=60_000)),
                (p11.CKR_FUNCTION_FAILED, refusal("DEADLINE_EXCEEDED", maybe_signed=True)),
                (p11.CKR_FUNCTION_FAILED, refusal("NOT_HOLDER")),  # one address: at once
                (p11.CKR_DEVICE_ERROR, refusal("TOKEN_LOST", retryable=False, class_="MEMBER_DOWN")),
                (CKR_DATA_LEN_RANGE, refusal("MESSAGE_TOO_LARGE", retryable=False, class_="REQUEST_FATAL")),
            ):
                refusals.append(told)
                assert (await sign())[0] == expected, told
            gateway.answer = lambda *_: None
            assert (await sign())[0] == p11.CKR_FUNCTION_FAILED  # the deadline
            assert [one.request for one in gateway.received(Type.CANCEL)] == [gateway.received(Type.SIGN)[-1].request]


@one_loop
async def test_what_another_try_cannot_mend_is_said_at_once(tmp_path, monkeypatch):
    first, second = str(tmp_path / "1.sock"), str(tmp_path / "2.sock")
    no = wire.error(0, refusal("POLICY_REFUSED", retryable=False, after=0, class_="REQUEST_FATAL"))
    other_version = bytes.fromhex(
        next(one["hex"] for one in VECTORS["refused"] if one["name"] == "welcome of version 2")
    )
    later = wire.error(0, refusal())

    def says(*frames):
        left = list(frames)

        def welcome(connection):
            if left:
                connection.transport.write(left.pop(0))
                connection.transport.close()
            else:
                welcomes(connection)

        monkeypatch.setattr(FakeConnection, "welcome", welcome)

    welcomes = FakeConnection.welcome
    async with FakeGateway(first) as one, FakeGateway(second) as other:
        with calling(first, timeout_ms=600_000) as sign:
            says(no)
            count = ctypes.c_ulong()
            asked = asyncio.to_thread(sign.module, "C_GetSlotList", 1, None, ctypes.byref(count))
            assert (await asked, one.accepted) == (p11.CKR_FUNCTION_FAILED, 1)
            says(later)  # but this passes
            await asyncio.to_thread(sign.begin)
            for frame, expected in ((no, p11.CKR_FUNCTION_REJECTED), (other_version, p11.CKR_DEVICE_ERROR)):
                says(frame)
                [connection] = one.connections
                connection.transport.abort()
                await connection.ended
                assert (await sign())[0] == expected
                assert (await sign())[0] == 0  # a later call tries again
        with calling(first, second, timeout_ms=600_000) as sign:
            says(no)
            await asyncio.to_thread(sign.begin)
            assert (await sign())[0] == 0
            says(no, other_version)
            [connection] = one.connections + other.connections
            connection.transport.abort()
            await connection.ended
            assert (await sign())[0] == p11.CKR_DEVICE_ERROR


@one_loop
async def test_a_list_is_walked_to_the_holder(tmp_path):
    first, second, third, dead = (str(tmp_path / name / "sign.sock") for name in ("host-1", "host-2", "host-3", "dead"))
    for one in (first, second, third):
        os.mkdir(os.path.dirname(one))  # noqa: PTH102, PTH120
    async with FakeGateway(first) as standby, FakeGateway(second) as holder, FakeGateway(third) as passed:
        with calling(dead, first, third, second, timeout_ms=20_000) as sign:
            await asyncio.to_thread(sign.begin)
            assert not holder.connections

            def answer(served, connection, one):
                told = refusal("NOT_HOLDER", after=0, holder="host-2")
                connection.transport.write(wire.error(one.request, told))

            standby.answer = answer
            assert (await sign())[0] == 0
            assert len(standby.received(Type.SIGN)) == len(holder.received(Type.SIGN)) == 1
            assert not passed.accepted  # the holder's name is in an address
            # What was sent there and is not answered when it ends: the next one is asked for the same bytes.
            standby.answer = honest

            def ends(served, connection, one):
                connection.transport.write(wire.goaway(1000, "stopped"))
                connection.transport.abort()

            holder.answer = ends
            assert (await sign(b"n")) == (0, fake_signature(standby.public_keys[-1], b"n"))
            [again] = passed.received(Type.SIGN) + standby.received(Type.SIGN)[1:]
            assert again.flags == 2


@one_loop
async def test_an_ecdsa_signature_is_not_asked_for_twice(tmp_path):
    path = str(tmp_path / "g.sock")

    class Ecdsa(FakeGateway):
        def keys(self):
            listed = super().keys()
            return tuple(one._replace(algorithm="ecdsa-p256", public_key=b"\4" + bytes(64)) for one in listed)

    async with Ecdsa(path) as gateway:
        with calling(path) as sign:
            await asyncio.to_thread(sign.begin)
            assert (await sign(b"m", CKM_ECDSA_SHA256))[0] == 0

            # One that was started again while nothing was asked has lost no request.
            gateway.instance = os.urandom(16)
            [connection] = gateway.connections
            connection.transport.abort()
            await connection.ended
            assert (await sign(b"m", CKM_ECDSA_SHA256))[0] == 0

            def restarts(served, connection, one):
                served.instance = os.urandom(16)
                connection.transport.abort()

            gateway.answer = restarts
            assert (await sign(b"m", CKM_ECDSA_SHA256))[0] == p11.CKR_DEVICE_ERROR
            assert len(gateway.received(Type.SIGN)) == 3


@one_loop
async def test_a_false_signature_is_not_handed_out(tmp_path):
    path = str(tmp_path / "g.sock")
    async with FakeGateway(path) as gateway:  # its signatures are hashes
        with calling(path, verify="yes") as sign:
            await asyncio.to_thread(sign.begin)
            assert (await sign())[0] == p11.CKR_DEVICE_ERROR
        gateway.answer = lambda _, connection, one: connection.transport.write(signed(one.request, bytes(64), 7))
        with calling(path, timeout_ms=300) as sign:  # nor one of another version of the key
            await asyncio.to_thread(sign.begin)
            assert (await sign())[0] in {p11.CKR_DEVICE_REMOVED, p11.CKR_FUNCTION_FAILED}
