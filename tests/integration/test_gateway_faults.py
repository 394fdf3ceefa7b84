"""hsmcore.gateway.Client against gateways that are slow, mute, wrong or hostile."""

from __future__ import annotations

import asyncio
import random
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.signing import SigningKey
from tests.support.gateways import PUBLIC_KEY, FakeConnection, FakeGateway, fake_signature, honest
from tests.support.managers import becomes, start
from tests.support.wire import signed

from hsmcore.errors import (
    BadArgument,
    DeadlineExceeded,
    EngineClosed,
    HsmError,
    InvalidMessageType,
    InvalidTimeout,
    KeyNotCurrent,
    KeyNotFound,
    MemberDown,
    MessageTooLarge,
    NotInitialized,
    PolicyRefused,
    QueueFull,
    WrongEventLoop,
)
from hsmcore.gateway import Client, ClientTls
from hsmcore.gateway.client.connections import Connections
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type, frame


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "fake.sock")


def silent(*_: object) -> None:
    """Answer nothing."""


async def has(fake: FakeGateway, kind: Type, count: int) -> bool:
    return len(fake.received(kind)) >= count


async def test_calls_of_one_turn_are_sent_together_and_answered_in_any_order(path):
    async with FakeGateway(path) as fake, Client(f"unix:{path}") as km:
        held = []
        fake.answer = lambda *request: held.append(request)
        tasks = [start(km.sign(b"%d" % number)) for number in range(50)]
        await becomes(lambda: has(fake, Type.SIGN, 50))
        random.Random(1).shuffle(held)
        for request in held:
            honest(*request)
        signatures = await asyncio.gather(*tasks)
        assert signatures == [fake_signature(PUBLIC_KEY, b"%d" % number) for number in range(50)]
        assert [wire.read_sign(one).version for one in fake.received(Type.SIGN)] == [1] * 50


async def test_no_more_is_open_than_the_credits_allow_and_the_first_is_served_first(path):
    async with FakeGateway(path) as fake:
        fake.credits = 3
        held = []
        fake.answer = lambda *request: held.append(request)
        async with Client(f"unix:{path}", connections=2) as km:
            order = []

            async def one(number):
                await km.sign(b"%d" % number)
                order.append(number)

            tasks = [start(one(number)) for number in range(20)]
            while len(order) < 20:
                await becomes(lambda: has(fake, Type.SIGN, min(len(order) + 3, 20)))
                assert len(held) <= 3
                honest(*held.pop(0))
                count = len(order)
                await becomes(lambda before=count: _longer(order, before))
            await asyncio.gather(*tasks)
            assert order == list(range(20))


async def _longer(found, than):
    return len(found) > than


async def test_who_waits_for_room_waits_within_the_timeout(path):
    async with FakeGateway(path) as fake:
        fake.credits, fake.answer = 1, silent
        async with Client(f"unix:{path}", max_waiting=2, timeout=0.4) as km:
            first = start(km.sign(b"first"))
            await becomes(lambda: has(fake, Type.SIGN, 1))
            waiting = [start(km.sign(b"waits")), start(km.sign(b"waits, too"))]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull):
                await km.sign(b"one too many")
            for task, maybe in ((first, True), *((task, False) for task in waiting)):
                with pytest.raises(DeadlineExceeded) as failure:
                    await task
                assert failure.value.maybe_signed is maybe
                assert failure.value.retryable
        assert len(fake.received(Type.SIGN)) == 1
        assert await has(fake, Type.CANCEL, 0)


async def test_who_is_told_when_there_is_room_comes_back_within_the_timeout(path):
    async with FakeGateway(path) as fake, Client(f"unix:{path}", timeout=30) as km:
        refused = []

        def once(served, connection, one):
            if one.type in (Type.SIGN, Type.MANAGE) and len(refused) < 40:
                refused.append(one.request)
                refusal = wire.Refusal(True, False, 20, "QUEUE_FULL", "RETRY", "no room")
                connection.transport.write(wire.error(one.request, refusal))
            elif one.type is Type.MANAGE:
                connection.transport.write(wire.done(one.request, "{}"))
            else:
                honest(served, connection, one)

        fake.answer = once
        asked = [start(km.sign(b"%d" % number)) for number in range(20)]
        assert await km.get_cache_stats() == {}
        for number, signature in enumerate(await asyncio.gather(*asked)):
            assert signature == fake_signature(PUBLIC_KEY, b"%d" % number)
        # What was refused is not remembered, or as the refusal that it was: each time it is another request.
        assert len({one.request for one in fake.frames if one.type is Type.SIGN}) == len(fake.received(Type.SIGN))
        assert len(refused) == 40


