"""The circuit breaker by itself, against what its rules say in words."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmcore.errors import EXCEPTION_OF_STATUS, error_of
from hsmcore.failover.breaker import (
    BACKOFF_MAX_NS,
    OWN,
    RULES,
    SECOND,
    Breaker,
    kind_of,
)

GOOD_PROBES = 3  # as required
YEAR = 365 * 86_400 * SECOND
KINDS = st.sampled_from(sorted(RULES))
INTERVALS = st.sampled_from([1_000_000, 50_000_000, 5 * SECOND, 10 * SECOND, 3600 * SECOND])


@given(KINDS, INTERVALS, st.lists(st.sampled_from(["fail", "progress"]), max_size=40))
def test_it_opens_after_so_many_failures_in_a_row_and_not_before(kind, interval, steps):
    breaker, run = Breaker(kind, interval), 0
    for now, step in enumerate(steps):
        run = run + 1 if step == "fail" else 0
        opened = breaker.fail(now) if step == "fail" else breaker.progress()
        assert bool(opened) == (run == RULES[kind].threshold)
        if opened:
            assert breaker.state == "open"
            return
        assert breaker.state == "closed"


@given(KINDS, INTERVALS, st.lists(st.booleans(), max_size=30))
def test_only_three_good_probes_in_a_row_close_it(kind, interval, probes):
    breaker, now, run = Breaker(kind, interval), 0, 0
    breaker.trip(now)
    for good in probes:
        assert breaker.state == ("half-open" if run else "open")
        now = max(now, breaker.retry_at)
        assert breaker.due(now, hurry=False) == RULES[kind].probed
        run = run + 1 if good and RULES[kind].probed else 0
        assert breaker.probed(good, now) == (run == GOOD_PROBES)
        if run == GOOD_PROBES:
            assert breaker.state == "closed"
            return


@given(INTERVALS, st.integers(0, YEAR))
def test_probes_keep_to_the_interval_unless_a_request_waits(interval, start):
    breaker = Breaker("down", interval)
    breaker.trip(start)
    hurried, now = 0, start
    for _ in range(30):
        assert not breaker.due(breaker.retry_at - 1, hurry=False)
        assert breaker.retry_at - now == interval
        assert breaker.quick_at <= breaker.retry_at
        hurried += breaker.quick_at < breaker.retry_at
        now = breaker.retry_at
        breaker.probed(False, now)
    # The pace of hurry slows down to the interval too.
    assert hurried <= 20


@given(INTERVALS)
def test_a_member_that_flaps_for_a_year_comes_back_at_growing_intervals(interval):
    breaker, now, returns = Breaker("down", interval), 0, 0
    breaker.trip(now)
    while now < YEAR and returns < 2000:
        now = breaker.retry_at
        if breaker.probed(True, now):
            returns += 1
            before = breaker.spacing
            breaker.fail(now + 1)
            assert min(2 * before, max(interval, BACKOFF_MAX_NS)) == breaker.spacing
    longest = max(interval, BACKOFF_MAX_NS)
    assert breaker.spacing == longest
    now_and_then = Breaker("down", interval)
    for day in range(10):
        now_and_then.trip(day * 100 * 86_400 * SECOND)
        assert now_and_then.spacing == interval  # once in a while is no flapping
        for _ in range(GOOD_PROBES):
            now_and_then.probed(True, now_and_then.retry_at)


@pytest.mark.parametrize("status", EXCEPTION_OF_STATUS)
def test_every_error_has_a_kind_or_is_the_request_s_own(status):
    error = error_of(status, call="C_Sign")
    kind = kind_of(error)
    if error.error_class == "AUTH_FATAL":  # of a token, that may lock a PIN
        assert kind == ("access" if status == "ACCESS_DENIED" else "auth")
        assert RULES[kind].probed == (status == "ACCESS_DENIED")
    if error.retryable and status != "QUEUE_FULL":  # that is no failure of the member
        assert kind is not None
    assert (kind is None) == (status in OWN or status == "OK"), "decide: the request's own, or a failure of the member"
    if status in ("SIGNATURE_INVALID", "DEADLINE_EXCEEDED", "HOST_LOST"):
        assert error.maybe_signed


def test_what_failed_before_it_signed_left_no_signature():
    for call in ("C_SignInit", "C_OpenSession", ""):
        assert not error_of("TOKEN_LOST", call=call).maybe_signed
    assert error_of("TOKEN_LOST", call="C_Sign").maybe_signed
    assert not error_of("BUSY", call="C_Sign").maybe_signed
    told = error_of("TOKEN_LOST", call="kms:Sign")
    assert not told.maybe_signed
    told.maybe_signed = True  # the member knows
    assert copy.copy(told).maybe_signed
