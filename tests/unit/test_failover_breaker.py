"""The circuit breaker by itself, against what its rules say in words."""

from __future__ import annotations

import copy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.paths import ROOT

from hsmcore.errors import EXCEPTION_OF_STATUS, AuditUnavailable, EngineClosed, NotHolder, QueueFull, error_of
from hsmcore.failover.breaker import (
    BACKOFF_MAX_NS,
    RULES,
    SECOND,
    WITHHELD,
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


def test_a_member_that_is_half_open_and_fails_waits_longer_and_one_that_is_open_does_not():
    breaker = Breaker("down", 10 * SECOND)
    breaker.trip(0)
    for now in (10, 20):
        assert not breaker.fail(now * SECOND)
        assert breaker.retry_at == (now + 10) * SECOND
    for trips, wait in enumerate((20, 40, 80, 160, 300, 300), 2):
        now = breaker.retry_at
        assert not breaker.probed(True, now)
        assert breaker.state == "half-open"
        breaker.fail(now)
        assert (breaker.state, breaker.trips, breaker.retry_at) == ("open", trips, now + wait * SECOND)


def test_while_a_request_waits_probes_begin_soon_and_each_waits_twice_as_long():
    breaker, now = Breaker("down", 10 * SECOND), 0
    breaker.trip(now)
    waits = []
    for _ in range(10):
        waits.append(breaker.quick_at - now)
        now = breaker.quick_at
        assert not breaker.due(now - 1, hurry=True)
        assert breaker.due(now, hurry=True)
        breaker.probed(False, now)
    assert waits == [SECOND // 20 * 2**n for n in range(8)] + [10 * SECOND] * 2
    breaker.hasten(now)
    assert breaker.due(now, hurry=False)


@pytest.mark.parametrize(("interval", "stable"), [(SECOND, 60), (10 * SECOND, 100)])
def test_a_return_that_lasts_ten_intervals_and_a_minute_is_no_flapping(interval, stable):
    for after, trips in ((stable * SECOND - 1, 2), (stable * SECOND, 1)):
        breaker = Breaker("down", interval)
        breaker.trip(0)
        for now in range(1, GOOD_PROBES + 1):
            breaker.probed(True, now)
        breaker.fail(GOOD_PROBES + after)
        assert breaker.trips == trips


# Of each status: the kind of member failure, None for the request's own; and whether a signature may exist although it
# is raised and names no call.
STATUSES = {
    "OK": (None, False),
    "BUSY": ("busy", False),
    "OPERATION_STATE": ("session", False),
    "SESSION_LOST": ("session", False),
    "NOT_LOGGED_IN": ("session", False),
    "KEY_HANDLE_STALE": ("session", False),
    "TOKEN_LOST": ("down", False),
    "MODULE_NOT_INITIALIZED": ("session", False),
    "PIN_INCORRECT": ("auth", False),
    "PIN_LOCKED": ("auth", False),
    "LOGIN_REFUSED": ("auth", False),
    "ACCESS_DENIED": ("access", False),
    "MESSAGE_REJECTED": (None, False),
    "MECHANISM_UNSUPPORTED": ("key", False),
    "KEY_UNUSABLE": ("unusable", False),
    "REQUEST_REJECTED": (None, False),
    "MODULE_FATAL": ("fatal", False),
    "CKR_UNKNOWN": ("down", False),
    "SIGNATURE_MALFORMED": ("wrong", True),
    "SIGNATURE_INVALID": ("wrong", True),
    "MODULE_MISSING": (None, False),
    "MODULE_INVALID": (None, False),
    "HOST_MISSING": (None, False),
    "HOST_MISMATCH": (None, False),
    "HOST_LOST": ("down", True),
    "TOKEN_NOT_FOUND": ("down", False),
    "TOKEN_AMBIGUOUS": (None, False),
    "KEY_NOT_FOUND": ("key", False),
    "KEY_AMBIGUOUS": (None, False),
    "KEY_MISMATCH": ("key", False),
    "KEY_DEACTIVATED": (None, False),
    "KEY_NOT_CURRENT": (None, False),
    "PUBLIC_KEY_MISSING": (None, False),
    "ALGORITHM_UNSUPPORTED": (None, False),
    "MESSAGE_TOO_LARGE": (None, False),
    "QUEUE_FULL": (None, False),
    "DEADLINE_EXCEEDED": ("late", True),
    "CANCELLED": (None, True),
    "CLOSED": (None, False),
    "FORKED": (None, False),
    "BAD_ARGUMENT": (None, False),
    "POLICY_REFUSED": (None, False),
    "DOUBLE_SIGN": (None, False),
    "NOT_HOLDER": (None, False),
    "FLEET_BEHIND": (None, False),
    "OUT_OF_MEMORY": (None, False),
    "SYSTEM": (None, False),
}


@pytest.mark.parametrize("status", EXCEPTION_OF_STATUS)
def test_every_status_says_what_failed_and_whether_a_signature_may_exist(status):
    error = error_of(status)
    assert (kind_of(error), error.maybe_signed) == STATUSES[status]
    assert error.maybe_signed or error_of(status, call="C_Sign").maybe_signed == (
        error.error_class not in ("RETRY", "REQUEST_FATAL")
    )


def test_the_rules_are_those_that_are_documented():
    said = {}
    for line in (ROOT / "docs" / "FAILOVER.md").read_text().splitlines():
        if (cells := [cell.strip() for cell in line.split("|")[1:-1]]) and len(cells) == 4 and cells[2][:1].isdigit():
            for kind in re.findall(r"`(\w+)`", cells[0]):
                said[kind] = int(re.match(r"\d+", cells[2])[0]), "probes" in cells[3]
    assert said == {kind: (rule.threshold, rule.probed) for kind, rule in RULES.items()}


def test_what_is_withheld_is_the_fault_of_no_member_and_leaves_it_open_whether_it_was_signed():
    for kind in (AuditUnavailable, NotHolder):
        assert kind in WITHHELD
        assert kind_of(kind("withheld")) is None
    assert EngineClosed in WITHHELD
    assert kind_of(QueueFull("full")) is None


def test_what_failed_before_it_signed_left_no_signature():
    for call in ("C_SignInit", "C_OpenSession", ""):
        assert not error_of("TOKEN_LOST", call=call).maybe_signed
    assert error_of("TOKEN_LOST", call="C_Sign").maybe_signed
    assert not error_of("BUSY", call="C_Sign").maybe_signed
    told = error_of("TOKEN_LOST", call="kms:Sign")
    assert not told.maybe_signed
    told.maybe_signed = True  # the member knows
    assert copy.copy(told).maybe_signed
