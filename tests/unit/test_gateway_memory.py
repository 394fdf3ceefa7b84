"""Which answers of a gateway may be asked for again, and which requests are refused as others than before."""

import pytest

from hsmcore.errors import BadArgument, QueueFull
from hsmcore.gateway.frames import Flag, Frame, Type
from hsmcore.gateway.memory import NONCES, Session, Sessions, contents_of


def asked(body=b"m", flags=0, slot=0, kind=Type.SIGN):
    """What a request asks for."""
    return contents_of(Frame(kind, flags, slot, 1, body))


def answered(session, number, at=0.0, contents=None):
    """A request that was answered with its number."""
    session.open[number] = contents or asked(), object()
    session.close(number, b"%d" % number, at)


@pytest.fixture
def session():
    return Session(4)


def test_a_request_is_new_then_open_then_answered(session):
    assert session.find(1, asked()) is None
    request = object()
    session.open[1] = asked(), request
    assert session.find(1, asked()) is request
    session.close(1, b"answer", 0.0)
    assert session.find(1, asked()) == b"answer"


def test_sent_again_is_the_same_request(session):
    answered(session, 1)
    assert session.find(1, asked(flags=Flag.AGAIN)) == b"1"


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


def test_what_is_forgotten_is_refused_and_not_signed_again(session):
    for number in range(1, 7):
        answered(session, number)
    assert session.remembered == 4
    assert session.find(3, asked()) == b"3"
    with pytest.raises(BadArgument, match="forgotten") as caught:
        session.find(2, asked())
    assert caught.value.maybe_signed


def test_an_acknowledgement_forgets_what_is_below_it(session):
    for number in (1, 2, 3):
        answered(session, number)
    session.acknowledge(3)
    assert session.remembered == 1
    with pytest.raises(BadArgument):
        session.find(2, asked())
    assert session.find(3, asked()) == b"3"
    session.open[4] = asked(), object()
    session.acknowledge(6)
    session.close(4, b"late", 0.0)
    assert session.remembered == 0


def test_answers_expire_in_their_order(session):
    answered(session, 2, at=1.0)
    answered(session, 1, at=2.0)
    session.expire(2.0)
    assert session.find(1, asked()) == b"1"
    with pytest.raises(BadArgument):
        session.find(2, asked())


def test_an_answer_that_need_not_be_kept_is_not(session):
    session.open[1] = asked(), object()
    session.close(1, None, 0.0)
    assert session.find(1, asked()) is None


def test_a_session_lasts_while_anything_is_left_of_it():
    sessions = Sessions(4)
    session = sessions.enter(b"n")
    answered(session, 1, at=5.0)
    session.connections -= 1
    sessions.expire(5.0)
    assert sessions.enter(b"n") is session
    session.connections -= 1
    sessions.expire(6.0)
    assert sessions.enter(b"n") is not session


def test_the_processes_of_a_client_are_limited():
    sessions = Sessions(4)
    for number in range(NONCES):
        answered(sessions.enter(b"%d" % number), 1, at=float(number))
    with pytest.raises(QueueFull) as caught:
        sessions.enter(b"one more")
    assert caught.value.retry_after_ms
    sessions.enter(b"0")  # a known one may
