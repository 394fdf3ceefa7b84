"""When keys are rotated: ten years in two dozen time zones, whatever is late, down or shifted."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.size import share

from hsmcore.manager.rotation.schedule import ON_TIME, Schedule, retry_at

ZONES = (
    "UTC", "Europe/Zurich", "Europe/London", "Europe/Dublin", "America/New_York", "America/Los_Angeles",
    "America/Sao_Paulo", "America/St_Johns", "America/Santiago", "America/Havana", "America/Asuncion", "Africa/Cairo",
    "Africa/Casablanca", "Asia/Kathmandu", "Asia/Kolkata", "Asia/Tehran", "Asia/Gaza", "Asia/Beirut", "Asia/Tokyo",
    "Australia/Lord_Howe", "Australia/Adelaide", "Pacific/Apia", "Pacific/Chatham", "Antarctica/Troll",
)  # fmt: skip
DAY = timedelta(days=1)
BEGIN = datetime(2010, 1, 1, tzinfo=UTC)  # Apia leaves out 2011-12-30
TIMES = st.times().map(lambda t: t.replace(microsecond=0)) | st.sampled_from(
    [time(0), time(0, 30), time(1, 30), time(2), time(2, 30), time(3), time(23, 59, 59)]
)


def schedule(zone="UTC", at=time(0), interval=30, overlap=2):
    return Schedule(interval, overlap, at, ZoneInfo(zone))


def shows(plan, when):
    """Whether a clock in the zone shows the time of rotation at that moment."""
    return when.astimezone(plan.zone).time().replace(tzinfo=None) == plan.time_of_day


def expected(plan, first):
    """Dates, counted one by one."""
    day = first.astimezone(plan.zone).date()
    while True:
        day += plan.interval_days * DAY
        if plan.slot(day + DAY) == plan.slot(day):
            day += DAY  # the zone leaves this date out
        if plan.slot(day) >= BEGIN + 3652 * DAY:
            return
        yield plan.slot(day)


@pytest.mark.parametrize("zone", ZONES)
def test_ten_years_without_a_rotation_missed_doubled_or_early(zone):
    for interval, at in ((1, time(2, 30)), (7, time(0)), (30, time(23, 59, 59))):
        plan = schedule(zone, at, interval)
        first = plan.slot(plan.day_of(BEGIN))
        rotations = list(itertools.takewhile(lambda t: t < BEGIN + 3652 * DAY, plan.calendar(first, first)))
        assert rotations == list(expected(plan, first))
        skipped = [when for when in rotations if not shows(plan, when)]
        assert len(skipped) <= 22, "only where the clocks leave the time out"


@settings(max_examples=share(200))
@given(
    zone=st.sampled_from(ZONES),
    at=TIMES,
    interval=st.integers(1, 90),
    delays=st.lists(st.integers(0, 40 * 86400) | st.integers(0, 4000), min_size=1, max_size=60),
)
def test_a_machine_that_was_down_rotates_once_and_counts_on(zone, at, interval, delays):
    plan = schedule(zone, at, interval)
    base = BEGIN
    for delay in delays:
        due = plan.due(base)
        assert due > base
        assert due - base > (interval - 1) * DAY + DAY - timedelta(hours=26), "a zone that leaves a date out, at worst"
        assert due - base < (interval + 1) * DAY + timedelta(hours=26)
        if zone != "Pacific/Apia":
            assert due - base >= interval * DAY - timedelta(hours=2), "early by more than a change of the clocks"
        began = due + timedelta(seconds=delay)
        assert plan.base(due, began) == (due if began - due <= ON_TIME else began)
        base = plan.base(due, began)


@given(zone=st.sampled_from(ZONES), at=TIMES, day=st.dates(date(2010, 1, 1), date(2030, 1, 1)))
@example(zone="Pacific/Apia", at=time(0), day=date(2011, 12, 30))
def test_slots_go_up_with_the_dates_and_lead_back_to_them(zone, at, day):
    plan = schedule(zone, at)
    assert plan.slot(day) <= plan.slot(day + DAY)
    assert plan.slot(plan.day_of(plan.slot(day))) == plan.slot(day)
    between = plan.slot(day) + timedelta(seconds=1)
    if between < plan.slot(day + DAY):
        assert plan.day_of(between) == plan.day_of(plan.slot(day + DAY))


def test_a_time_that_the_clocks_skip_or_repeat():
    plan = schedule("Europe/Zurich", time(2, 30), 1)
    assert plan.slot(date(2026, 3, 29)) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # 03:30 there
    assert plan.slot(date(2026, 10, 25)) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # the first 02:30
    assert plan.due(datetime(2026, 3, 29, 1, 30, tzinfo=UTC)) == datetime(2026, 3, 30, 0, 30, tzinfo=UTC)
    assert plan.due(datetime(2026, 10, 25, 0, 30, tzinfo=UTC)) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


@given(zone=st.sampled_from(ZONES), overlap=st.integers(0, 60), offset=st.integers(0, 10 * 365 * 86400))
def test_an_overlap_lasts_so_many_dates(zone, overlap, offset):
    began = BEGIN + timedelta(seconds=offset)
    plan = schedule(zone, overlap=overlap)
    ends = plan.overlap_ends(began)
    if overlap:
        assert abs(ends - began - overlap * DAY) <= timedelta(hours=26 if zone == "Pacific/Apia" else 2)
    else:
        assert abs(ends - began) <= timedelta(hours=2)


def test_an_overdue_rotation_stands_first_in_the_calendar():
    plan = schedule(interval=30)
    now = BEGIN + 100 * DAY + timedelta(hours=5)
    first, second = itertools.islice(plan.calendar(BEGIN, now), 2)
    assert first == now
    assert second == BEGIN + 131 * DAY


def test_retries_come_later_each_time_and_at_least_every_six_hours():
    waits = [retry_at(BEGIN, n) - BEGIN for n in range(1, 40)]
    assert waits[:3] == [timedelta(minutes=1), timedelta(minutes=2), timedelta(minutes=4)]
    assert waits == sorted(waits)
    assert waits[-1] == timedelta(hours=6)


def test_an_interval_counts_from_its_slot_unless_the_rotation_was_late_or_by_hand():
    plan, late = schedule(), BEGIN + ON_TIME
    assert plan.base(BEGIN, late) == BEGIN
    assert plan.base(BEGIN, late + timedelta(microseconds=1)) == late + timedelta(microseconds=1)
    assert plan.base(None, late) == late
