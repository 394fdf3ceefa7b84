"""The sweep: a device signs with 1, 2, 4, … sessions until more of them add nothing, then with some around the knee.

Each point is measured in several passes, in another order each time, so that a slow second of a shared machine meets
different points; medians count, and points whose visits differ get more of them. Each visit opens the member with so
many sessions and closes it again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from time import perf_counter_ns
from typing import Final

from hsmcore.errors import HsmError, LoginError
from hsmcore.failover.health import PROBE_PREFIX
from hsmcore.members import Member
from hsmcore.members.base import SIGN_SECONDS
from hsmcore.members.snapshot import added, quantile
from hsmcore_bench.tune.knee import bracket, knee

PASSES: Final = 3
CLIMBS: Final = 2
AROUND: Final = 3
"""Points between the neighbours of the knee."""
PATIENCE: Final = 2
DISTURBED: Final = 0.1
"""A point whose visits lie farther from their median, relative to it, gets PATIENCE times as many."""
FLAT: Final = 1.05
"""A doubling of the sessions that multiplies the rate by less adds nothing."""
VISIT_SIGNATURES: Final = 5_000
"""The most signatures of one visit."""
LEAST: Final = 8
"""The fewest signatures that a rate is taken from."""
AHEAD_SECONDS: Final = 0.004
"""The work that waits in the engine: twice the age at which it delivers answers (`wakeCoalesceMicros`)."""
MOST_CALLERS: Final = 512
MESSAGE_BYTES: Final = 48
"""As long as the engine's own test messages, so a reading of a YubiHSM's log counts them as such."""

Opened = Callable[[int], Member]
"""Returns the member with so many sessions; nothing of it is started."""


def probe_message() -> bytes:
    """Return a message that is no transaction (see PROBE_PREFIX), new each time, so that no cache answers it."""
    return PROBE_PREFIX + secrets.token_bytes(MESSAGE_BYTES - len(PROBE_PREFIX))


@dataclass(frozen=True, slots=True)
class Visit:
    """One stretch of signing with so many sessions."""

    rate: float  # a second
    hsm_ns: tuple[tuple[int, int], ...]
    """How long the calls took in the module; see Engine.stats."""
    signatures: int


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured with so many sessions: the median of the visits, and times in the module."""

    sessions: int
    rate: float  # a second
    low: float
    high: float
    p50_ns: int
    p99_ns: int

    @property
    def spread(self) -> float:
        """The largest distance of a visit's rate from the median, relative to it."""
        return max(self.high - self.rate, self.rate - self.low) / self.rate


@dataclass(frozen=True, slots=True)
class Found:
    """The result for one member."""

    knee: int
    points: tuple[Point, ...]  # ascending; the knee is one of them
    signatures: int
    growing: bool
    """Whether the rate still grew at the most sessions, so that the knee may lie beyond."""
    stopped: str | None
    """The error that ended the climb; None: nothing failed."""

    @property
    def best(self) -> float:
        return max(point.rate for point in self.points)

    @property
    def at_knee(self) -> Point:
        return next(point for point in self.points if point.sessions == self.knee)

    @property
    def above(self) -> Point | None:
        """The next larger point."""
        return next((point for point in self.points if point.sessions > self.knee), None)


Report = Callable[[int, int, str], None]
"""Called with the visits done, those expected, and what is measured now."""


def visits_at_most(most: int) -> int:
    """Return how many visits a sweep up to so many sessions makes at most."""
    doublings = (most - 1).bit_length() + 1
    return PATIENCE * PASSES * (doublings + CLIMBS * (AROUND + 1) + 1)