async def test_a_cancelled_call_is_withdrawn_and_its_answer_ignored(path):
    async with FakeGateway(path) as fake:
        fake.credits = 1
        held = []
        fake.answer = lambda *request: held.append(request) if request[2].type is Type.SIGN else None
        async with Client(f"unix:{path}") as km:
            task = start(km.sign(b"not wanted any more"))
            await becomes(lambda: has(fake, Type.SIGN, 1))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            next_one = start(km.sign(b"wanted"))
            await becomes(lambda: has(fake, Type.CANCEL, 1))
            assert fake.received(Type.CANCEL)[0].request == fake.received(Type.SIGN)[0].request
            assert len(held) == 1  # it is open until it is answered, so there is no room
            honest(*held.pop())
            await becomes(lambda: has(fake, Type.SIGN, 2))
            honest(*held.pop())
            assert await next_one == fake_signature(PUBLIC_KEY, b"wanted")


async def test_each_part_of_a_cancelled_batch_is_withdrawn(path):
    async with FakeGateway(path) as fake:
        fake.answer = silent
        async with Client(f"unix:{path}", timeout=30) as km:
            fake.credits = 16
            task = start(km.sign_many([b"%d" % number for number in range(16)]))
            await becomes(lambda: has(fake, Type.SIGN_MANY, 1))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            sent = {one.request for one in fake.received(Type.SIGN_MANY)}
            await becomes(lambda: has(fake, Type.CANCEL, len(sent)))
            assert {one.request for one in fake.received(Type.CANCEL)} == sent


async def test_a_batch_is_cut_into_what_the_gateway_takes(path):
    async with FakeGateway(path) as fake, Client(f"unix:{path}") as km:
        messages = [b"%d" % number for number in range(30)]
        assert await km.sign_many(messages) == [fake_signature(PUBLIC_KEY, message) for message in messages]
        sizes = [len(wire.read_sign_many(one.body).messages) for one in fake.received(Type.SIGN_MANY)]
        assert sizes == [8, 8, 8, 6]
        assert await km.sign_many([]) == []

        def refuse_third(served, connection, one):
            said = wire.Refusal(False, False, 0, "POLICY_REFUSED", "REQUEST_FATAL", "not this one")
            outcomes = [bytes(64), said, bytes(64)]
            connection.transport.write(wire.signed_many(one.request, 1, outcomes))

        fake.answer = refuse_third
        with pytest.raises(PolicyRefused, match="not this one"):
            await km.sign_many([b"1", b"2", b"3"])
        first, second, third = await km.sign_many([b"1", b"2", b"3"], return_exceptions=True)
        assert isinstance(second, PolicyRefused)
        assert first == third == bytes(64)


async def test_a_rotation_pushes_the_key_and_requests_under_way_follow_it(path):
    async with FakeGateway(path) as fake, Client(f"unix:{path}") as km:

        def rotated(served, connection, one):
            asked = wire.read_sign(one)
            if asked.version != len(served.public_keys):
                said = wire.Refusal(False, False, 0, "KEY_NOT_CURRENT", "REQUEST_FATAL", "another key")
                connection.transport.write(wire.error(one.request, said))
                if len(served.public_keys) == 2 and not served.told:
                    served.told = True
                    connection.transport.write(wire.keys(served.keys()))
            else:
                honest(served, connection, one)

        fake.answer, fake.told = rotated, False
        fake.public_keys.append(b"2" * 32)  # and says so only afterwards
        first_id = await km.get_current_key_id()
        assert await km.sign(b"m") == fake_signature(b"2" * 32, b"m")
        with pytest.raises(KeyNotCurrent) as failure:
            await km.sign(b"n", key_id=first_id)
        assert not failure.value.maybe_signed
        assert km.public_key == b"2" * 32


