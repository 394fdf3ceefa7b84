"""Who asks for a signature in this process, and how much each may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic_ns
from typing import Final

from hsmcore.audit.record import current_caller
from hsmcore.config import CallerRules
from hsmcore.errors import PolicyRefused


class Caller:
    """What one caller has used up of its rules. Belongs to one event loop."""

    def __init__(self, name: str, rules: CallerRules, kinds: frozenset[str]) -> None:
        self.name = name
        self.kinds = kinds if rules.kinds is None else frozenset(rules.kinds)
        self._batches = rules.kinds is None if rules.batch is None else rules.batch
        self._rate = None if rules.per_second is None else Rate(rules.per_second)
        self._most = rules.in_flight
        self._in_flight = 0

    def begin(self, kind: str | None) -> None:
        """Count a request; `kind` None: for a batch. Raises PolicyRefused, and counts nothing then."""
        if kind is None and not self._batches:
            raise PolicyRefused(
                f'caller {self.name!r} may have no batch signed: give it "batch": true in policy.callers'
            )
        if kind is not None and kind not in self.kinds:
            raise PolicyRefused(f"caller {self.name!r} may not have a payload of kind {kind} signed")
        if self._most is not None and self._in_flight >= self._most:
            raise PolicyRefused(f"caller {self.name!r} has {self._most} requests in flight, as many as it may")
        if self._rate is not None and self._rate.take():
            raise PolicyRefused(f"caller {self.name!r} has used up its {self._rate.per_second} requests a second")
        self._in_flight += 1

    def end(self) -> None:
        """The request is answered."""
        self._in_flight -= 1


class Callers:
    """The callers that a policy names."""

    def __init__(self, rules: Mapping[str, CallerRules], kinds: frozenset[str]) -> None:
        self._callers = {name: Caller(name, rule, kinds) for name, rule in rules.items()}

    def present(self) -> Caller:
        """Return the caller of this context. Raises PolicyRefused for one that the policy does not name."""
        name = current_caller()
        found = self._callers.get(name) if name is not None else None
        if found is None:
            who = "a caller that does not say who it is" if name is None else f"caller {name!r}"
            raise PolicyRefused(
                f"the policy names its callers, and {who} is none of them",
                hint=f"Sign within `with hsmcore.caller({next(iter(self._callers), 'name')!r}):`.",
            )
        return found


_MS: Final = 1_000_000
_SECOND: Final = 1_000_000_000


class Rate:
    """So many units a second, with bursts of as many. Counts whole nanoseconds, so that nothing is lost or won by
    rounding. Belongs to one event loop."""

    __slots__ = ("_balance", "_filled", "per_second")

    def __init__(self, per_second: int) -> None:
        self.per_second = per_second
        self._balance, self._filled = per_second * _SECOND, monotonic_ns()
        """In billionths of a unit; below 0 it is owed."""

    def take(self, units: int = 1) -> int:
        """Take units. Returns 0; or after how many milliseconds to come back, and takes none then.

        As soon as there is one unit, all are given, and what lacks is owed: so what is larger than a burst has its
        time, too, and smaller ones do not keep it out."""
        now = monotonic_ns()
        self._balance = min(self._balance + (now - self._filled) * self.per_second, self.per_second * _SECOND)
        self._filled = now
        if self._balance < _SECOND:
            return -((self._balance - _SECOND) // (self.per_second * _MS))
        self._balance -= units * _SECOND
        return 0
