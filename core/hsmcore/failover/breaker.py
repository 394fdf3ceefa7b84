"""The circuit breaker of one member for one kind of failure: closed, open, half-open.

Times are nanoseconds of a monotonic clock and always passed in; nothing here waits, logs or knows an event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from hsmcore.errors import AuditUnavailable, EngineClosed, HsmError, NotHolder

Kind = Literal["busy", "late", "slow", "session", "down", "access", "unusable", "wrong", "key", "auth", "fatal"]
State = Literal["closed", "open", "half-open"]

SECOND: Final = 1_000_000_000
GOOD_PROBES: Final = 3
"""Good probes in a row that close a breaker."""
BACKOFF_MAX_NS: Final = 300 * SECOND
"""The back-off grows to this, or to the interval where that is longer."""
QUICK_FIRST_NS: Final = SECOND // 20
"""Delay of the first probe while no other member can sign; each further delay doubles, up to the interval."""
STABLE_INTERVALS: Final = 10
"""A member that fails again within this many intervals of its return is flapping: its back-off doubles."""
STABLE_MIN_NS: Final = 60 * SECOND


@dataclass(frozen=True, slots=True)
class Rule:
    """`threshold` failures in a row open the breaker; `probed`: probes may close it, else only an operator does."""

    threshold: int
    probed: bool


RULES: Final[dict[Kind, Rule]] = {
    "busy": Rule(8, True),
    "late": Rule(3, True),
    "slow": Rule(1, True),
    "session": Rule(3, True),
    "down": Rule(1, True),
    "access": Rule(1, True),  # a cloud service locks nothing, and renewed credentials or a right clock mend it
    "unusable": Rule(1, True),  # it is the same key, and whoever disabled it may enable it again
    "wrong": Rule(1, True),
    # Another key, a refused login, a broken module: time repairs none of these, and another login may lock the PIN.
    "key": Rule(1, False),
    "auth": Rule(1, False),
    "fatal": Rule(1, False),
}

# Of the other classes are errors of a request itself, of this process, or of a start.
_KIND_OF_CLASS: Final[dict[str, Kind]] = {
    "RETRY": "busy",
    "RESET": "session",
    "REOPEN": "session",
    "RELOGIN": "session",
    "REFIND": "session",
    "REINIT": "session",
    "MEMBER_DOWN": "down",
    "AUTH_FATAL": "auth",
}
_KIND_OF_STATUS: Final[dict[str, Kind]] = {
    "ACCESS_DENIED": "access",
    "DEADLINE_EXCEEDED": "late",
    "SIGNATURE_MALFORMED": "wrong",
    "SIGNATURE_INVALID": "wrong",
    "KEY_MISMATCH": "key",
    "KEY_UNUSABLE": "unusable",
    "KEY_NOT_FOUND": "key",
    "MECHANISM_UNSUPPORTED": "key",
    "MODULE_FATAL": "fatal",
    "TOKEN_NOT_FOUND": "down",
}
WITHHELD: Final = (AuditUnavailable, EngineClosed, NotHolder)
"""As the answer to a request that was submitted, these leave it open too: the signature was not recorded, the member
was closed in the middle of its work, or the fleet's lease was over."""


def kind_of(error: HsmError) -> Kind | None:
    """The kind of member failure of an error; None: the error is the request's own, and no other member helps."""
    if isinstance(error, AuditUnavailable | NotHolder) or error.status == "QUEUE_FULL":
        return None  # nothing is wrong with the member
    return _KIND_OF_STATUS.get(error.status) or _KIND_OF_CLASS.get(error.error_class)


class Breaker:
    """One kind of failure of one member. `interval` is the level's retry interval in nanoseconds."""

    __slots__ = (
        "_closed_at",
        "_quick_step",
        "failures",
        "good",
        "interval",
        "kind",
        "quick_at",
        "retry_at",
        "rule",
        "state",
        "trips",
    )

    def __init__(self, kind: Kind, interval: int) -> None:
        self.kind = kind
        self.rule = RULES[kind]
        self.interval = interval
        self.state: State = "closed"
        self.failures = 0
        self.good = 0
        self.trips = 0
        self.retry_at = 0
        self.quick_at = 0
        self._quick_step = 0
        self._closed_at = 0

    @property
    def spacing(self) -> int:
        """Nanoseconds between probes: the interval, doubled for each time the member came back and failed again."""
        longest = max(self.interval, BACKOFF_MAX_NS)
        return min(self.interval << min(max(self.trips - 1, 0), 40), longest)

    def fail(self, now: int) -> bool:
        """Count a failure. Returns whether it opened the breaker."""
        if self.state != "closed":
            self._reopen(now)
            return False
        self.failures += 1
        if self.failures < self.rule.threshold:
            return False
        self.trip(now)
        return True

    def trip(self, now: int) -> None:
        """Open the breaker, regardless of the count."""
        stable = max(STABLE_MIN_NS, STABLE_INTERVALS * self.interval)
        self.trips = self.trips + 1 if self.trips and now - self._closed_at < stable else 1
        self.state = "open"
        self.failures = self.good = 0
        self._quick_step = min(QUICK_FIRST_NS, self.interval)
        self._plan(now)

    def _reopen(self, now: int) -> None:
        if self.state == "half-open":
            self.state = "open"
            self.trips += 1
        self.good = 0
        self._plan(now)

    def _plan(self, now: int) -> None:
        self.retry_at = now + self.spacing
        self.quick_at = now + min(self._quick_step, self.spacing)
        self._quick_step = min(self._quick_step * 2, self.spacing)

    def progress(self) -> None:
        """The member signed: reset the count of failures in a row."""
        self.failures = 0

    def hasten(self, now: int) -> None:
        """Make the next probe due at once: the cause may be gone."""
        self.retry_at = self.quick_at = now

    def due(self, now: int, hurry: bool) -> bool:
        """Whether a probe is due. `hurry`: no other member can sign."""
        return self.state != "closed" and self.rule.probed and now >= (self.quick_at if hurry else self.retry_at)

    def probed(self, good: bool, now: int) -> bool:
        """Count a probe, or a signature while half-open. Returns whether it closed the breaker."""
        if self.state == "closed" or not self.rule.probed:
            return False
        if not good:
            self._reopen(now)
            return False
        self.state = "half-open"
        self.good += 1
        if self.good >= GOOD_PROBES:
            self.state = "closed"
            self.failures = self.good = 0
            self._closed_at = now
            return True
        self._plan(now)
        return False
