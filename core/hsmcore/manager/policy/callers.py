"""Who asks for a signature in this process, and how much each may ask for."""

from __future__ import annotations

from collections.abc import Mapping

from hsmcore.audit.record import current_caller
from hsmcore.config import CallerRules
from hsmcore.errors import PolicyRefused
from hsmcore.manager.policy.rate import Rate


class Caller:
    """What one caller has used up of its rules. Belongs to one event loop."""

    def __init__(self, name: str, rules: CallerRules, kinds: frozenset[str]) -> None:
        self.name = name
        self.kinds = kinds if rules.kinds is None else frozenset(rules.kinds)
        self._rate = None if rules.per_second is None else Rate(rules.per_second)
        self._most = rules.in_flight
        self._in_flight = 0

    def begin(self, kind: str) -> None:
        """Count a request. Raises PolicyRefused, and counts nothing then."""
        if kind not in self.kinds:
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
