"""The signature cache against a model of it: an OrderedDict, and a table of what is in flight."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from tests.native import abi
from tests.support.size import share

MOST = abi.constant("HSM_MAX_SIGNATURE")


class Question(NamedTuple):
    """What a signature is looked up by."""

    key: int
    algorithm: int
    message: bytes


# Few enough to meet again, and close enough to be mistaken for each other.
QUESTIONS = st.builds(
    Question,
    key=st.sampled_from([0, 1, 256]),
    algorithm=st.sampled_from([1, 2]),
    message=st.sampled_from([b"", b"\0", b"\0\0", b"a", b"b", b"ab", b"a" * 5000, b"a" * 4999 + b"b"]),
)
SIGNATURES = st.binary(min_size=1, max_size=MOST)


class Flight(NamedTuple):
    """A request in flight: the cache's name for it, and which of the cache's lives it began in."""

    entry: int
    question: Question
    life: int


class CacheMachine(RuleBasedStateMachine):
    """One cache, one model, the same operations."""

    flights: Bundle[Flight] = Bundle("flights")

    def __init__(self) -> None:
        super().__init__()
        self.ffi, self.lib = abi.load()
        self.held: OrderedDict[Question, bytes] = OrderedDict()
        self.joinable: dict[Question, int] = {}
        self.flying: dict[int, Flight] = {}
        self.life = 0
        self.counts = dict.fromkeys(("hits", "misses", "joined", "evictions"), 0)

    @initialize(capacity=st.integers(0, 5))
    def make(self, capacity: int) -> None:
        out = self.ffi.new("hsm_cache **")
        assert self.lib.hsm_cache_new(capacity, out) == 0
        self.cache = out[0]
        self.capacity = capacity
        self.empty = self.stats().bytes

    def stats(self):
        stats = self.ffi.new("hsm_cache_stats *")
        self.lib.hsm_cache_stats_read(self.cache, stats)
        return stats

    def end_flight(self, flight: Flight) -> None:
        del self.flying[flight.entry]
        if flight.life == self.life:
            del self.joinable[flight.question]

    @rule(target=flights, question=QUESTIONS)
    def lookup(self, question: Question):
        ffi, lib = self.ffi, self.lib
        signature = ffi.new(f"uint8_t[{MOST}]")
        length = ffi.new("uint32_t *")
        leader = ffi.new("uint64_t *")
        entry = ffi.new("uint64_t *")
        result = lib.hsm_cache_lookup(
            self.cache,
            question.key,
            question.algorithm,
            question.message,
            len(question.message),
            signature,
            length,
            leader,
            entry,
        )
        if question in self.held:
            assert result == lib.HSM_CACHE_HIT
            assert bytes(ffi.buffer(signature, length[0])) == self.held[question]
            self.held.move_to_end(question)
            self.counts["hits"] += 1
            return multiple()
        if question in self.joinable:
            assert result == lib.HSM_CACHE_JOINED
            assert leader[0] == self.joinable[question]
            self.counts["joined"] += 1
            return multiple()
        assert result == lib.HSM_CACHE_MISS
        assert entry[0] not in self.flying
        self.counts["misses"] += 1
        self.joinable[question] = 0
        flight = Flight(entry[0], question, self.life)
        self.flying[flight.entry] = flight
        return flight

    @rule(flight=flights, leader=st.integers(0, 2**64 - 1))
    def set_leader(self, flight: Flight, leader: int) -> None:
        self.lib.hsm_cache_set_leader(self.cache, flight.entry, leader)
        if flight.life == self.life:
            self.joinable[flight.question] = leader

    @rule(flight=consumes(flights), signature=SIGNATURES, keep=st.sampled_from([True, True, True, False]))
    def fill(self, flight: Flight, signature: bytes, keep: bool) -> None:
        self.lib.hsm_cache_fill(self.cache, flight.entry, signature, len(signature), keep)
        self.end_flight(flight)
        if keep and self.capacity > 0 and flight.life == self.life:
            self.held[flight.question] = signature
            if len(self.held) > self.capacity:
                self.held.popitem(last=False)
                self.counts["evictions"] += 1

    @rule(flight=consumes(flights))
    def abandon(self, flight: Flight) -> None:
        self.lib.hsm_cache_abandon(self.cache, flight.entry)
        self.end_flight(flight)

    @rule()
    def clear(self) -> None:
        self.lib.hsm_cache_clear(self.cache)
        self.held.clear()
        self.joinable.clear()
        self.life += 1

    @invariant()
    def the_counters_agree(self) -> None:
        if not hasattr(self, "cache"):
            return
        stats = self.stats()
        assert {name: getattr(stats, name) for name in self.counts} == self.counts
        assert stats.entries == len(self.held)
        assert stats.in_flight == len(self.flying)
        questions = [*self.held, *(flight.question for flight in self.flying.values())]
        if questions:
            assert stats.bytes > self.empty + sum(len(question.message) for question in questions)
        else:
            assert stats.bytes == self.empty

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        # In every order of use: what is still in flight is ended first, as the engine's owner does.
        for entry in self.flying:
            self.lib.hsm_cache_abandon(self.cache, entry)
        self.lib.hsm_cache_free(self.cache)
        assert abi.leaks()["allocations"] == 0


CacheMachine.TestCase.settings = settings(max_examples=share(100), stateful_step_count=60, deadline=None)


class TestCache(CacheMachine.TestCase):
    """Run by pytest."""
