"""hsmcore.gateway.Client against gateways that are slow, mute, wrong or hostile."""

from __future__ import annotations

import asyncio
import random

import pytest
from nacl.signing import SigningKey
from tests.support.gateways import PUBLIC_KEY, FakeConnection, FakeGateway, fake_signature, honest
from tests.support.managers import becomes, start

from hsmcore.errors import (
    BadArgument,
    EngineClosed,
    HsmError,
    InvalidMessageType,
    InvalidTimeout,
    KeyNotFound,
    MemberDown,
    NotInitialized,
    PolicyRefused,
    QueueFull,
    WrongEventLoop,
)
from hsmcore.gateway import Client, ClientTls
from hsmcore.gateway.client.connections import Connections
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type


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
