"""The state that every page shows, read once a second however many pages are open, and seldom while none is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from hsmcore.audit.layout import Layout
from hsmcore.base.scope import Scope
from hsmcore.base.waiting import shielded
from hsmcore.serve import trail
from hsmcore.serve.checks import HealthCheck, checks
from hsmcore.serve.feed import Feed, Watcher
from hsmcore.serve.questions import Questions
from hsmcore.serve.series import Series, not_signed
from hsmcore.serve.source import Unanswered

LOOK_SECONDS: Final = 1.0
REST_SECONDS: Final = 15.0
"""Between two looks while nobody watches: a page that is opened has charts of what was before."""
FRESH_SECONDS: Final = 0.5
"""A health check reads a state older than this again."""
ALIVE_SECONDS: Final = 10.0
"""A key manager is not alive if its event loop has not answered for this long."""
PATIENCE_SECONDS: Final = 0.5
"""How long a check of life waits for an answer."""
_VIEW_SECONDS: Final = 2.0
"""Allowed age of the state store's part."""


class Monitor:
    """For the server's event loop."""

    def __init__(self, questions: Questions, version: str, layout: Layout | None, *, beside: bool) -> None:
        """`layout`: where the audit log is. `beside`: see Source."""
        self.questions, self.layout, self._beside = questions, layout, beside
        self.feed = Feed()
        self.version = version
        self._store_problem = ""
        self._last_event = 0
        self._looking = asyncio.Lock()
        self._state: dict[str, Any] = {}
        self._view: dict[str, Any] = {}
        self._series: dict[str, Series] = {}
        self._problem = "not asked yet"
        self._looked = self._viewed = float("-inf")
        self._heard = time.monotonic()
        """Of the last answer, or of the first question after it."""
        self.loop = asyncio.get_running_loop()
        self._newest = 0
        self._scope, self._wake = Scope(), asyncio.Event()

    def begin(self) -> None:
        """Follow the key manager, and look every LOOK_SECONDS while somebody watches, until `close`."""
        self.questions.tell = self.told
        self._scope.every(LOOK_SECONDS, self.look, "the console could not look", wake=self._wake)

    async def watch(self, after: str, viewer: str | None) -> Watcher:
        """As Feed.watch, and return when there is a state to show. Raises Full."""
        watcher = self.feed.watch(after, viewer)
        self._wake.set()
        try:
            await self.fresh()
        except BaseException:
            self.feed.forget(watcher)
            raise
        return watcher

    async def close(self) -> None:
        """End that. Idempotent."""
        await self._scope.close()

    def told(self, event: Mapping[str, Any]) -> None:
        """Publish an event of the key manager. Its `monotonicNs` is of the clock that all processes have."""
        at_ns = time.time_ns() - time.monotonic_ns() + event["monotonicNs"]
        self.feed.tell("happened", {"timeNs": at_ns, **{key: event[key] for key in event.keys() - {"monotonicNs"}}})

    async def look(self) -> float | None:
        """Read the whole state and show it to all watchers. Returns the pause: a long one while nobody watches, unless
        the key manager's event loop does not answer, for `alive`."""
        watched = len(self.feed) > 0 or (self._beside and self._looked > self._heard)
        async with self._looking:
            await self._read(store=watched)
        if not watched:  # who has come meanwhile has set `_wake`
            return None if self._problem else REST_SECONDS
        with suppress(Unanswered):
            for row in await self.questions.learn("events", self._last_event):
                if row["id"] > self._last_event:
                    self._last_event = row["id"]
                    self.feed.tell("happened", _event(row))
        self.feed.show("state", self.state())
        layout = self.layout
        if layout is not None and len(self.feed):
            records = await asyncio.to_thread(trail.tail, layout)
            newest = records[-1]["seq"] if records else 0
            if newest != self._newest:
                self._newest = newest
                self.feed.show("records", {"records": records})
        return None

    async def fresh(self) -> None:
        """Return when the state is not older than FRESH_SECONDS."""
        if time.monotonic() - self._looked > FRESH_SECONDS:
            async with self._looking:
                if time.monotonic() - self._looked > FRESH_SECONDS:
                    await self._read()
                    if self._problem:
                        self._wake.set()

    async def _read(self, *, store: bool = True) -> None:
        views = store and time.monotonic() - self._viewed >= _VIEW_SECONDS
        if not self._problem:
            self._heard = time.monotonic()
        try:
            found = await self.questions.learn("look", views)
        except Unanswered as error:
            found = {"problem": str(error), "view": None}
        self._looked = time.monotonic()
        self._problem = found["problem"]
        if not self._problem:
            self._state, self._heard = found["state"], self._looked
            self._measure()
        if found["view"] is not None:
            self._view, self._store_problem, self._viewed = found["view"], found["storeProblem"], self._looked

    def _measure(self) -> None:
        stats = self._state.pop("stats")
        known = {member["member"]: member for member in self._state["members"]}
        for name in self._series.keys() - known.keys():
            del self._series[name]
        for name, member in known.items():
            own = stats.get(name)
            point = self._series.setdefault(name, Series()).add(self._state["atNs"], own)
            counted = {**{key: own[key] for key in _COUNTED}, "failures": not_signed(own)} if own is not None else {}
            member |= {"now": point, "counters": counted}

    def forget_view(self) -> None:
        """Read the state store at the next look: it was changed."""
        self._viewed = float("-inf")

    async def alive(self) -> bool:
        """Return whether the key manager's event loop answers, or has not for less than ALIVE_SECONDS."""
        if not self._beside:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await shielded(self.fresh())
        return time.monotonic() - self._heard < ALIVE_SECONDS

    def checks(self) -> list[HealthCheck]:
        """Return the checks of the present state."""
        return checks(self._state, self._view, self._problem, self._store_problem, time.time_ns())

    def state(self) -> dict[str, Any]:
        """Return the whole state, ready for JSON."""
        return {
            "version": self.version,
            "atNs": time.time_ns(),
            "problem": self._problem,
            **{name: value for name, value in self._state.items() if name != "atNs"},
            **self._view,
            "checks": [check.to_json() for check in self.checks()],
            "watchers": len(self.feed),
        }

    def series(self) -> dict[str, Any]:
        """Return the points of the charts, by member."""
        return {"series": {name: list(series.points) for name, series in self._series.items()}}


_COUNTED: Final = ("signatures", "cancelled", "wrong", "workers", "busy", "stuck", "queued")


def _event(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "timeNs": row["time_ns"],
        "kind": row["kind"],
        "from_level": row["level_from"],
        "to_level": row["level_to"],
        "member": row["member"],
        "reason": row["reason"],
    }
