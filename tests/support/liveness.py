"""The liveness oracle: no request fails that a healthy key and session could have signed before its deadline.

A request fails *without need* if its failure is not its own, and the answers to the other requests of the same run show
that it could have been signed in time:

own         Its message is one that the module always refuses, or its key is destroyed; its caller has left; or the
            module said that the request is at fault or that the process is (REQUEST_FATAL, PROCESS_FATAL).
given up    It failed while at least MARGIN of its time was left, and after that, MARGIN before its deadline, another
            request for the same key was signed. The session that signed it was healthy and free then. It may fail
            where nothing was signed for OUTAGE before: then the member is down, and says so at once for the sake of the
            members beside it.
overtaken   Its deadline passed, and ROOM before that a request was signed which was asked for later, for the same key.
            Requests are served in the order of their arrival, so it had been served for as long, in vain. A call that
            hangs beyond the deadline of its request excuses one such request: no session can take it over.
turned away Admission control refused it (QUEUE_FULL), though it would have been in time at half the rate of the last
            RECENT signatures, and at half of that of the next ones.

What no request shows counts as nothing: while everything fails, the module may be unable to sign. A run therefore ends
with a request that must succeed, after all faults are gone. Other keys are no witnesses: a key has faults of its own.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from hsmcore.errors.statuses import STATUSES

MARGIN = 0.02
"""Time that a free session needs for a request, in seconds, on a busy machine."""
ROOM = 0.5
"""Time in which a request that is served meets a session that signs, however often the sessions have to be mended."""
RECENT = 128
"""Answers that the measurement of admission control goes back to: a few of its windows."""
OUTAGE = 0.04
"""Time without a signature after which a member may be down, in seconds."""
OWN_CLASSES = frozenset({"REQUEST_FATAL", "PROCESS_FATAL"})


@dataclass(slots=True, eq=False)
class Asked:
    """A request. Times are monotonic, in seconds."""

    key: Hashable
    begun: float
    deadline: float
    ended: float = 0.0
    status: str = ""
    """"" while there is no answer, "OK", or the status of the error."""
    ahead: int = 0
    """Requests that had no answer yet when it was asked for."""
    own: bool = False
    """Its failure is its own: its message is refused, or its key is gone."""


class Liveness:
    """The requests of one run."""

    def __init__(self) -> None:
        self._asked: list[Asked] = []
        self._open = 0

    def ask(self, key: Hashable, now: float, timeout: float, *, own: bool = False) -> Asked:
        """A request is about to be made."""
        asked = Asked(key, now, now + timeout, ahead=self._open, own=own)
        self._asked.append(asked)
        self._open += 1
        return asked

    def end(self, asked: Asked, now: float, status: str = "OK") -> None:
        """It has its answer; CANCELLED: its caller has left."""
        asked.ended, asked.status = now, status
        self._open -= 1

    def without_need(
        self, hangs: Iterable[tuple[float, float]] = (), kills: Sequence[float] = (), ends: int = 0
    ) -> dict[str, list[Asked]]:
        """The requests that failed without need, by the kind of it. `hangs`: begin and end of each call that hung;
        `kills`: when host processes were killed; `ends`: how many threads the module ended, each with its request."""
        signed: defaultdict[Hashable, list[Asked]] = defaultdict(list)
        for asked in sorted(self._asked, key=lambda asked: asked.ended):
            if asked.status == "OK":
                signed[asked.key].append(asked)
        every = sorted(asked.ended for asked in self._asked if asked.status == "OK")
        hung = list(hangs)
        found: defaultdict[str, list[Asked]] = defaultdict(list)
        for asked in self._asked:
            if asked.own or asked.status in ("", "OK", "CANCELLED") or STATUSES[asked.status].class_ in OWN_CLASSES:
                continue
            if asked.status == "HOST_LOST" and sum(asked.begun <= kill <= asked.ended for kill in kills) >= 2:
                continue
            kind = _judge(asked, signed[asked.key], every)
            if kind == "overtaken" and (excuse := next((h for h in hung if h[0] <= asked.deadline <= h[1]), None)):
                hung.remove(excuse)
            elif kind == "given up" and asked.status == "TOKEN_LOST" and ends > 0:
                ends -= 1
            elif kind:
                found[kind].append(asked)
        return dict(found)

    def describe(self, found: dict[str, list[Asked]]) -> str:
        """The first of each kind, and their statuses."""
        begin = self._asked[0].begun if self._asked else 0.0
        parts = []
        for kind, several in found.items():
            first, statuses = several[0], dict(Counter(asked.status for asked in several))
            times = [f"{when - begin:.3f}" for when in (first.begun, first.ended, first.deadline)]
            parts.append(
                f"{len(several)} {kind} {statuses}: the first, for key {first.key}, asked for at {times[0]} s, failed "
                f"at {times[1]} s, deadline {times[2]} s"
            )
        return "; ".join(parts)


def _judge(asked: Asked, signed: list[Asked], every: list[float]) -> str:
    """The kind of need that was missing; "": there was need. `signed` are those of its key, in order of their end."""
    if asked.status == "QUEUE_FULL":
        now, limit = bisect.bisect(every, asked.begun), asked.deadline - MARGIN
        recent = every[max(now - RECENT, 0) : now]
        each = (recent[-1] - recent[0]) / len(recent) if recent else 0.0
        was_slow = 2 * (asked.ahead + 1) * each > limit - asked.begun
        return "" if was_slow or bisect.bisect(every, limit) - now < 2 * (asked.ahead + 1) else "turned away"
    if asked.ended < asked.deadline - MARGIN:
        last = bisect.bisect_right(every, asked.ended)
        # An answer reaches its caller up to MARGIN after its signature, from which the member counts.
        if last and asked.ended - every[last - 1] > OUTAGE - MARGIN:
            return ""
        later = bisect.bisect_right(signed, asked.ended, key=lambda other: other.ended)
        return "given up" if later < len(signed) and signed[later].ended <= asked.deadline - MARGIN else ""
    early = bisect.bisect(signed, asked.deadline - ROOM, key=lambda other: other.ended)
    return "overtaken" if any(other.begun > asked.begun for other in signed[:early]) else ""
