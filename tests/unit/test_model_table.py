"""The request table, served by a guest, against a model of its callers: each waiter gets one answer, with the signature
of its own message and key or with an error that can be its own, and none after it has left.

Time is the table's own clock plus `ahead`, which only grows: a sweep looks from there, and timeouts begin there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.native import abi
from tests.support.size import share

RUNNERS = 3
MS = 10**6
SECOND = 10**9
HOUR = 3600 * SECOND
MESSAGES = [b"a", b"ab"]
BUSY_CKR = 0x32


def signature_of(key: int, message: bytes) -> bytes:
    return hashlib.sha512(bytes([key % 256]) + message).digest()


@dataclass
class Request:
    """What the model knows of a request that is not over."""

    key: int
    message: Any
    tag: int
    deadline: int
    hold: bool
    waiting: bool = True
    answered: bool = False
    seq: int = 0  # of its record, once it is held
    withdrawn: bool = False  # no signature of it will be made
    possible: set[str] = field(default_factory=lambda: {"OK"})

    @property
    def text(self) -> bytes:
        return bytes(self.message)


class TableMachine(RuleBasedStateMachine):
    """One table, one guest, the model of every waiter."""

    def __init__(self) -> None:
        super().__init__()
        self.ffi, self.lib = abi.load()
        self.open: dict[int, Request] = {}
        self.seen: set[int] = set()
        self.runners: dict[int, tuple[int, bytes]] = {}
        self.keys: dict[int, bool] = {}
        self.followed: set[int] = set()
        """Keys of which one request may follow another one with the same message."""
        self.ahead = self.seq = self.tags = self.hits = self.misses = self.cancels = 0
        self.drained = True
        """Whether no answer can wait to be taken."""
        self.client = self.cache = self.table = self.guest = self.ffi.NULL

    @initialize(slots=st.sampled_from([1, 2, 8]), capacity=st.sampled_from([None, 0, 1, 16]))
    def make(self, slots: int, capacity: int | None) -> None:
        ffi, lib = self.ffi, self.lib
        options = ffi.new("hsm_client_options *", {"slots": slots, "max_message": 100, "max_workers": RUNNERS})
        out = ffi.new("hsm_client **")
        assert lib.hsm_client_new(options, out, ffi.NULL) == 0
        self.client = out[0]
        if capacity is not None:
            out = ffi.new("hsm_cache **")
            assert lib.hsm_cache_new(capacity, out) == 0
            self.cache = out[0]
        self.capacity = capacity or 0
        out = ffi.new("hsm_requests **")
        assert lib.hsm_requests_new(self.client, self.cache, out) == 0
        self.table = out[0]
        out = ffi.new("hsm_guest **")
        assert lib.hsm_guest_new(self.table, RUNNERS, 0, out) == 0
        self.guest = out[0]
        self.add_key(False)
        self.add_key(True)

    # ---- keys and cache ----

    @precondition(lambda self: len(self.keys) < 80)
    @rule(cacheable=st.booleans())
    def add_key(self, cacheable: bool) -> None:
        info = self.ffi.new("hsm_key_info *", {"algorithm": 1, "public_key_len": 32})
        assert self.lib.hsm_guest_add_key(self.guest, info, cacheable) == 0
        assert info.index not in self.keys
        assert info.index % 64 not in {key % 64 for key, _ in self.runners.values()}
        self.keys[info.index] = True
        if cacheable and self.cache != self.ffi.NULL:
            self.followed.add(info.index)

    @rule(which=st.integers(0, 79))
    def retire(self, which: int) -> None:
        key = list(self.keys)[which % len(self.keys)]
        self.lib.hsm_requests_retire(self.table, key)
        self.keys[key] = False
        self.may_end_as("KEY_DEACTIVATED", key=key)

    @rule()
    def clear(self) -> None:
        if self.cache != self.ffi.NULL:
            self.lib.hsm_cache_clear(self.cache)

    def may_end_as(self, status: str, **what: Any) -> None:
        for request in self.open.values():
            if all(getattr(request, name) == value for name, value in what.items()):
                request.possible.add(status)

    # ---- callers ----

    @rule(
        which=st.integers(0, 3),
        message=st.sampled_from(MESSAGES),
        timeouts=st.lists(st.sampled_from([None, None, 10 * SECOND, HOUR]), min_size=1, max_size=20),
        hold=st.booleans(),
    )
    def submit(self, which: int, message: bytes, timeouts: list[int | None], hold: bool) -> None:
        key = list(self.keys)[-1 - which % len(self.keys)]
        for timeout in timeouts:
            self.submit_one(key, message, timeout, hold)

    def submit_one(self, key: int, message: bytes, timeout: int | None, hold: bool) -> None:
        ffi, lib = self.ffi, self.lib
        kept = ffi.from_buffer("uint8_t[]", bytearray(message))
        ask = ffi.new("hsm_ask *", {"message": kept, "message_len": len(message), "key": key, "held": hold})
        ask.admitted = 1
        ask.timeout_ns = 1 if timeout is None else self.ahead + timeout
        self.tags += 1
        ask.tag = self.tags
        answer = ffi.new("hsm_answer *")
        assert lib.hsm_requests_room(self.table) > 0
        status = lib.hsm_requests_submit(self.table, ask, answer)
        if not self.keys[key]:
            assert status == lib.HSM_KEY_DEACTIVATED
            return
        assert status == 0
        if answer.request == 0:
            assert answer.cached
            assert not hold
            assert ffi.buffer(answer.signature, answer.signature_len)[:] == signature_of(key, message)
            self.hits += 1
            return
        assert answer.request not in self.seen, "a number is used twice"
        self.seen.add(answer.request)
        self.drained = self.drained and not answer.cached
        deadline = lib.hsm_now_ns() + ask.timeout_ns
        request = Request(key, kept, ask.tag, deadline, hold)
        for other in self.open.values() if key in self.followed else ():  # whose answer may wait to be taken
            if (other.key, other.text) == (key, request.text):
                request.possible |= other.possible & {"BUSY", "TOKEN_LOST"}
        if timeout is None:  # it has passed for whoever looks
            request.possible.add("DEADLINE_EXCEEDED")
        self.open[answer.request] = request

    @precondition(lambda self: any(request.waiting for request in self.open.values()))
    @rule(which=st.integers(0, 400), count=st.sampled_from([1, 1, 3, 20]), drained=st.booleans())
    def cancel(self, which: int, count: int, drained: bool) -> None:
        if drained:
            self.take_up_to(1000)
        for _ in range(count):
            waiting = [number for number, request in self.open.items() if request.waiting]
            if waiting:
                self.cancel_one(waiting[which % len(waiting)])

    def cancel_one(self, number: int) -> None:
        begun = self.ffi.new("int *")
        request = self.open[number]
        over = self.lib.hsm_requests_cancel(self.table, number, begun)
        request.waiting = request.answered = False
        request.withdrawn = not begun[0]
        self.cancels += 1
        same = [one for one in self.open.values() if (one.key, one.text) == (request.key, request.text)]
        if self.drained and not request.seq and not any(one.waiting for one in same):
            # Nothing but a runner can have begun it.
            assert not begun[0] or (request.key, request.text) in self.runners.values()
        if over:
            del self.open[number]

    # ---- runners ----

    @rule(runner=st.integers(0, RUNNERS - 1))
    def begin(self, runner: int) -> None:
        if runner not in self.runners:
            self.begin_with(runner)

    def begin_with(self, runner: int) -> bool:
        key = self.ffi.new("uint32_t *")
        number = self.lib.hsm_guest_begin(self.guest, runner, key)
        self.drained = False  # it completes those that need no runner
        if number:
            request = self.open[number]
            assert not request.withdrawn
            assert self.keys[request.key]
            assert key[0] == request.key
            self.runners[runner] = (request.key, request.text)
        return number != 0

    @precondition(lambda self: self.runners)
    @rule(which=st.integers(0, RUNNERS - 1), good=st.booleans())
    def end(self, which: int, good: bool) -> None:
        runner = sorted(self.runners)[which % len(self.runners)]
        key, text = self.runners.pop(runner)
        if good:
            self.lib.hsm_guest_end(self.guest, runner, self.lib.HSM_OK, 0, signature_of(key, text))
        else:
            self.lib.hsm_guest_end(self.guest, runner, self.lib.HSM_BUSY, BUSY_CKR, self.ffi.NULL)
            self.may_end_as("BUSY", key=key, text=text)
        self.drained = False

    @rule()
    def refuse(self) -> None:
        self.lib.hsm_guest_refuse(self.guest, self.lib.HSM_TOKEN_LOST)
        self.may_end_as("TOKEN_LOST")
        self.drained = False

    # ---- answers ----

    @rule(most=st.sampled_from([1, 3, 1000]))
    def take(self, most: int) -> None:
        self.take_up_to(most)

    def take_up_to(self, most: int) -> int:
        answer = self.ffi.new("hsm_answer *")
        taken = 0
        while taken < most and self.lib.hsm_requests_next(self.table, answer):
            self.look_at(answer)
            taken += 1
        self.drained = taken < most
        return taken

    def look_at(self, answer: Any) -> None:
        request = self.open[answer.request]  # a KeyError: it is over
        status = self.ffi.string(self.lib.hsm_status_name(answer.status)).decode()
        assert answer.tag == request.tag
        assert answer.key == request.key
        assert answer.seq == request.seq
        assert bool(answer.claimed) == request.waiting, "answered twice, or after it has left"
        assert bool(answer.told) == request.answered
        assert answer.claimed or answer.last, "what answers no waiter ends its request"
        assert status in request.possible or (status == "CANCELLED" and not request.waiting)
        assert status != "OK" or not request.withdrawn
        if status == "OK":
            signature = self.ffi.buffer(answer.signature, answer.signature_len)[:]
            assert signature == signature_of(request.key, request.text)
        else:
            assert answer.signature_len == 0
        assert answer.ckr == (BUSY_CKR if status == "BUSY" else 0)
        self.hits += answer.cached and not answer.seq
        request.answered, request.waiting = request.answered or request.waiting, False
        if not answer.last:  # a worker may have it, or not: then none will
            request.withdrawn = not answer.begun
            return
        if request.hold and status == "OK" and answer.claimed and not answer.seq:
            self.seq += 1
            request.seq, request.waiting, request.answered = self.seq, True, False
            request.possible -= {"BUSY", "KEY_DEACTIVATED", "TOKEN_LOST", "SYSTEM"}
            self.lib.hsm_requests_hold(self.table, answer.request, self.seq, 0)
        else:
            del self.open[answer.request]
            self.lib.hsm_requests_end(self.table, answer.request)

    @rule(back=st.integers(0, 3))
    def release(self, back: int) -> None:
        self.lib.hsm_requests_release(self.table, max(0, self.seq - back))
        self.drained = False

    @rule(which=st.sampled_from(["QUEUED_ONES", "HELD_ONES", "HELD_ONES", "UNSIGNED_ONES", "ALL"]))
    def fail(self, which: str) -> None:
        self.lib.hsm_requests_fail(self.table, getattr(self.lib, f"HSM_{which}"), self.lib.HSM_SYSTEM)
        for request in self.open.values():
            if which == "ALL" or (which == "HELD_ONES") == (request.seq != 0):
                request.possible.add("SYSTEM")
        counts = self.ffi.new("hsm_requests_counts *")
        self.lib.hsm_requests_count(self.table, counts)
        assert which == "HELD_ONES" or counts.queued == 0
        assert which not in ("HELD_ONES", "ALL") or counts.held == 0
        assert which not in ("UNSIGNED_ONES", "ALL") or counts.owed == 0
        self.drained = False

    @rule(span=st.sampled_from([10 * MS, 10 * MS, 20 * SECOND, 2 * HOUR]))
    def sweep(self, span: int) -> None:
        self.ahead += span
        now = self.lib.hsm_now_ns() + self.ahead
        for request in self.open.values():
            if request.deadline <= now:
                request.possible.add("DEADLINE_EXCEEDED")
        self.lib.hsm_requests_sweep(self.table, now)
        self.drained = False
        next_look = self.lib.hsm_requests_sweep_at(self.table)
        assert next_look == 0 or next_look > now
        if span >= 20 * SECOND:
            self.take_up_to(100_000)
            late = [one for one in self.open.values() if one.waiting and one.deadline < now - SECOND and not one.seq]
            assert not late

    # ---- figures ----

    @invariant()
    def figures_add_up(self) -> None:
        if self.table == self.ffi.NULL:
            return
        counts = self.ffi.new("hsm_requests_counts *")
        self.lib.hsm_requests_count(self.table, counts)
        assert counts.open == sum(request.waiting for request in self.open.values())
        assert counts.owed <= counts.slots
        assert counts.owed + counts.queued + counts.held <= counts.open
        assert counts.slots == self.lib.hsm_client_slots(self.client) - self.lib.hsm_client_free_slots(self.client)

    def teardown(self) -> None:
        if self.table != self.ffi.NULL:
            while self.runners:
                self.end(0, True)
            idle = 0
            while idle < 2:  # a request without a slot gets one when the answers before it are taken
                begun = self.begin_with(0)
                if begun:
                    self.end(0, True)
                self.release(0)
                idle = 0 if self.take_up_to(1000) or begun else idle + 1
            assert not self.open
            counts = self.ffi.new("hsm_requests_counts *")
            self.lib.hsm_requests_count(self.table, counts)
            assert (counts.open, counts.queued, counts.slots, counts.held, counts.owed) == (0, 0, 0, 0, 0)
            assert self.lib.hsm_requests_sweep_at(self.table) == 0
            assert not any(self.lib.hsm_requests_key(self.table, number) for number in self.seen), "over"
        if self.cache != self.ffi.NULL:
            stats = self.ffi.new("hsm_cache_stats *")
            self.lib.hsm_cache_stats_read(self.cache, stats)
            assert stats.in_flight == 0
            assert stats.entries <= self.capacity
            # One that was cancelled may have taken its hit along.
            assert self.hits <= stats.hits <= self.hits + self.cancels
        self.lib.hsm_guest_free(self.guest)
        self.lib.hsm_requests_free(self.table)
        self.lib.hsm_cache_free(self.cache)
        self.lib.hsm_client_free(self.client)
        assert abi.leaks() == dict.fromkeys(abi.leaks(), 0)


TableMachine.TestCase.settings = settings(max_examples=share(60), stateful_step_count=50, deadline=None)


@pytest.mark.timeout(600)  # cut off, it leaves its engines to the tests behind it
class TestTable(TableMachine.TestCase):
    """Run by pytest."""
