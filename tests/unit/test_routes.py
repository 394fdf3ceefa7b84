"""Routes: which member takes a request, and who goes on with an attempt that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.size import share

from hsmcore._native import Guest, Routes
from hsmcore.base.keyring import KeyVersion
from hsmcore.errors import DeadlineExceeded, HsmError, MemberDown, MessageTooLarge, QueueFull

FULL = 256
KEY = KeyVersion("0a", "a key", "ed25519", bytes(32), index=0)


class Place(NamedTuple):
    """What receipts say of a member."""

    name: str
    level_name: str = "primary"

    def version_at(self, index: int) -> KeyVersion:
        return replace(KEY, index=index)


class Member:
    """An engine whose requests are served when the test says so."""

    def __init__(self, name: str, *, max_message: int | None = None) -> None:
        self.engine = Guest(
            member=name,
            slots=64,
            max_message=1024,
            max_workers=1,
            coalesce_seconds=0.0,
            default_timeout=30.0,
            cache_size=0,
            single_flight=False,
            cache_nondeterministic=False,
        )
        self.engine.serve(1, 0, lambda: None)
        self.key = self.engine.pin("ed25519", bytes(32), max_message, "a name")
        self.place = self.engine.place = Place(name)
        self.engine.signs_as(self.key, self.place.version_at(self.key), name, "primary")
        self.engine.attach(asyncio.get_running_loop())

    def route(self, weight: int = FULL) -> tuple[Guest, int, int]:
        return self.engine, self.key, weight

    def serve(self, result: bytes | HsmError) -> None:
        """End one request."""
        assert self.engine.begin(0) is not None
        self.engine.end(0, result)
        self.engine.deliver()

    def close(self) -> None:
        self.engine.detach()
        self.engine.release()


async def _nobody(*_request: Any) -> Any:
    raise AssertionError("this was not to be the long way")


class Fallen(NamedTuple):
    """What goes on with an attempt that failed."""

    asked: asyncio.Future[Any] | None
    place: Place
    key: int
    deadline: int
    message: bytes
    error: HsmError
    extra: bytes | None
    only: bytes | None
    begun: int


def routes_of(*members: Member, fallen: list[Fallen] | None = None, **how: Any) -> Routes:
    """Routes to members; an attempt that fails ends with its error, and is noted."""

    def fall_back(*arguments: Any) -> Any:
        found = Fallen(*arguments)
        if fallen is not None:
            fallen.append(found)
        if found.asked is None:
            raise found.error
        found.asked.set_exception(found.error)
        return None

    routes = Routes(_nobody, _nobody, fall_back)
    routes.aim([], [member.route() for member in members], **how)
    return routes


def running(test: Callable[[], Any]) -> Any:
    return asyncio.run(test())


class Model:
    """The rule in Python: a ramping member in its turn, else the one with the fewest, the first of equals."""

    def __init__(self, weights: list[int], steady: int, whole: int) -> None:
        self.weights, self.steady, self.whole = weights, steady, whole
        self.turns = [0] * len(weights)
        self.loads = [0] * (len(weights) + steady)

    def pick(self) -> int:
        for number, weight in enumerate(self.weights):
            self.turns[number] += weight
            if self.turns[number] >= self.whole:
                self.turns[number] = 0
                return number
        first = len(self.weights)
        return min(range(first, first + self.steady), key=lambda number: self.loads[number])


@settings(max_examples=share(40), deadline=None)
@given(
    weights=st.lists(st.integers(16, 255), max_size=3),
    steady=st.integers(1, 3),
    count=st.integers(1, 60),
    again=st.sets(st.integers(0, 59)),
)
def test_the_pick_is_the_model_s(weights, steady, count, again):
    async def main() -> None:
        members = [Member(str(number)) for number in range(len(weights) + steady)]
        whole = FULL * (len(weights) + 1)
        model, routes = Model(weights, steady, whole), routes_of()
        ramping = [m.route(weight) for m, weight in zip(members, weights, strict=False)]
        others = [member.route() for member in members[len(weights) :]]
        routes.aim(ramping, others, round=whole)
        asked = []
        for number in range(count):
            if number in again:
                routes.aim(ramping, others, round=whole)  # as weights change: turns go on
            wanted = model.pick()
            model.loads[wanted] += 1
            asked.append(routes.submit(b"%d" % number))
            loads = [member.engine.in_flight + member.engine.waiting for member in members]
            assert loads == model.loads
        for member in members:
            member.close()
        await asyncio.gather(*asked, return_exceptions=True)

    running(main)


def test_who_goes_on_with_an_attempt_knows_which_it_was():
    async def main() -> None:
        member, fallen = Member("a"), list[Fallen]()
        routes = routes_of(member, fallen=fallen)
        before = time.monotonic_ns()
        asked = routes.submit(bytearray(b"m"), 5.0, 0, b",x")
        with_receipt = routes.ask(b"n", 5.0, only=bytes(32))
        for error in (MemberDown("gone"), MemberDown("gone, too")):
            member.serve(error)
        for future, found, message in ((asked, fallen[0], b"m"), (with_receipt, fallen[1], b"n")):
            with pytest.raises(MemberDown) as caught:
                await future
            assert (found.asked, found.place, found.key, found.message) == (future, member.place, member.key, message)
            assert found.error is caught.value
            assert before + 5e9 <= found.deadline <= time.monotonic_ns() + 5e9
        assert (fallen[0].extra, fallen[0].only, fallen[0].begun) == (b",x", None, 0)
        assert (fallen[1].extra, fallen[1].only) == (None, bytes(32))
        assert before <= fallen[1].begun <= time.monotonic_ns()
        member.engine.set_down(True, "QUEUE_FULL")
        with pytest.raises(QueueFull):
            routes.submit(b"m")
        assert fallen[2][:2] == (None, member.place), "nobody has begun with it"
        member.close()

    running(main)


def test_nobody_goes_on_with_a_request_whose_caller_has_left():
    async def main() -> None:
        member, fallen = Member("a"), list[Fallen]()
        asked = routes_of(member, fallen=fallen).submit(b"m")
        asked.cancel()
        member.serve(MemberDown("gone"))
        assert fallen == []
        assert member.engine.asked_for(asked) == (member.key, b"m")
        member.close()

    running(main)


def test_a_member_s_own_limit_of_a_message_holds_on_every_way():
    async def main() -> None:
        member = Member("a", max_message=8)
        routes = routes_of(member)
        ways: list[Callable[[bytes], Any]] = [
            routes.submit,
            routes.ask,
            member.engine.submit,
            member.engine.ask,
            lambda message: member.engine.submit_many([b"m", message]),
        ]
        for way in ways:
            with pytest.raises(MessageTooLarge, match="9 bytes; a name is 8"):
                way(bytes(9))
        assert member.engine.in_flight == 0
        member.close()

    running(main)


def test_a_member_that_hangs_gives_its_requests_away():
    async def main() -> None:
        member, fallen = Member("a"), list[Fallen]()
        routes = routes_of(member, fallen=fallen)
        asked = [routes.submit(b"%d" % n) for n in range(100)]
        asked += [routes.ask(b"r"), member.engine.submit_many([b"b", b"c"], return_exceptions=True)]
        assert member.engine.begin(0) is not None
        assert (member.engine.in_flight, member.engine.waiting) == (64, 39)
        assert member.engine.asked_for(asked[99]) == (member.key, b"99")
        member.engine.move()
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(error) for error in ended[:-1]} == {DeadlineExceeded}
        assert sorted(found.message for found in fallen) == sorted([*(b"%d" % n for n in range(100)), b"r"])
        assert {type(error) for error in ended[-1]} == {DeadlineExceeded}
        assert member.engine.asked_for(asked[99]) is None
        member.engine.end(0, bytes(64))  # an answer that nobody waits for any more
        member.engine.deliver()
        later = routes.submit(b"later")
        while member.engine.begin(0) is not None:  # what was taken back is skipped
            member.engine.end(0, bytes(64))
        member.engine.deliver()
        assert await later == bytes(64)
        member.close()

    running(main)