@pytest.mark.parametrize("told_first", [True, False])
async def test_a_batch_that_a_rotation_meets_is_signed_to_its_end(path, told_first):
    """The messages that had not begun come back, and are signed under the next key; unless one key was asked for."""
    refused = wire.Refusal(False, False, 0, "KEY_NOT_CURRENT", "REQUEST_FATAL", "another key")
    async with FakeGateway(path) as fake, Client(f"unix:{path}") as km:

        def rotated(served, connection, one):
            if one.type is not Type.SIGN_MANY:
                return
            asked = wire.read_sign_many(one.body)
            if len(served.public_keys) == 2:
                assert (asked.version, asked.messages) == (2, [b"2", b"3"])
                honest(served, connection, one)
                return
            served.public_keys.append(b"2" * 32)
            first = fake_signature(served.public_keys[0], asked.messages[0])
            answer = wire.signed_many(one.request, 1, [first, refused, refused])
            keys = wire.keys(served.keys())
            connection.transport.write(keys + answer if told_first else answer + keys)

        first_id = await km.get_current_key_id()
        fake.answer = rotated
        keys = (fake.public_keys[0], b"2" * 32, b"2" * 32)
        wanted = [fake_signature(key, message) for key, message in zip(keys, (b"1", b"2", b"3"), strict=True)]
        assert await km.sign_many([b"1", b"2", b"3"]) == wanted
        assert len(fake.received(Type.SIGN_MANY)) == 2
        fake.public_keys.pop()
        found = await km.sign_many([b"1", b"2", b"3"], return_exceptions=True, key_id=first_id)
        assert found[0] == wanted[0]
        assert all(isinstance(one, KeyNotCurrent) and not one.maybe_signed for one in found[1:])


HOSTILE = {
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a frame too long": struct.pack("<I", 2**31),
    "a client's frame": frame(Type.SIGN, 1, bytes(20)),
    "an answer to nothing": signed(10**6),
    "another version": signed(1, version=7),
    "another type": wire.verified(1, True),
    "half an answer": signed(1)[:20] + b"\xff" * 100,
    "hello again": wire.welcome(wire.Welcome(bytes(16), 1, 1, 1, 1, "", ("default",), ())),
    "more outcomes": wire.signed_many(1, 1, [bytes(64)] * 3),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_bytes_end_the_connection_and_the_request_is_served_by_the_next(path, name):
    async with FakeGateway(path) as fake, Client(f"unix:{path}") as km:

        def once(served, connection, one):
            if one.type is Type.SIGN:
                served.answer = honest
                connection.transport.write(HOSTILE[name])

        fake.answer = once
        assert await km.sign(b"m", timeout=30) == fake_signature(PUBLIC_KEY, b"m")
        assert fake.accepted == 2
        first, second = fake.received(Type.SIGN)
        assert (first.request, first.body, first.flags, second.flags) == (second.request, second.body, 0, 2)


async def test_random_bytes_settle_each_promise_once(path):
    """Each connection sends some sound frames and then noise."""
    chance, async_errors = random.Random(3), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: async_errors.append(context))
    async with FakeGateway(path) as fake:

        def noisy(served, connection, one):
            if chance.random() < 0.05:
                connection.transport.write(chance.randbytes(chance.randrange(1, 200)))
            elif chance.random() < 0.05:
                connection.transport.abort()
            else:
                honest(served, connection, one)

        fake.answer = noisy
        async with Client(f"unix:{path}", connections=3, timeout=5) as km:
            messages = [b"%d" % number for number in range(300)]
            outcomes = await asyncio.gather(*map(km.sign, messages), return_exceptions=True)
    assert len(outcomes) == 300
    for message, outcome in zip(messages, outcomes, strict=True):
        if isinstance(outcome, bytes):
            assert outcome == fake_signature(PUBLIC_KEY, message)
        else:
            assert isinstance(outcome, HsmError), outcome
    assert sum(isinstance(outcome, bytes) for outcome in outcomes) > 250
    assert async_errors == []


async def test_errors_of_the_wire_are_those_of_the_library(path):
    async with FakeGateway(path) as fake, Client(f"unix:{path}") as km:
        told = []
        fake.answer = lambda _, connection, one: connection.transport.write(wire.error(one.request, told[-1]))
        told.append(wire.Refusal(True, False, 250, "QUEUE_FULL", "RETRY", "256 are open"))
        with pytest.raises(QueueFull, match="256 are open") as failure:
            await km.sign(b"m", timeout=0.2)  # it says when to come back, and that is too late
        assert (failure.value.retryable, failure.value.retry_after_ms) == (True, 250)
        told.append(wire.Refusal(False, True, 0, "TOKEN_LOST", "MEMBER_DOWN", "gone"))
        with pytest.raises(MemberDown) as failure:
            await km.sign(b"m")
        assert (failure.value.retryable, failure.value.maybe_signed) == (False, True)
        for retryable in (True, False):
            told.append(wire.Refusal(retryable, False, 0, "OF_TOMORROW", "NEW_CLASS", "what is this"))
            with pytest.raises(HsmError, match="what is this") as failure:
                await km.sign(b"m")
            assert failure.value.retryable is retryable
            assert failure.value.error_class  # it has one


