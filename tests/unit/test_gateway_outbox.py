"""A client's requests in random histories: connections break, gateways die and forget, keys rotate, callers give up.

The model is of gateways, not of the client: what they received, remember and signed. Held against it: each request is
settled once; no message is signed under two keys, and none is in two batches; an error without `maybe_signed` is of a
message that was not signed; whoever gets a signature gets one that was made for the message.
"""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support import batches
from tests.support.size import share
from tests.support.wire import placed, signed

from hsmcore.errors import DeadlineExceeded, EngineClosed, HsmError, KeyNotCurrent, NotHolder
from hsmcore.gateway.client.outbox import RequestOutbox
from hsmcore.gateway.client.request import ClientRequest, GatewaySession
from hsmcore.gateway.wire import batched
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import CLIENT_TYPES, GATEWAY_TYPES, Splitter, Type, WireError
from hsmcore.tlog import batch_proof, note

REMEMBERS = 100.0
KINDS = wire.BATCHES | 0x3FF


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until it is told to go on."""

    now = 1000.0

    def time(self) -> float:
        return self.now


@dataclass
class Process:
    """A gateway process: its memory is its own, its keys are on the token."""

    instance: bytes
    numbers: dict[bytes, int]
    answers: dict[int, bytes] = field(default_factory=dict)
    """Frames by the number of the request."""
    forgotten: int = 0
    """How often it has forgotten them because they were old."""


@dataclass
class FakeChannel:
    """A connection: frames are under way until one end takes them."""

    process: Process
    session: GatewaySession
    open: dict[int, ClientRequest] = field(default_factory=dict)
    withdrawn: list[int] = field(default_factory=list)
    ready: bool = True
    going: bool = False
    out: deque = field(default_factory=deque)
    back: list[bytes] = field(default_factory=list)
    pushed: deque = field(default_factory=deque)
    splitter: Splitter = field(default_factory=lambda: Splitter(CLIENT_TYPES))
    stays: bool = False
    """Whether its gateway is the holder, when it says that it is not."""

    def send(self, data: bytes) -> None:
        self.out.extend(self.splitter.feed(data))

    def refused(self, holder: str) -> bool:
        if not self.stays:
            self.going, self.ready = True, False
        return True


def alone(message: bytes, first: int) -> bytes:
    """The proof of a message in a batch of its own."""
    extra = b"\x08" + first.to_bytes(8, "big")
    root = hashlib.sha256(b"\0" + extra + hashlib.sha256(message).digest()).digest()
    text = batch_proof.checkpoint("tests", 0, 1, root, first, 1)
    signed = note.signed(text, batch_proof.signer(text, batches.PUBLIC), batches.KEY.sign(text).signature)
    return b"c2sp.org/tlog-proof@v1\nextra " + b64encode(extra) + b"\nindex 0\n\n" + signed


def unheld(number: int, version: int, *, maybe: bool = False) -> bytes:
    """The answer of a host that does not hold the epoch. `version`: of SIGN_MANY, else 0."""
    refusal = wire.Refusal(True, maybe, 0, "NOT_HOLDER", "RETRY", "held elsewhere", "another")
    return wire.signed_many(number, version, [refusal]) if version else wire.error(number, refusal)


class World(RuleBasedStateMachine):
    """See above."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Clock()
        self.complaints: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(str(context)))
        self.channels: list[FakeChannel] = []
        self.outbox = RequestOutbox(self.loop, 10_000, self.channels, lambda _: None)
        self.public_keys = [b"key-0" + bytes(27)]
        self.current = 0
        self.process = Process(bytes(16), {})
        self.ledger: dict[bytes, set[bytes]] = {}
        """Public keys that signed a message."""
        self.made: dict[bytes, set[bytes]] = {}
        """Signatures of a message."""
        self.signers: dict[bytes, set[bytes]] = {}
        """Gateway processes that signed a message."""
        self.places: dict[bytes, set[bytes]] = {}
        """Gateway processes that put a message into a batch."""
        self.asked: list[tuple[bytes, ClientRequest]] = []
        self.settlements: dict[int, int] = {}
        self.highest_ack = 0
        self.full = False
        self.unheld = self.withheld = False

    @initialize(algorithm=st.sampled_from(["ed25519", "ed25519", "ecdsa-p256"]), most=st.sampled_from([2, 5, 100]))
    def begin(self, algorithm: str, most: int) -> None:
        self.algorithm, self.credits = algorithm, most
        self.connect()

    def turn(self) -> None:
        """Let the loop do what is due."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def keys(self, process: Process) -> tuple[wire.Key, ...]:
        found = []
        for number, public_key in enumerate(self.public_keys):
            version = process.numbers.setdefault(public_key, len(process.numbers) + 1)
            key = wire.Key(0, version, number == self.current, self.algorithm, f"{number:02x}", public_key, KINDS)
            found.append(key)
        return tuple(found)

    # ---- what the caller does ----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([5, 500]), kind=st.sampled_from([Type.SIGN, Type.SIGN_MANY, Type.SIGN_BATCHED]))
    def ask(self, seconds: int, kind: Type) -> None:
        message = f"message {len(self.asked)}".encode()
        one = {
            Type.SIGN: wire.Sign("", 0, None, 0, message),
            Type.SIGN_MANY: wire.SignMany("", 0, 0, [message]),
            Type.SIGN_BATCHED: batched.SignBatched("", 0, message),
        }[kind]
        future = self.loop.create_future()
        number = len(self.asked)
        future.add_done_callback(lambda _: self.settlements.update({number: self.settlements.get(number, 0) + 1}))
        request = ClientRequest(kind, one, future, self.loop.now + seconds)
        self.asked.append((message, request))
        self.outbox.submit(request)
        self.turn()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        _, request = data.draw(st.sampled_from(self.asked))
        if not request.future.done():
            request.future.cancel()
            self.outbox.withdraw(request)
            self.turn()

    # ---- what gateways do --------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.channels) < 3)
    @rule()
    def connect(self) -> None:
        session = GatewaySession(self.process.instance, 0, REMEMBERS, 1000, 100)
        session.learn(self.keys(self.process))
        channel = FakeChannel(self.process, session)
        self.channels.append(channel)
        self.outbox.credits = self.credits
        self.outbox.keys_changed(channel)
        self.turn()

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def receives(self, data: st.DataObject) -> None:
        """A gateway takes the next frame of a connection."""
        channel = data.draw(st.sampled_from(self.channels))
        if channel.out:
            self.take(channel)

    def take(self, channel: FakeChannel) -> None:
        frame, process = channel.out.popleft(), channel.process
        if frame.type is Type.ACK:
            self.highest_ack = max(self.highest_ack, frame.request)
            for number in [number for number in process.answers if number < frame.request]:
                del process.answers[number]
            return
        if frame.type is Type.CANCEL:
            return  # it came too late
        assert frame.request >= self.highest_ack, "asked again behind its ACK"
        answer = process.answers.get(frame.request)
        if answer is None:
            answer = self.answer(process, frame, channel.going)
        channel.back.append(answer)

    def answer(self, process: Process, frame, going: bool) -> bytes:
        many = frame.type is Type.SIGN_MANY
        said: Any
        if frame.type is Type.SIGN_BATCHED:
            said = batched.read_sign_batched(frame.body)
        else:
            said = wire.read_sign_many(frame.body) if many else wire.read_sign(frame)
            assert said.version, "sent without a version"
        current = self.public_keys[self.current]
        if going:
            return wire.error(frame.request, wire.Refusal(True, False, 0, "BUSY", "RETRY", "ends"))
        if self.full:
            return wire.error(frame.request, wire.Refusal(True, False, 10, "QUEUE_FULL", "RETRY", "full"))
        if self.unheld and not self.withheld:
            process.answers[frame.request] = refused = unheld(frame.request, said.version if many else 0)
            return refused
        if frame.type is Type.SIGN_BATCHED:
            answer = self.placed(process, frame.request, said.message)
        elif said.version != process.numbers[current]:
            refusal = wire.Refusal(False, False, 0, "KEY_NOT_CURRENT", "REQUEST_FATAL", "another one")
            answer = wire.error(frame.request, refusal)
        else:
            message = said.messages[0] if many else said.message
            self.ledger.setdefault(message, set()).add(current)
            self.signers.setdefault(message, set()).add(process.instance + bytes((process.forgotten,)))
            fresh = b"" if self.algorithm == "ed25519" else len(self.ledger).to_bytes(4, "big") + process.instance
            signature = hashlib.sha512(current + message + fresh).digest()
            self.made.setdefault(message, set()).add(signature)
            answer = (
                wire.signed_many(frame.request, said.version, [signature])
                if many
                else signed(frame.request, signature, said.version, "primary")
            )
        if self.withheld:  # it was signed, and the lease was over then
            answer = unheld(frame.request, said.version if many else 0, maybe=True)
        process.answers[frame.request] = answer
        return answer

    def placed(self, process: Process, number: int, message: bytes) -> bytes:
        """A batch of one message. The same process knows at least that it has answered the number."""
        if process.instance in self.places.get(message, set()):
            return wire.error(number, wire.Refusal(False, True, 0, "BAD_ARGUMENT", "REQUEST_FATAL", "forgotten"))
        self.places.setdefault(message, set()).add(process.instance)
        self.ledger.setdefault(message, set()).add(batches.PUBLIC)
        proof = alone(message, len(self.places))
        self.made.setdefault(message, set()).add(proof)
        return placed(number, None, "01", batches.PUBLIC, proof)

    @precondition(lambda self: any(channel.back for channel in self.channels))
    @rule(data=st.data())
    def answers(self, data: st.DataObject) -> None:
        """An answer arrives, in any order."""
        channel = data.draw(st.sampled_from([one for one in self.channels if one.back]))
        place = data.draw(st.integers(0, len(channel.back) - 1))
        self.deliver(channel, channel.back.pop(place))

    def deliver(self, channel: FakeChannel, answer: bytes) -> None:
        [frame] = Splitter(GATEWAY_TYPES).feed(answer)
        self.outbox.answered(channel, frame)
        self.outbox.settled()
        self.turn()

    @precondition(lambda self: any(channel.pushed for channel in self.channels))
    @rule(data=st.data())
    def learns(self, data: st.DataObject) -> None:
        """KEYS arrives."""
        self.learn(data.draw(st.sampled_from([one for one in self.channels if one.pushed])))

    def learn(self, channel: FakeChannel) -> None:
        channel.session.learn(channel.pushed.popleft())
        self.outbox.keys_changed(channel)
        self.turn()

    @precondition(lambda self: len(self.public_keys) < 4)
    @rule()
    def rotate(self) -> None:
        self.public_keys.append(f"key-{len(self.public_keys)}".encode() + bytes(27))
        self.current = len(self.public_keys) - 1
        self.tell()

    @rule(data=st.data())
    def fail_over(self, data: st.DataObject) -> None:
        """Any other key signs now."""
        self.current = data.draw(st.integers(0, len(self.public_keys) - 1))
        self.tell()

    def tell(self) -> None:
        for channel in self.channels:
            channel.pushed.append(self.keys(channel.process))

    # ---- what goes wrong ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def breaks(self, data: st.DataObject) -> None:
        """A connection breaks: what is under way is lost, or arrives at the gateway all the same."""
        channel = data.draw(st.sampled_from(self.channels))
        for _ in range(data.draw(st.integers(0, len(channel.out)))):
            self.take(channel)
        self.drop(channel)

    def drop(self, channel: FakeChannel) -> None:
        self.channels.remove(channel)
        channel.ready = False
        self.outbox.left(channel)
        self.turn()

    @rule(reversed_numbers=st.booleans())
    def killed(self, reversed_numbers: bool) -> None:
        """The gateway is killed; the next one numbers the versions otherwise and remembers nothing."""
        for channel in list(self.channels):
            self.drop(channel)
        self.highest_ack = 0
        listed = list(reversed(self.public_keys)) if reversed_numbers else self.public_keys
        numbers = {public_key: number for number, public_key in enumerate(listed, 1)}
        self.process = Process(bytes(15) + bytes((self.process.instance[-1] + 1,)), numbers)

    @precondition(lambda self: self.process.answers)
    @rule()
    def forgets(self) -> None:
        """So many answers are remembered and no more."""
        self.process.answers.pop(next(iter(self.process.answers)))

    @rule()
    def fills_up(self) -> None:
        """The gateway takes nothing more, or something again. Such an answer is not remembered."""
        self.full = not self.full

    @rule(withheld=st.booleans(), stays=st.booleans())
    def loses_the_epoch(self, withheld: bool, stays: bool) -> None:
        """Or gets it back."""
        self.unheld = not self.unheld
        self.withheld = self.unheld and withheld
        for channel in self.channels:
            channel.stays = stays

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def drains(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(self.channels))
        channel.going, channel.ready = True, False

    @rule(seconds=st.sampled_from([0.5, 6.0, 90.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.now += seconds
        self.turn()
        if seconds == 90.0:  # and what was remembered for too long is not; nothing is on its way for so long
            for channel in self.channels:
                while channel.out:
                    self.take(channel)
            self.process.answers.clear()
            self.process.forgotten += 1

    # ---- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def no_message_has_two_keys(self) -> None:
        assert [message for message, keys in self.ledger.items() if len(keys) > 1] == []
        assert [message for message, processes in self.places.items() if len(processes) > 1] == []
        if getattr(self, "algorithm", "ed25519") != "ed25519":  # the second process would sign otherwise
            assert [message for message, signers in self.signers.items() if len(signers) > 1] == []

    @invariant()
    def nothing_was_complained_of(self) -> None:
        assert self.complaints == []
        assert all(count == 1 for count in self.settlements.values())

    @invariant()
    def outcomes_are_true(self) -> None:
        for message, request in self.asked:
            if request.future.done() and not request.future.cancelled():
                self.check(message, request)

    def check(self, message: bytes, request: ClientRequest) -> None:
        error = request.future.exception()
        if error is None:
            found = request.future.result()
            found = found[0] if request.type is Type.SIGN_MANY else found
            found = found.proof if request.type is Type.SIGN_BATCHED else found
            if isinstance(found, bytes):
                assert found in self.made[message]
                return
            error = found
        assert isinstance(error, HsmError)
        assert isinstance(error, (DeadlineExceeded, KeyNotCurrent, NotHolder)) or error.status in (
            ("HOST_LOST", "QUEUE_FULL", "BAD_ARGUMENT")
            if request.type is Type.SIGN_BATCHED
            else ("HOST_LOST", "QUEUE_FULL")
        )
        assert error.maybe_signed or message not in self.ledger

    @invariant()
    def credits_hold(self) -> None:
        at_once = sum(len(channel.open) for channel in self.channels)
        assert at_once <= getattr(self, "credits", 0)
        assert self.outbox._out == at_once

    def teardown(self) -> None:
        """With a sound gateway and time to go on, each request is settled."""
        self.unheld = self.withheld = False
        if not self.channels or not any(channel.ready for channel in self.channels):
            for channel in list(self.channels):
                self.drop(channel)
            self.connect()
        for _ in range(3):
            for channel in list(self.channels):
                while channel.pushed:
                    self.learn(channel)
                while channel.out:
                    self.take(channel)
                while channel.back:
                    self.deliver(channel, channel.back.pop(0))
        self.loop.now += 1000
        for _ in range(4):  # what was put off begins, the rest of a batch is settled, then the batch
            self.turn()
        assert [request for _, request in self.asked if not request.future.done()] == []
        self.outcomes_are_true()
        self.no_message_has_two_keys()
        self.turn()
        assert len(self.settlements) == len(self.asked)
        self.nothing_was_complained_of()
        assert list(self.outbox.unsettled()) == []
        self.outbox.end()
        self.loop.close()


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=share(60), stateful_step_count=50)


@pytest.fixture
def world() -> Iterator[World]:
    """For a history of one's own."""
    world = World()
    yield world
    world.teardown()


