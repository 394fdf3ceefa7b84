"""Requests through the rings, served by an engine on the no-op module, against a model of the slots: every request that
was submitted completes once, as what was done to it allows, and its slot is free again when it was given back.

The worker is real and runs when it likes. What must be decided before it runs is done inside a batch, which is shown
to the workers at its end (or when it has grown to a group).
"""

from __future__ import annotations

import select
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.native import abi
from tests.support.size import share

SLOTS = 64
GROUP = 32  # requests after which a batch is shown to the workers in any case
MAX_MESSAGE = 2000
MAX_KEYS = 64
LENGTHS = st.sampled_from([1, 63, 65, 1280, 1281, MAX_MESSAGE])
PATIENCE_MS = 60_000


@dataclass
class Request:
    """What the model knows of a request."""

    key: int
    late: bool = False
    cancelled: bool = False
    hidden: bool = True  # no worker can have seen it yet
    possible: set[str] = field(default_factory=set)  # how it may end, once it is shown


class RingMachine(RuleBasedStateMachine):
    """One client, one engine, the model of every slot."""

    def __init__(self) -> None:
        super().__init__()
        self.ffi, self.lib = abi.load()
        ffi, lib = self.ffi, self.lib
        # Kept: the structures only point to them.
        self.texts = [ffi.new("char[]", text) for text in (str(abi.noop_path()).encode(), b"noop", b"noop-key")]
        self.pin = ffi.new("uint8_t[]", b"1234")
        options = ffi.new("hsm_client_options *", {"slots": SLOTS, "max_message": MAX_MESSAGE, "max_workers": 3})
        options.coalesce_ns = 1_000_000
        out = ffi.new("hsm_client **")
        assert lib.hsm_client_new(options, out, ffi.NULL) == 0
        self.client = out[0]
        self.engine: Any = None
        self.open: dict[int, Request] = {}
        self.done: list[int] = []  # taken and not given back
        self.batching = False
        self.keys: dict[int, bool] = {}  # by index: whether it may sign
        self.submitted = self.completed = 0

    # ---- the engine ----

    @initialize(workers=st.integers(1, 3), spin=st.sampled_from([0, 20_000]))
    def start(self, workers: int, spin: int) -> None:
        ffi, lib = self.ffi, self.lib
        options = ffi.new("hsm_engine_options *")
        options.module_path = self.texts[0]
        options.token.label = self.texts[1]
        options.token.slot_id = -1
        options.pin = self.pin
        options.pin_len = 4
        options.workers = workers
        options.spin_ns = spin
        out = ffi.new("hsm_engine **")
        error = ffi.new("hsm_error *")
        assert lib.hsm_engine_start(self.client, options, out, error) == 0, ffi.string(error.detail)
        self.engine = out[0]
        self.add_key()

    @precondition(lambda self: len(self.keys) < 20)
    @rule()
    def add_key(self) -> None:
        ffi, lib = self.ffi, self.lib
        selector = ffi.new("hsm_key_selector *", {"label": self.texts[2], "handle": -1})
        info = ffi.new("hsm_key_info *")
        error = ffi.new("hsm_error *")
        assert lib.hsm_engine_add_key(self.engine, selector, info, error) == 0, ffi.string(error.detail)
        assert info.index not in self.keys, "an index is never given to another key"
        assert not any(signs for index, signs in self.keys.items() if index % MAX_KEYS == info.index % MAX_KEYS)
        self.keys[info.index] = True
        self.may_end_as("OK", where="KEY_NOT_FOUND", key=info.index)

    @rule(number=st.integers(0, 19))
    def retire_key(self, number: int) -> None:
        index = list(self.keys)[number % len(self.keys)]
        assert self.lib.hsm_engine_retire_key(self.engine, index) == 0
        self.keys[index] = False
        self.may_end_as("KEY_DEACTIVATED", where="OK", key=index)

    def may_end_as(self, status: str, *, where: str, key: int) -> None:
        """What happens now may come before or after a request that is under way."""
        for request in self.open.values():
            if request.key == key and where in request.possible:
                request.possible.add(status)

    # ---- requests ----

    @property
    def room(self) -> int:
        return SLOTS - len(self.open) - len(self.done)

    def submit_one(self, key: int, length: int, late: bool) -> None:
        ffi, lib = self.ffi, self.lib
        slot = ffi.new("uint32_t *")
        deadline = ffi.new("uint64_t *")
        message = bytes([self.submitted % 256]) * length
        status = lib.hsm_client_submit(self.client, key, message, length, 1 if late else 0, slot, deadline)
        if self.room == 0:
            assert status == lib.HSM_QUEUE_FULL
            return
        assert status == 0
        assert slot[0] not in self.open
        assert slot[0] not in self.done
        assert (deadline[0] != 0) == late
        self.submitted += 1
        self.open[slot[0]] = Request(key, late=late)
        if not self.batching or sum(request.hidden for request in self.open.values()) == GROUP:
            self.show()

    def show(self) -> None:
        """What was hidden is the workers' from now on; what was done to it up to now decides how it ends."""
        for request in self.open.values():
            if request.hidden:
                request.hidden = False
                request.possible = self.verdict(request)

    def verdict(self, request: Request) -> set[str]:
        if request.cancelled:
            return {"CANCELLED"}
        if request.key not in self.keys:
            possible = {"KEY_NOT_FOUND"}
        else:
            possible = {"OK" if self.keys[request.key] else "KEY_DEACTIVATED"}
        # A worker that comes from another request goes by the time at which that one ended.
        return possible | {"DEADLINE_EXCEEDED"} if request.late else possible

    @rule(number=st.integers(0, 21), length=LENGTHS, late=st.booleans(), count=st.integers(1, 12))
    def submit(self, number: int, length: int, late: bool, count: int) -> None:
        key = [*self.keys, MAX_KEYS - 2, MAX_KEYS - 1][number % (len(self.keys) + 2)]  # two that no key ever has
        for _ in range(count):
            self.submit_one(key, length, late)

    @rule(length=st.integers(MAX_MESSAGE + 1, MAX_MESSAGE + 5))
    def submit_too_long(self, length: int) -> None:
        ffi, lib = self.ffi, self.lib
        slot = ffi.new("uint32_t *")
        status = lib.hsm_client_submit(self.client, 0, bytes(length), length, 0, slot, ffi.new("uint64_t *"))
        assert status == lib.HSM_MESSAGE_TOO_LARGE

    @precondition(lambda self: not self.batching)
    @rule()
    def begin_batch(self) -> None:
        self.lib.hsm_client_batch_begin(self.client)
        self.batching = True

    @precondition(lambda self: self.batching)
    @rule()
    def end_batch(self) -> None:
        self.lib.hsm_client_batch_end(self.client)
        self.batching = False
        self.show()

    @precondition(lambda self: self.open)
    @rule(number=st.integers(0, SLOTS - 1))
    def cancel(self, number: int) -> None:
        slot = sorted(self.open)[number % len(self.open)]
        request = self.open[slot]
        self.lib.hsm_client_cancel(self.client, slot)
        request.cancelled = True
        if not request.hidden:
            request.possible.add("CANCELLED")  # unless it has been begun

    # ---- completions ----

    def take(self, completion: Any) -> None:
        request = self.open.pop(completion.slot)  # a KeyError: it was not open, or completes twice
        assert not request.hidden
        status = self.ffi.string(self.lib.hsm_status_name(completion.status)).decode()
        assert status in request.possible
        assert completion.key == request.key
        assert completion.signature_len == (64 if status == "OK" else 0)
        self.completed += 1
        self.done.append(completion.slot)

    def collect(self, most: int) -> None:
        """Take `most` completions, waiting for them as an event loop does."""
        fds = self.ffi.new("int[2]")
        self.lib.hsm_client_wake_fds(self.client, fds, fds + 1)
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        completion = self.ffi.new("hsm_completion *")
        taken = 0
        while taken < most:
            if self.lib.hsm_client_next(self.client, completion):
                self.take(completion)
                taken += 1
            else:
                assert poll.poll(PATIENCE_MS), "a request was lost, or the wake for it"
                self.lib.hsm_client_wake_clear(self.client)

    @rule(number=st.integers(1, SLOTS))
    def drain(self, number: int) -> None:
        self.collect(min(number, sum(not request.hidden for request in self.open.values())))

    @precondition(lambda self: self.done)
    @rule(number=st.integers(0, SLOTS - 1), count=st.integers(1, SLOTS))
    def release(self, number: int, count: int) -> None:
        for _ in range(min(count, len(self.done))):
            self.lib.hsm_client_release(self.client, self.done.pop(number % len(self.done)))

    @invariant()
    def the_slots_add_up(self) -> None:
        assert self.lib.hsm_client_free_slots(self.client) == self.room
        assert self.submitted == self.completed + len(self.open)

    def teardown(self) -> None:
        if self.engine is not None:
            if self.batching:
                self.end_batch()
            self.collect(len(self.open))
            completion = self.ffi.new("hsm_completion *")
            assert not self.lib.hsm_client_next(self.client, completion)
            assert self.submitted == self.completed
            assert self.lib.hsm_engine_stop(self.engine, PATIENCE_MS * 1_000_000) == 0
        self.lib.hsm_client_free(self.client)
        assert abi.leaks() == dict.fromkeys(abi.leaks(), 0)


RingMachine.TestCase.settings = settings(max_examples=share(50), stateful_step_count=40, deadline=None)


class TestRing(RingMachine.TestCase):
    """Run by pytest."""
