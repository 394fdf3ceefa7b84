"""Which answers of a gateway may be asked for again, and which requests are refused as others than before."""

from random import Random

import pytest

from hsmcore._native import MemoryBudget, SeenIds
from hsmcore.errors import BadArgument, QueueFull
from hsmcore.gateway import replay
from hsmcore.gateway.replay import NONCES, REMEMBER_SECONDS, ReplaySession, Sessions, contents_of
from hsmcore.gateway.wire.frames import Flag, Frame, Type

LARGE = MemoryBudget(1 << 30)
GAPS = 4096
"""Ranges of numbers that were passed over, at most."""


def asked(body=b"m", flags=0, slot=0, kind=Type.SIGN):
    """What a request asks for."""
    return contents_of(Frame(kind, flags, slot, 1, body))


def answered(session, number, at=0.0, contents=None):
    """A request that was answered with its number."""
    began(session, number, at, contents)
    session.close(number, b"%d" % number, at)


def began(session, number, at=0.0, contents=None):
    """A new request that is open."""
    contents = contents or asked()
    assert session.find(number, contents) is None
    session.require_room(number, at)
    session.begin(number, contents, object(), at)


def forgotten(session, number, contents=None):
    """Whether a request is refused since it may have been answered."""
    try:
        session.find(number, contents or asked())
    except BadArgument as error:
        return error.maybe_signed
    return False


@pytest.fixture
def room():
    return MemoryBudget(10_000)


@pytest.fixture
def session(room):
    return ReplaySession(room)


@pytest.mark.parametrize(
    "other",
    [asked(b"other"), asked(flags=Flag.HAS_POSITION), asked(slot=1), asked(kind=Type.SIGN_MANY), asked(b"m" * 5000)],
)
def test_a_number_means_one_request(session, other):
    answered(session, 1)
    session.open[2] = asked(), object()
    for number in (1, 2):
        with pytest.raises(BadArgument, match="another one before"):
            session.find(number, other)


def test_long_bodies_are_told_apart(session):
    answered(session, 1, contents=asked(b"m" * 5000))
    assert session.find(1, asked(b"m" * 5000)) == b"1"
    with pytest.raises(BadArgument):
        session.find(1, asked(b"m" * 4999 + b"n"))


def test_no_answer_is_forgotten_for_want_of_memory(session, room):
    number = 1
    while room.used < room.most and number < 1000:
        answered(session, number)
        number += 1
    with pytest.raises(QueueFull) as caught:
        session.require_room(number, 0.0)
    assert caught.value.retryable
    assert caught.value.retry_after_ms
    assert not caught.value.maybe_signed
    assert session.remembered == number - 1 > 10
    assert all(session.find(known, asked()) == b"%d" % known for known in range(1, number))
    with pytest.raises(QueueFull):
        ReplaySession(room).require_room(1, 0.0)  # the memory is that of all processes of the client
    session.acknowledge(number)
    answered(session, number)
    session.end()
    assert room.used == 0


def test_passed_over_numbers_are_bounded_and_give_way_when_they_are_old(session, room):
    room.most = 1 << 30
    for number in range(2, 2 * GAPS + 1, 2):
        answered(session, number)
    held, one_more = room.used, 2 * GAPS + 2
    with pytest.raises(QueueFull, match="passed over"):
        session.require_room(one_more, REMEMBER_SECONDS - 1)
    assert session.find(3, asked()) is None
    answered(session, 3)  # which takes one away
    answered(session, one_more, at=1.0)
    assert session.find(1, asked()) is None
    answered(session, one_more + 2, at=REMEMBER_SECONDS)
    assert forgotten(session, 1)
    assert session.find(one_more - 1, asked()) is None  # it was passed over later
    session.acknowledge(one_more + 3)
    assert room.used < held
    session.end()
    assert room.used == 0


def test_a_jump_to_the_last_number_costs_one_range():
    numbers = SeenIds()
    numbers.take(2**64 - 1, 0.0)
    assert numbers.gaps == 1
    assert 1 not in numbers
    numbers.take(2**63, 0.0)
    assert numbers.gaps == 2
    assert [number in numbers for number in (2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1)] == [False, True, False, True]


def test_a_verification_may_be_repeated(session):
    began(session, 1, contents=asked(kind=Type.VERIFY))
    session.close(1, None, 0.0)
    assert session.find(1, asked(kind=Type.VERIFY)) is None
    assert forgotten(session, 1)


class Model:
    """What a session is to know, with all that ever was."""

    def __init__(self):
        self.open, self.answers, self.taken, self.below = {}, {}, set(), 1

    def of(self, number):
        if number in self.open:
            return self.open[number]
        # An acknowledged one that stands behind a higher number may still be known: then it is the same answer.
        if number in self.taken or number < self.below:
            return self.answers.get(number, "forgotten")
        return None