def started(world: World, algorithm: str = "ed25519") -> tuple[FakeChannel, ClientRequest]:
    """A request that was received, signed and not answered."""
    world.begin(algorithm, 100)
    world.ask(500, kind=Type.SIGN)
    [channel], [(_, request)] = world.channels, world.asked
    world.take(channel)
    assert len(world.ledger) == 1
    return channel, request


def serve(world: World) -> None:
    """Let the one connection do what is under way."""
    [channel] = world.channels
    while channel.out:
        world.take(channel)
    for answer in channel.back:
        world.deliver(channel, answer)
    channel.back.clear()
    world.no_message_has_two_keys()


def test_another_process_is_not_asked_for_a_second_ecdsa_signature(world):
    _, request = started(world, "ecdsa-p256")
    world.killed(reversed_numbers=False)
    world.connect()
    assert not world.channels[0].out
    assert request.future.exception().maybe_signed


@pytest.mark.parametrize("told_first", [True, False])
def test_a_request_that_was_under_way_during_a_rotation_is_signed_with_the_next_key(world, told_first):
    world.begin("ed25519", 100)
    world.ask(500, kind=Type.SIGN)
    [channel], [(_, request)] = world.channels, world.asked
    world.rotate()
    if told_first:
        world.learn(channel)
    serve(world)
    if not told_first:
        assert not request.future.done()  # it waits until it is told
        world.learn(channel)
    serve(world)
    assert request.future.result() in world.made[b"message 0"]
    assert world.ledger[b"message 0"] == {world.public_keys[1]}


