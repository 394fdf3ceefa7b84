"""One member in the state machine."""

from __future__ import annotations

from typing import Any, Final, Literal, Protocol

from hsmcore._native import Digest
from hsmcore.failover.breaker import Breaker, Kind

FULL: Final = 256
"""The weight of a member that takes its whole share."""

Condition = Literal["ready", "ramping", "open", "half-open", "fenced", "drained", "stopped"]


class Load(Protocol):
    """The requests of a member, as its engine knows them: see SigningEngine."""

    @property
    def in_flight(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    def asked_for(self, answer: Any) -> tuple[int, bytes | Digest] | None: ...
    def move(self) -> None: ...


class Idle:
    """In place of the engine of a member that does not run."""

    in_flight = 0
    waiting = 0

    def asked_for(self, _answer: object) -> None:
        """As SigningEngine.asked_for: nobody waits."""

    def move(self) -> None:
        """As SigningEngine.move: nobody waits."""


class MemberState:
    """Breakers, drain and weight of a member. Only Levels changes it."""

    __slots__ = (
        "breakers",
        "checked_at",
        "drained",
        "engine",
        "interval",
        "key",
        "level",
        "name",
        "ramp_from",
        "reason",
        "suspected",
        "weight",
    )

    def __init__(self, name: str, level: int, interval: int) -> None:
        self.name = name
        self.level = level
        self.interval = interval
        self.engine: Load = Idle()
        self.key: bytes | None = None
        """The public key of its signatures; None: it has not started."""
        self.drained = False
        self.breakers: dict[Kind, Breaker] = {}
        self.weight = FULL
        self.ramp_from = 0
        self.checked_at = 0
        self.reason = ""
        self.suspected = False
        """Whether it is out for being late alone, and no probe has failed since."""

    def breaker(self, kind: Kind) -> Breaker:
        """The breaker for a kind of failure, made for the first failure."""
        found = self.breakers.get(kind)
        if found is None:
            found = self.breakers[kind] = Breaker(kind, self.interval)
        return found

    @property
    def open_breakers(self) -> list[Breaker]:
        # A copy: monitoring reads from another thread.
        return [breaker for breaker in tuple(self.breakers.values()) if breaker.state != "closed"]

    @property
    def fenced(self) -> bool:
        """Whether no probe brings the member back, only an operator."""
        return any(not breaker.rule.probed for breaker in self.open_breakers)

    @property
    def trusted(self) -> bool:
        """Whether requests may go to the member."""
        return self.key is not None and not self.drained and not self.open_breakers

    @property
    def half_open(self) -> bool:
        """Whether the last probe was good for every breaker that is not closed."""
        found = self.open_breakers
        return (
            self.key is not None
            and not self.drained
            and bool(found)
            and all(breaker.state == "half-open" for breaker in found)
        )

    @property
    def condition(self) -> Condition:
        """The state in one word."""
        if self.drained:
            return "drained"
        if self.fenced:
            return "fenced"
        if self.half_open:
            return "half-open"
        if self.open_breakers:
            return "open"
        if self.key is None:
            return "stopped"
        return "ready" if self.weight == FULL else "ramping"

    def due(self, now: int, hurry: bool) -> bool:
        """Whether a probe is due: all open breakers allow one."""
        found = self.open_breakers
        return bool(found) and not self.drained and all(breaker.due(now, hurry) for breaker in found)