@dataclass
class Sweep:
    """One member's sweep, up to `most` sessions, `seconds` for each point."""

    opened: Opened
    most: int
    seconds: float
    report: Report = lambda _done, _total, _doing: None
    visits: dict[int, list[Visit]] = field(default_factory=dict)
    stopped: str | None = None
    signatures: int = 0
    _done: int = 0
    _dice: random.Random = field(default_factory=lambda: random.Random(1))

    async def run(self) -> Found:
        """Measure. Raises HsmError; leaves nothing open."""
        for _ in range(CLIMBS):  # a disturbed point may have ended the first one too early
            await self._climb()
            await self._repeat(self._around(), 1)
            await self._repeat({*self.visits, knee(self._rates())}, PASSES)
            if not self._grows():
                break
        found = knee(self._rates())
        await self._repeat({found}, PASSES)
        growing = len(self.visits) > 1 and self._grows()
        return Found(found, self._points(), self.signatures, growing, self.stopped)

    async def _climb(self) -> None:
        """Double the sessions until that adds nothing."""
        sessions = max(self.visits, default=0)
        while sessions < self.most and self._grows():
            sessions = min(max(2 * sessions, 1), self.most)
            try:
                await self._visit(sessions)
            except LoginError:
                raise
            except HsmError as error:
                if not self.visits:
                    raise
                self.most, self.stopped = max(self.visits), f"{sessions} sessions: {error}"

    def _grows(self) -> bool:
        """Whether the rate still grew with the last doubling."""
        rates = self._rates()
        most = max(rates, default=0)
        before = [rate for sessions, rate in rates.items() if 2 * sessions <= most]
        return not before or rates[most] >= FLAT * max(before)

    def _around(self) -> set[int]:
        """Points between the neighbours of the knee."""
        left, right = bracket(self._rates())
        return {left + (right - left) * part // (AROUND + 1) for part in range(1, AROUND + 1)} - {0}

    async def _repeat(self, points: set[int], passes: int) -> None:
        """Visit each of the points until it has so many passes, in another order each time."""
        while missing := sorted(k for k in points if k <= self.most and self._lacks(k, passes)):
            for sessions in self._dice.sample(missing, len(missing)):
                await self._visit(sessions)

    def _lacks(self, sessions: int, passes: int) -> bool:
        """Whether a point needs another visit: more of them where they differ, by whatever disturbed them."""
        visits = self.visits.get(sessions, [])
        if len(visits) < passes:
            return True
        return len(visits) < PATIENCE * passes and _point(sessions, visits).spread > DISTURBED

    async def _visit(self, sessions: int) -> None:
        expected = max(PASSES * (len(self.visits) + AROUND), self._done + 1)
        self.report(self._done, expected, f"{sessions} session{'s' * (sessions > 1)}")
        member = self.opened(sessions)
        try:
            member.require_ready()
            version = await member.start()
            workers = int(member.engine.stats()["workers"])
            if workers < sessions:  # its module bears no more
                self.most = sessions = workers
            signing = _Signing(member, version.index, sessions, self.seconds / PASSES)
            try:
                self.visits.setdefault(sessions, []).append(await signing.run())
            finally:
                self.signatures += signing.begun
        finally:
            await member.stop()
        self._done += 1

    def _rates(self) -> dict[int, float]:
        return {sessions: median(visit.rate for visit in visits) for sessions, visits in self.visits.items()}

    def _points(self) -> tuple[Point, ...]:
        return tuple(_point(sessions, visits) for sessions, visits in sorted(self.visits.items()))


def _point(sessions: int, visits: list[Visit]) -> Point:
    rates = [visit.rate for visit in visits]
    rows = Counter[int]()
    for visit in visits:
        rows.update(dict(visit.hsm_ns))
    times = sorted(rows.items())
    return Point(sessions, median(rates), min(rates), max(rates), quantile(times, 500), quantile(times, 990))


class _Signing:
    """Callers that keep all sessions busy. The rate is taken between two moments at which each session has, on average,
    made a whole number of signatures: a device that answers all sessions at once falsifies it otherwise."""

    def __init__(self, member: Member, key: int, sessions: int, seconds: float) -> None:
        self._engine, self._key, self._sessions, self._seconds = member.engine, key, sessions, seconds
        self._group = asyncio.TaskGroup()
        self.begun = 0
        """Requests so far."""
        self._ended = 0
        self._over = False
        self._start_ns = self._from_ns = self._to_ns = perf_counter_ns()
        self._from = self._to = 0
        """Signatures at these times; 0: the device is not warm yet."""
        self._before: dict[int, int] = {}

    async def run(self) -> Visit:
        """Sign. Raises HsmError."""
        failed: HsmError | None = None
        try:
            async with self._group:
                self._add(2 * self._sessions)
        except* HsmError as failures:
            failed = _first(failures)
        if failed is not None:
            raise failed
        rate = (self._to - self._from) / (self._to_ns - self._from_ns) * 1e9
        times = added(self._before, dict(self._engine.stats()["hsm_ns"]))
        return Visit(rate, tuple(row for row in times if row[1]), self.begun)

    def _add(self, callers: int) -> None:
        for _ in range(callers):
            self._group.create_task(self._call())

    async def _call(self) -> None:
        while not self._over and self.begun < VISIT_SIGNATURES:
            self.begun += 1
            signed = self._engine.submit(probe_message(), SIGN_SECONDS, self._key, b"")
            if not isinstance(signed, bytes):
                try:
                    await signed
                except asyncio.CancelledError:
                    self._engine.abandon(signed)
                    raise
            self._ended += 1
            if self._ended % self._sessions == 0:
                self._round(perf_counter_ns())

    def _round(self, now_ns: int) -> None:
        """Each session has made one more signature, on average."""
        if self._from:
            self._to, self._to_ns = self._ended, now_ns
            long = now_ns - self._from_ns >= self._seconds * 1e9
            self._over = long and self._to - self._from >= max(LEAST, 2 * self._sessions)
        elif self._ended >= 2 * self._sessions:
            self._from = self._to = self._ended
            self._from_ns = self._to_ns = now_ns
            self._before = dict(self._engine.stats()["hsm_ns"])
            rate = self._ended / (now_ns - self._start_ns) * 1e9
            self._add(min(self._sessions + ceil(rate * AHEAD_SECONDS), MOST_CALLERS) - 2 * self._sessions)


def _first(failures: BaseExceptionGroup[HsmError]) -> HsmError:
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, HsmError)
    return error