def test_a_request_for_one_key_is_not_signed_with_another(world):
    world.begin("ed25519", 100)
    world.ask(500, kind=Type.SIGN)
    [channel], [(_, request)] = world.channels, world.asked
    request.asked_id = "00"
    world.rotate()
    world.learn(channel)
    serve(world)
    error = request.future.exception()
    assert isinstance(error, KeyNotCurrent)
    assert not error.maybe_signed


@pytest.mark.parametrize("withheld", [False, True])
def test_a_holder_that_was_not_sure_of_it_gives_another_answer_later(world, withheld):
    world.begin("ed25519", 100)
    [channel] = world.channels
    channel.stays, world.unheld, world.withheld = True, True, withheld
    world.ask(500, kind=Type.SIGN)
    [(_, request)] = world.asked
    serve(world)
    assert not request.future.done()
    world.unheld = world.withheld = False
    world.time_passes(6.0)
    world.turn()
    serve(world)
    assert [request.future.result()] == list(world.made[b"message 0"])


def test_an_outbox_that_ended_fails_what_is_open_and_takes_nothing():
    world = World()
    world.begin("ed25519", 1)
    for _ in range(2):
        world.ask(500, kind=Type.SIGN)
    world.outbox.end()
    (_, sent), (_, waits) = world.asked
    assert [isinstance(one.future.exception(), EngineClosed) for one in (sent, waits)] == [False, True]
    assert [one.future.exception().maybe_signed for one in (sent, waits)] == [True, False]
    with pytest.raises(EngineClosed, match="the client is closed"):
        world.ask(500, kind=Type.SIGN)
    world.loop.close()


