"""What a gateway does in C with ordinary SIGNs, it does in Python with all: the same bytes have the same answers."""

import asyncio
import random

import pytest
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.wire_site import many, sign, site

from hsmcore.gateway import connection
from hsmcore.gateway.versions import Versions
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import CLIENT_TYPES, Flag, Splitter, Type, frame

pytestmark = pytest.mark.integration
LAST = 1 << 40
MESSAGES = [b"one", b"two", b"", bytes(600), bytes(100_000)]


def frames_of(seed):
    """Requests of a client: most are ordinary; others are repeated, meant otherwise, not allowed, withdrawn, of no
    known kind, or behind a gap."""
    chosen, number, made = random.Random(seed), 0, []
    while len(made) < 120:
        number += chosen.choice([1, 1, 1, 1, 1, 3])
        message = chosen.choice(MESSAGES[:2] if chosen.random() < 0.7 else MESSAGES)
        again = chosen.randint(max(1, number - 5), number)
        made += chosen.choice(
            [
                *[[sign(number, message)]] * 10,
                [sign(again, message, again=True)],
                [sign(number, message), sign(number, message)],
                [sign(number, message), sign(number, message + b"another")],
                [sign(number, message, slot=3)],
                [sign(number, message, version=77)],
                [sign(number, message, position=5)],
                [sign(number, message, timeout_ms=1 << 31)],
                [sign(number, message, kind="block")],
                [frame(Type.SIGN, number, b"\x40" + bytes(16) + message)],
                [sign(number, message), frame(Type.CANCEL, number)],
                [frame(Type.SIGN, number, bytes(17) + message, flags=Flag.HAS_POSITION)],
                [many(number, b"three", b"four")],
                [frame(Type.ACK, max(1, number - 40))],
            ]
        )
    return made


async def answers_to(gateway, frames, chosen):
    """By number, each answer. A few frames are sent at a time, cut anywhere."""
    found = {}
    async with gateway.peer(bytes(16)) as peer:

        async def read(end):
            """What is behind PING was read after all that stands before it."""
            peer.send(frame(Type.PING, end, b"end"))
            while (one := await peer.next()).request != end:
                found.setdefault(one.request, []).append((one.type, one.body))

        for at in range(0, len(frames), 6):
            data = b"".join(frames[at : at + 6])
            cut = chosen.randrange(len(data))
            peer.send(data[:cut])
            await asyncio.sleep(0)
            peer.send(data[cut:])
            await read(LAST + at)
        await until(lambda: not gateway.server.desk.open and not any(one._held for one in gateway.server.connections))
        await read(2 * LAST)
    return {number: sorted(set(answers)) for number, answers in found.items()}


@pytest.mark.parametrize("seed", range(4))
@one_loop
async def test_the_same_bytes_have_the_same_answers(world, tmp_path, seed, monkeypatch):
    found, taken, have_turns = [], [], connection.have_turns

    def noted(signs):
        taken.append(have_turns(signs))
        return taken[-1]

    monkeypatch.setattr(connection, "have_turns", noted)
    for ordinary in (True, False):
        (folder := tmp_path / str(ordinary)).mkdir()
        if not ordinary:
            monkeypatch.setattr(connection, "intake_of", lambda *_: None)
        async with site(world.config(maxCacheSize=0), folder) as gateway:
            found.append(await answers_to(gateway, frames_of(seed), random.Random(seed)))
            assert gateway.server.desk.open == 0
            turns = gateway.server.desk.queues["default"].turns
            assert (turns.under_way, turns.waiting) == (0, 0)
    assert sum(taken) > 10, "nothing was ordinary"
    # Whether what is withdrawn was signed before is a race.
    numbers = (found[0].keys() | found[1].keys()) - withdrawn(frames_of(seed))
    differ = {number: (found[0].get(number), found[1].get(number)) for number in numbers}
    assert {number: both for number, both in differ.items() if both[0] != both[1]} == {}


def withdrawn(frames):
    """The numbers of CANCEL."""
    return {one.request for one in Splitter(CLIENT_TYPES).feed(b"".join(frames)) if one.type is Type.CANCEL}


@pytest.mark.parametrize("ordinary", [True, False])
@one_loop
async def test_an_answer_that_cannot_be_made_is_an_error_and_the_others_are_sent(
    world, tmp_path, ordinary, monkeypatch
):
    number, calls = Versions.number, []

    def fails_once(versions, public_key):
        calls.append(public_key)
        if len(calls) == 2:
            raise LookupError("injected")
        return number(versions, public_key)

    if not ordinary:
        monkeypatch.setattr(connection, "intake_of", lambda *_: None)
    async with site(world.config(maxCacheSize=0), tmp_path) as gateway, gateway.peer(bytes(16)) as peer:
        with monkeypatch.context() as patched:
            patched.setattr(Versions, "number", fails_once)
            peer.send(b"".join(sign(n, b"message") for n in range(1, 25)))
            answers = [await peer.next() for _ in range(24)]
        assert sorted(one.request for one in answers) == list(range(1, 25))
        (failed,) = (wire.read_error(one.body) for one in answers if one.type is not Type.SIGNED)
        assert "LookupError" in failed.text
        assert failed.maybe_signed
        assert gateway.server.desk.open == gateway.server.desk.queues["default"].turns.under_way == 0
