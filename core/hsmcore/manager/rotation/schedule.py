"""The dates of rotations: arithmetic on dates and time zones, without clocks and without I/O.

A rotation falls on a *slot*: a date, `rotationTime` and `timeZone`. Where the clocks skip that time, or show it twice,
the rule of RFC 5545 section 3.3.5 holds: a skipped time is read with the offset before the gap, of a repeated one the
first is meant. A zone that leaves out a whole date has one slot for both dates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from hsmcore.config import KeyRotation

SECOND: Final = 1_000_000_000
ON_TIME: Final = timedelta(hours=1)
"""A rotation that begins at most this long after its slot counts as on time: the next one is counted from the slot, so
the time of day does not drift. A later one is counted from its beginning."""
_DAY: Final = timedelta(days=1)
_FIRST_RETRY: Final = timedelta(minutes=1)
_LAST_RETRY: Final = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Schedule:
    """`intervalDays`, `overlapDays`, `rotationTime`, `timeZone`. All moments are aware datetimes in UTC."""

    interval_days: int
    overlap_days: int
    time_of_day: time
    zone: tzinfo

    @classmethod
    def of(cls, rules: KeyRotation) -> Self:
        """Return the schedule of a configuration."""
        return cls(rules.interval_days, rules.overlap_days, rules.time_of_day, rules.zone)

    def slot(self, day: date) -> datetime:
        """Return the moment of the slot of a date."""
        return datetime.combine(day, self.time_of_day, self.zone).astimezone(UTC)

    def day_of(self, moment: datetime) -> date:
        """Return the last date whose slot is `moment`; else the first date whose slot comes after it."""
        day = moment.astimezone(self.zone).date() - 2 * _DAY
        while self.slot(day) < moment:
            day += _DAY
        while self.slot(day + _DAY) == moment:
            day += _DAY
        return day

    def due(self, base: datetime) -> datetime:
        """Return the moment of the next rotation of a key whose interval counts from `base`."""
        return self.slot(self.day_of(base) + self.interval_days * _DAY)

    def due_ns(self, base_ns: int) -> int:
        """As `due`, in Unix nanoseconds."""
        return nanoseconds(self.due(moment(base_ns)))

    def base(self, slot: datetime | None, began: datetime) -> datetime:
        """Return the moment from which a key's interval counts, for a rotation that began at `began`, for `slot` or
        (None) by hand."""
        return slot if slot is not None and began - slot <= ON_TIME else began

    def overlap_ends(self, activated: datetime) -> datetime:
        """Return the end of the old key's verification: the same time of day, `overlapDays` dates later."""
        local = activated.astimezone(self.zone)
        ends = datetime.combine(local.date() + self.overlap_days * _DAY, local.time(), self.zone)
        return ends.astimezone(UTC)

    def overlap_ends_ns(self, activated_ns: int) -> int:
        """As `overlap_ends`, in Unix nanoseconds."""
        return nanoseconds(self.overlap_ends(moment(activated_ns)))

    def calendar(self, base: datetime, now: datetime) -> Iterator[datetime]:
        """Yield the coming rotations without end, if each is on time. One that is overdue happens now."""
        slot = self.due(base)
        due = max(slot, now)
        while True:
            yield due
            slot = due = self.due(self.base(slot, due))

    def plan(self, base_ns: int, now_ns: int, count: int) -> list[dict[str, Any]]:
        """Return the coming rotations of a key whose interval counts from `base_ns`, as data for JSON: when each
        begins, and until when the replaced key verifies."""
        return [
            {
                "at": when.isoformat(),
                "local": when.astimezone(self.zone).isoformat(),
                "oldKeyVerifiesUntil": self.overlap_ends(when).isoformat(),
            }
            for when in islice(self.calendar(moment(base_ns), moment(now_ns)), count)
        ]


def retry_at(ended: datetime, failures: int) -> datetime:
    """Return the moment of the next attempt after `failures` failed rotations in a row, the last of which ended at
    `ended`."""
    return ended + min(_FIRST_RETRY * (1 << min(failures - 1, 16)), _LAST_RETRY)


def moment(nanoseconds: int) -> datetime:
    """Return Unix nanoseconds as a moment, to the microsecond."""
    seconds, rest = divmod(nanoseconds, SECOND)
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=rest // 1000)


def nanoseconds(when: datetime) -> int:
    """Return a moment as Unix nanoseconds."""
    since = when - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * SECOND + since.microseconds * 1000