KEY = wire.Key(0, 7, True, "ed25519", "07", bytes(32), 0xFFFF)


@pytest.fixture
def answered() -> Iterator[Any]:
    """What a request is settled with by an answer; `key`: what the gateway has said of the key that signs."""
    loop = Clock()
    channels: list = []
    outbox = RequestOutbox(loop, 10, channels, lambda _: None)
    outbox.credits = 10

    def settle(kind: Type, value: Any, answer: bytes, key: wire.Key | None = KEY, **more: Any) -> Any:
        session = GatewaySession(bytes(16), 0, REMEMBERS, 1000, 100)
        session.learn(() if key is None else (key,))
        channels[:] = [FakeChannel(SimpleNamespace(), session)]
        request = ClientRequest(kind, value, loop.create_future(), 2000.0, **more)
        outbox.submit(request)
        outbox.flush()
        [frame] = Splitter(GATEWAY_TYPES).feed(answer)
        outbox.answered(channels[0], frame._replace(request=request.number))
        assert (channels[0].open, outbox._out) == ({}, 0), "it is not open any more, and has given its credits back"
        return request.future.result()

    yield settle
    outbox.end()
    for request in channels[0].open.values():
        assert request.future.exception() is not None, "what was not answered ends with its connection"
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()


SIGN, MANY = wire.Sign("", 0, None, 0, b"m"), wire.SignMany("", 0, 0, [b"a", b"b"])


@pytest.mark.parametrize(
    ("kind", "value", "answer", "count"),
    [
        (Type.SIGN, SIGN, signed(0, bytes(64), 8), 1),
        (Type.SIGN, SIGN, signed(0, bytes(64), 0), 1),
        (Type.SIGN_MANY, MANY, wire.signed_many(0, 8, [bytes(64)] * 2), 2),
        (Type.SIGN_MANY, MANY, wire.signed_many(0, 7, [bytes(64)]), 2),
        (Type.SIGN_MANY, MANY, wire.signed_many(0, 7, [bytes(64)] * 3), 2),
        (Type.SIGN, SIGN, wire.verified(0, True), 1),
    ],
)
def test_an_answer_for_another_key_or_of_another_form_ends_the_connection(answered, kind, value, answer, count):
    with pytest.raises(WireError):
        answered(kind, value, answer, count=count)