async def test_a_silent_gateway_is_left(path, monkeypatch):
    monkeypatch.setattr("hsmcore.gateway.client.connections._PING_SECONDS", 0.05)
    async with FakeGateway(path) as fake, Client(f"unix:{path}") as km:
        downs = []
        km.on("member-down", downs.append)
        await becomes(lambda: has(fake, Type.PING, 1))
        assert fake.accepted == 1  # it answers
        fake.answer = silent
        await becomes(lambda: _is(lambda: fake.accepted >= 2))
        fake.answer = honest
        assert await km.sign(b"m")
        assert downs


async def _is(what):
    return what()


async def test_goaway_sends_new_requests_elsewhere_and_awaits_the_open_ones(path):
    async with FakeGateway(path) as fake, Client(f"unix:{path}") as km:
        held = []
        fake.answer = lambda *request: held.append(request)
        before = start(km.sign(b"before"))
        await becomes(lambda: has(fake, Type.SIGN, 1))
        fake.connections[0].transport.write(wire.goaway(60_000, "ends"))
        await becomes(lambda: _is(lambda: fake.accepted == 2))
        fake.answer = honest
        assert await km.sign(b"after") == fake_signature(PUBLIC_KEY, b"after")
        assert not before.done()
        honest(*held.pop())
        assert await before == fake_signature(PUBLIC_KEY, b"before")


async def test_what_is_wrong_is_said_before_anything_is_sent(path):
    with pytest.raises(BadArgument):
        Client("http://here")
    with pytest.raises(BadArgument):
        Client("tls:localhost:1")
    with pytest.raises(BadArgument):
        Client(f"unix:{path}", tls=ClientTls("", "", ""))
    for name, values in (("connections", (0, 65)), ("max_waiting", (0, 1 << 25)), ("timeout", (0, -1, float("inf")))):
        for wrong in (*values, "1", None, float("nan"), True):
            with pytest.raises((BadArgument, InvalidTimeout)):
                Client(f"unix:{path}", **{name: wrong})
    async with FakeGateway(path) as fake:
        km = Client(f"unix:{path}")
        with pytest.raises(NotInitialized):
            await km.sign(b"m")
        async with km:
            for wrong, expected in (
                ({"kind": "nonsense"}, BadArgument),
                ({"position": -1}, BadArgument),
                ({"timeout": 0}, InvalidTimeout),
                ({"timeout": float("nan")}, InvalidTimeout),
                ({"key_id": "k" * 256}, BadArgument),
            ):
                with pytest.raises(expected):
                    await km.sign(b"m", **wrong)
            with pytest.raises(InvalidMessageType):
                await km.sign("text")
            with pytest.raises(WrongEventLoop):
                await asyncio.to_thread(lambda: asyncio.run(km.sign(b"m")))
        with pytest.raises(EngineClosed):
            await km.sign(b"m")
        with pytest.raises(EngineClosed):
            await km.initialize()
        assert fake.received(Type.SIGN) == []


async def test_initialize_may_be_repeated_and_called_twice(path):
    km = Client(f"unix:{path}")
    with pytest.raises(MemberDown):
        await km.initialize()
    async with FakeGateway(path) as fake:
        await asyncio.gather(km.initialize(), km.initialize())
        assert fake.accepted == 1
        assert await km.sign(b"m")
        assert await asyncio.to_thread(lambda: km.public_key) == PUBLIC_KEY  # outside an event loop, too
        await km.close()
        await km.close()


async def test_what_fits_no_frame_is_refused_here(path):
    async with FakeGateway(path) as fake:
        fake.message_bytes = 1 << 21
        async with Client(f"unix:{path}") as km:
            with pytest.raises(MessageTooLarge):
                await km.sign(bytes((1 << 20) + 1))
            assert await km.sign(b"m")
        assert fake.accepted == 1