def history(seed):
    """One of random requests, answers, acknowledgements and looks at the clock."""
    chance, room, model, now = Random(seed), MemoryBudget(6000), Model(), 0.0
    session, top = ReplaySession(room), 40
    for _ in range(600):
        now += chance.random() * 4
        number = chance.randrange(1, top + 1)
        match chance.randrange(12):
            case 0:
                session.expire(now - REMEMBER_SECONDS)
                model.answers = {n: kept for n, kept in model.answers.items() if kept[1] >= now - REMEMBER_SECONDS}
            case 1 if chance.random() < 0.3:
                number = min([*model.open, chance.randrange(max(1, top - 40), top)])
                session.acknowledge(number)
                model.below = max(model.below, number)
            case 2 | 3 | 4:
                top += chance.randrange(3)
            case 5 | 6 | 7 if model.open:
                number = chance.choice(list(model.open))
                session.close(number, b"%d" % number, now)
                del model.open[number]
                if number >= model.below:
                    model.answers[number] = b"%d" % number, now
            case _:
                pass
        wanted = model.of(number)
        if wanted == "forgotten":
            assert forgotten(session, number), number
        elif wanted is not None:
            found = None if forgotten(session, number) else session.find(number, asked())
            acknowledged = number < model.below and number not in model.open
            assert found == (wanted[0] if isinstance(wanted, tuple) else wanted) or (acknowledged and found is None)
        else:
            assert session.find(number, asked()) is None
            try:
                session.require_room(number, now)
            except QueueFull:
                assert room.used >= room.most
            else:
                model.open[number] = object()
                session.begin(number, asked(), model.open[number], now)
                model.taken.add(number)
    assert len(model.taken) > 50


@pytest.mark.parametrize("histories", [30, pytest.param(3000, marks=pytest.mark.deep)])
def test_random_histories_are_those_of_a_simple_model(histories):
    """No number is signed twice, none that was never taken is refused, and no answer is lost before its time."""
    for seed in range(histories):
        history(seed)


def test_a_session_lasts_while_anything_is_left_of_it():
    sessions = Sessions(LARGE)
    session = sessions.enter(b"n")
    answered(session, 1, at=5.0)
    session.connections -= 1
    sessions.expire(5.0)
    assert sessions.enter(b"n") is session
    session.connections -= 1
    sessions.expire(6.0)
    assert sessions.enter(b"n") is not session


def test_the_processes_of_a_client_are_limited():
    sessions = Sessions(LARGE)
    for number in range(NONCES):
        answered(sessions.enter(b"%d" % number), 1, at=float(number))
    with pytest.raises(QueueFull) as caught:
        sessions.enter(b"one more")
    assert caught.value.retry_after_ms
    sessions.enter(b"0")  # a known one may


def test_processes_that_crash_keep_no_later_one_out_and_what_they_asked_is_never_taken_as_new():
    sessions = Sessions(room := MemoryBudget(1 << 30))
    busy, waits = sessions.enter(b"busy"), sessions.enter(b"waits")
    answered(busy, 1)
    began(waits, 1)
    waits.connections -= 1
    for number in range(NONCES):
        crashed = sessions.enter(b"%d" % number)
        answered(crashed, 1, at=float(number))
        answered(crashed, 3, at=float(number))
        crashed.connections -= 1
    assert sessions.remembered == 1 + 2 * (NONCES - 2)
    for nonce in (b"0", b"1", b"0"):  # those that were away for longest; entering drops two more
        back = sessions.enter(nonce)
        assert all(forgotten(back, number) for number in (1, 2, 3)), "2 was passed over, and may have been lost"
        assert back.find(4, asked()) is None
        back.connections -= 1
        sessions.expire(0.0)  # nothing of it is left, but that
    kept = sessions.enter(b"900")
    assert kept.find(1, asked()) == b"1", "the newest ones keep their answers"
    assert (busy.find(1, asked()), waits.open.keys()) == (b"1", {1})
    sessions.expire(float(NONCES + 1))
    assert not sessions._forgotten
    assert sessions.enter(b"0").find(1, asked()) is None
    for session in (busy, waits, kept):
        session.end()
    assert room.used == 0


def test_so_many_processes_are_known_whose_answers_were_forgotten(monkeypatch):
    monkeypatch.setattr(replay, "FORGOTTEN", 2)
    sessions = Sessions(LARGE)
    for number in range(NONCES + 2):
        crashed = sessions.enter(b"%d" % number)
        answered(crashed, 1)
        crashed.connections -= 1
    with pytest.raises(QueueFull):
        sessions.enter(b"one more")


def test_a_client_whose_rules_allow_more_has_more_memory_and_keeps_its_answers():
    sessions = Sessions(MemoryBudget(0))
    session = sessions.enter(bytes(16))
    with pytest.raises(QueueFull, match="fill this client's memory"):
        session.require_room(1, 0)
    sessions.resize(10)
    answered(session, 1)
    assert session.find(1, asked()) == b"1"
