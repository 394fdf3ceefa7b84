"""Whether a request can be answered in time: the estimate, held against servers whose speed is known."""

from __future__ import annotations

import random
import time

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.native import abi
from tests.support.size import share

MS = 1_000_000
SECOND = 1_000_000_000


class AdmissionControl:
    """native/src/admission.h."""

    def __init__(self) -> None:
        ffi, self._lib = abi.load()
        self._state = ffi.new("hsm_admission *")

    @property
    def each_ns(self) -> int:
        return self._state.each_ns

    def serve_with(self, servers: int) -> None:
        self._state.servers = servers

    def note(self, now: int, answers: int, loaded: bool) -> None:
        self._lib.hsm_admission_note(self._state, now, answers, loaded)

    def is_late(self, ahead: int, limit: int) -> bool:
        return self._lib.hsm_admission_late(self._state, ahead, limit)

    def refuses(self, ahead: int, count: int, limit: int) -> bool:
        return self._lib.hsm_admission_refuses(self._state, ahead, count, limit)


def serve(
    admission: AdmissionControl, now: int, each: int, answers: int, *, at_once: int = 1, loaded: bool = True
) -> int:
    """So many answers, `each` ns apart, noticed in groups of `at_once`. Returns when that was over."""
    for _ in range(answers // at_once):
        now += each * at_once
        admission.note(now, at_once, loaded)
    return now


def known(each: int, until: int = 10**13) -> AdmissionControl:
    """One that has measured this, until then; 80 s at most: a clock may be as young as its machine."""
    admission, answers = AdmissionControl(), max(80, 2 * 250 * MS // each)
    serve(admission, until - each * answers, each, answers)
    return admission


def test_nothing_is_late_before_anything_was_measured():
    admission = AdmissionControl()
    assert not admission.is_late(10**6, 1)
    serve(admission, SECOND, 100_000, 100_000, loaded=False)
    assert admission.each_ns == 0, "callers that come slowly say nothing about how fast they could be served"
    assert not admission.is_late(10**6, 1)


@given(
    each=st.integers(1_000, 10 * MS),
    pause=st.integers(SECOND, 3600 * SECOND),
    answers=st.integers(1, 64),
)
@settings(deadline=None, max_examples=share(20))
def test_a_pause_of_the_module_refuses_no_request(each, pause, answers):
    """Only what is slow in four windows counts, however long one of them took."""
    admission = known(each)
    before = admission.each_ns
    now = 3600 * SECOND + pause
    admission.note(now, 0, True)
    serve(admission, now, each, answers)
    assert admission.each_ns <= before * 1.25 + 1


@given(slow=st.integers(MS, SECOND), fast=st.integers(1_000, 100_000))
@settings(deadline=None, max_examples=share(20))
def test_the_service_rate_recovers_without_load(slow, fast):
    """While everything but one request at a time is refused, those that come show how fast it has become."""
    admission = known(slow)
    now = 7200 * SECOND
    for _ in range(80):
        now = serve(admission, now, fast + 50_000, 120, loaded=False)
    assert admission.each_ns <= 2 * (fast + 50_000)


@given(
    each=st.integers(200 * MS, SECOND),
    servers=st.integers(1, 64),
    ahead=st.integers(0, 200),
    count=st.integers(1, 200),
)
@settings(deadline=None, max_examples=share(50))
def test_no_request_is_refused_that_an_idle_server_could_serve(each, servers, ahead, count):
    admission = known(each, time.monotonic_ns())
    admission.serve_with(servers)
    limit = 4 * each  # longer than since the last window
    late = admission.is_late(ahead + count - 1, limit)
    assert admission.refuses(ahead, count, limit) == (late and ahead + count > servers)
    assert not admission.refuses(ahead, count, each * 1000)


def test_at_the_limit_one_request_more_is_refused():
    each, past = 300 * MS, time.monotonic_ns() - 3 * SECOND
    for servers in range(1, 5):
        for ahead in range(7):
            for count in range(1, 7):
                admission = known(each, time.monotonic_ns())
                admission.serve_with(servers)
                late = admission.is_late(ahead + count - 1, 4 * each)
                assert late == (ahead + count > 3)
                assert admission.refuses(ahead, count, 4 * each) == (late and ahead + count > servers)
                old = known(each, past)
                old.serve_with(servers)
                is_over = ahead + count > servers and old.is_late(ahead + count - 1, 2 * each)
                assert old.refuses(ahead, count, 2 * each) == (is_over and ahead >= servers)
                assert (old.each_ns == 0) == (is_over and ahead < servers)


@given(before=st.integers(10_000, MS), factor=st.floats(1.0, 8.0))
@settings(deadline=None, max_examples=share(20))
def test_a_server_that_becomes_slower_is_followed(before, factor):
    admission = known(before)
    now, after = 7200 * SECOND, round(before * factor)
    admission.note(now, 0, True)
    for _ in range(40):
        now = serve(admission, now, after, max(16, 6 * MS // after + 1))
    assert after * 0.7 <= admission.each_ns <= after * 1.3


@given(
    capacity=st.floats(50, 20_000),
    load=st.floats(0.3, 5.0),
    timeout=st.floats(0.05, 2.0),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=share(25))
def test_nearly_all_admitted_requests_meet_their_deadline(capacity, load, timeout, seed):
    """A queue before one server, callers that come at random, at up to five times its rate."""
    assume(capacity * timeout > 20)  # a single signature may take half as long again, which a fifth must cover
    admission, limit, dice = AdmissionControl(), int(timeout * SECOND), random.Random(seed)
    waiting: list[int] = []  # deadlines, in order
    now, free_at = SECOND, SECOND
    late = good = refused = 0
    unmeasured = 0
    """Callers that were admitted before anything was known, which is no mistake."""
    for _ in range(5_000):
        now += max(1, int(dice.expovariate(capacity * load) * SECOND))
        while waiting and free_at <= now:
            deadline = waiting.pop(0)
            begun = max(free_at, deadline - limit)
            if begun >= deadline:  # as a worker does: it is not begun any more
                late += 1
                continue
            free_at = begun + int(SECOND / capacity * dice.uniform(0.5, 1.5))
            admission.note(free_at, 1, bool(waiting))
            late, good = late + (free_at > deadline), good + (free_at <= deadline)
        if admission.is_late(len(waiting) + (free_at > now), limit):
            refused += 1
            continue
        unmeasured += admission.each_ns == 0
        waiting.append(now + limit)
    assert late <= unmeasured + 0.02 * (good + late) + 5
    if load < 0.8 and capacity * timeout > 100:
        assert refused == 0