async def test_a_signature_is_verified_here_under_each_version_that_the_gateway_has_told(path):
    first, second, stranger = (SigningKey.generate() for _ in range(3))
    message = bytes(1 << 21)  # more than a gateway takes

    def by(key):
        return key.sign(message).signature

    def lies(_served, connection, one):
        connection.transport.write(wire.verified(one.request, True))

    async with FakeGateway(path) as fake:
        fake.public_keys, fake.answer = [bytes(first.verify_key), bytes(second.verify_key)], lies
        km = Client(f"unix:{path}")
        with pytest.raises(NotInitialized):
            await km.verify(message, by(first))
        await km.initialize()
        assert await km.verify(message, by(first))
        assert await km.verify(memoryview(message), by(second), " 02")
        for signature, key_id in ((by(stranger), None), (by(first), "02"), (bytes(64), None), (by(first)[1:], None)):
            assert not await km.verify(message, signature, key_id)
        assert not await km.verify(b"", by(first))
        with pytest.raises(KeyNotFound):
            await km.verify(message, by(first), "03")
        assert {one.type for one in fake.frames} == {Type.HELLO}
        fake.answer = silent
        await km.close()
        with pytest.raises(EngineClosed):
            await km.verify(message, by(first))


@pytest.mark.parametrize(
    ("algorithm", "curve", "order"),
    [
        ("ecdsa-p256", ec.SECP256R1(), 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
        ("ecdsa-secp256k1", ec.SECP256K1(), 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141),
    ],
)
async def test_an_ecdsa_signature_that_is_verified_here_must_have_a_low_s(path, algorithm, curve, order):
    key = ec.generate_private_key(curve)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    r, s = decode_dss_signature(key.sign(b"m", ec.ECDSA(SHA256())))
    low, high = (r.to_bytes(32) + one.to_bytes(32) for one in sorted((s, order - s)))
    async with FakeGateway(path) as fake:
        fake.keys = lambda: (wire.Key(0, 1, True, algorithm, "01", point, wire.ALL_KINDS),)
        async with Client(f"unix:{path}") as km:
            assert await km.verify(b"m", low)
            assert not await km.verify(b"m", high)
            assert not await km.verify(b"n", low)


async def test_a_unix_socket_is_tried_again_at_once_and_a_gateway_that_refuses_is_not(path, monkeypatch):
    waits, pause = [], Connections._pause

    def told(self, now):
        waits.append(pause(self, now))
        return waits[-1]

    def refuses(connection):
        refusal = wire.Refusal(False, False, 0, "POLICY_REFUSED", "REQUEST_FATAL", "no")
        connection.transport.write(wire.error(0, refusal))
        connection.transport.close()

    monkeypatch.setattr(Connections, "_pause", told)
    km = Client(f"unix:{path}", timeout=60)
    async with FakeGateway(path):
        await km.initialize()
    await becomes(lambda: _longer(waits, 11))
    assert max(waits) <= 0.05
    async with FakeGateway(path) as fake:
        assert await km.sign(b"m")
        monkeypatch.setattr(FakeConnection, "welcome", refuses)
        waits.clear()
        fake.connections[0].transport.abort()
        await becomes(lambda: _longer([one for one in waits if one > 0.05], 0))
    await km.close()


async def test_callers_that_gave_up_take_no_room(path):
    async with FakeGateway(path) as fake:
        fake.credits, fake.answer = 1, silent
        async with Client(f"unix:{path}", max_waiting=2, timeout=0.3) as km:
            tasks = [start(km.sign(b"%d" % number)) for number in range(3)]
            await becomes(lambda: has(fake, Type.SIGN, 1))
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks[1:], return_exceptions=True)
            with pytest.raises(DeadlineExceeded) as failure:
                await km.sign(b"has room")
            assert not isinstance(failure.value, QueueFull)
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_that_is_alone_is_sent_at_once(path):
    """Not in the next iteration of the event loop: nothing may come that it could be sent with."""
    async with FakeGateway(path) as fake, Client(f"unix:{path}") as km:
        fake.answer = silent
        sent, [link] = [], km._connections.links
        link.send = sent.append
        asked = [km.sign(b"alone"), km.sign(b"another")]
        waits = [asked[0].send(None)]
        assert [data.endswith(b"alone") for data in sent] == [True]
        waits.append(asked[1].send(None))
        assert len(sent) == 1
        await asyncio.sleep(0)
        assert [data.endswith(b"another") for data in sent] == [False, True]
        for future, one in zip(waits, asked, strict=True):
            future.cancel()
            one.close()


async def test_close_waits_for_what_is_open(path):
    async with FakeGateway(path) as fake:
        held = []
        fake.answer = lambda *request: held.append(request)
        km = Client(f"unix:{path}")
        await km.initialize()
        task = start(km.sign(b"m"))
        await becomes(lambda: has(fake, Type.SIGN, 1))
        closing = start(km.close())
        await asyncio.sleep(0)
        assert not closing.done()
        honest(*held.pop())
        await closing
        assert await task == fake_signature(PUBLIC_KEY, b"m")
