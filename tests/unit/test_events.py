"""Events by themselves."""

from __future__ import annotations

import pytest

from hsmcore.base.events import EVENTS, Events
from hsmcore.errors import BadArgument


@pytest.mark.parametrize("name", EVENTS)
def test_callbacks_are_called_in_the_order_of_registration(name):
    events = Events()
    told: list[tuple[int, dict]] = []
    for n in range(3):
        events.on(name, lambda details, n=n: told.append((n, dict(details))))
    events.emit(name, member="m")
    assert told == [(n, {"member": "m"}) for n in range(3)]
    for other in EVENTS:
        if other != name:
            events.emit(other)
    assert len(told) == 3


def test_an_event_that_does_not_exist_is_refused():
    with pytest.raises(BadArgument, match=r"failovr.*failover"):
        Events().on("failovr", print)
    with pytest.raises(BadArgument) as caught:
        Events().on("rotation", print)
    assert caught.value.hint == 'Did you mean "key-rotated"?'


def test_a_removed_callback_is_not_called():
    events = Events()
    told = []
    end = events.on("closed", told.append)
    events.emit("closed")
    end()
    end()
    events.emit("closed")
    assert len(told) == 1


def test_one_function_may_ask_twice_and_end_once():
    events = Events()
    told = []
    end = events.on("closed", told.append)
    events.on("closed", told.append)
    end()
    events.emit("closed")
    assert len(told) == 1


def test_a_callback_may_end_itself_and_add_another():
    events = Events()
    told = []

    def once(_details):
        told.append("once")
        end()
        events.on("closed", lambda _details: told.append("later"))

    end = events.on("closed", once)
    events.emit("closed")
    assert told == ["once"]
    events.emit("closed")
    assert told == ["once", "later"]


def test_a_failing_callback_is_logged_and_the_others_are_called(caplog):
    events = Events()
    told = []
    events.on("failover", lambda _details: 1 / 0)
    events.on("failover", told.append)
    events.emit("failover", member="m")
    assert len(told) == 1
    assert "event callback failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
