"""The state that every page shows, read once a second however many pages are open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from hsmcore.audit.layout import Layout
from hsmcore.base.scope import Scope
from hsmcore.serve import trail
from hsmcore.serve.checks import HealthCheck, checks
from hsmcore.serve.feed import Feed
from hsmcore.serve.questions import Questions
from hsmcore.serve.series import Series, not_signed
from hsmcore.serve.source import Unanswered

LOOK_SECONDS: Final = 1.0
FRESH_SECONDS: Final = 0.5
"""A health check reads a state older than this again."""
ALIVE_SECONDS: Final = 10.0
"""A key manager is not alive if its event loop has not answered for this long."""
_IDLE_SECONDS: Final = 10.0
_ASKED_SECONDS: Final = 2.0


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
        self._looked = self._answered = self._viewed = float("-inf")
        self._begun = time.monotonic()
        self.loop = asyncio.get_running_loop()
        self._newest = 0
        self._scope = Scope()

    def begin(self) -> None:
        """Follow the key manager, and look every LOOK_SECONDS, until `close`."""
        self.questions.tell = self.told
        self._scope.every(LOOK_SECONDS, self.look, "the console could not look")

    async def close(self) -> None:
        """End that. Idempotent."""
        await self._scope.close()

    def told(self, event: Mapping[str, Any]) -> None:
        """Publish an event of the key manager. Its `monotonicNs` is of the clock that all processes have."""
        at_ns = time.time_ns() - time.monotonic_ns() + event["monotonicNs"]
        self.feed.tell("happened", {"timeNs": at_ns, **{key: event[key] for key in event.keys() - {"monotonicNs"}}})

    async def look(self) -> None:
        """Read the whole state and show it to all watchers."""
        async with self._looking:
            await self._read(_ASKED_SECONDS if len(self.feed) else _IDLE_SECONDS)
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

    async def fresh(self) -> None:
        """Return when the state is not older than FRESH_SECONDS."""
        if time.monotonic() - self._looked > FRESH_SECONDS:
            async with self._looking:
                if time.monotonic() - self._looked > FRESH_SECONDS:
                    await self._read(_ASKED_SECONDS)

    async def _read(self, patience: float) -> None:
        """`patience`: allowed age of the state store's part in seconds."""
        views = time.monotonic() - self._viewed >= patience
        try:
            found = await self.questions.learn("look", views)
        except Unanswered as error:
            found = {"problem": str(error), "view": None}
        self._looked = time.monotonic()
        self._problem = found["problem"]
        if not self._problem:
            self._state, self._answered = found["state"], self._looked
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

    @property
    def alive(self) -> bool:
        """Return whether the key manager's event loop has answered lately."""
        return not self._beside or time.monotonic() - max(self._answered, self._begun) < ALIVE_SECONDS

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
