"""Levels of members: which members may sign, which takes the next request, and what changed. No I/O, no clock.

Nothing here is on the way of a signature: it runs when a member fails or returns, or on an operator's order. Times are
nanoseconds of a monotonic clock. `events` holds events not yet passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

from hsmcore.failover.breaker import Kind
from hsmcore.failover.events import Event, EventKind
from hsmcore.failover.member_state import FULL, MemberState

Mode = Literal["smart", "literal"]
EMERGENCY: Final = "emergency"
_FIRST: Final = FULL // 16
"""The weight with which a member's ramp begins."""
_ALWAYS: Final[frozenset[Kind]] = frozenset({"wrong", "key", "auth", "fatal"})
"""Kinds that take a member out in literal mode too: it must not sign."""
_SUSPICIONS: Final[frozenset[Kind]] = frozenset({"late", "slow"})
"""Kinds that a busy machine has too: only a probe shows whether the member signs."""


@dataclass(slots=True)
class Level:
    """A level's rules: the level is given up after `retries` attempts, `interval` nanoseconds apart."""

    name: str
    retries: int
    interval: int
    other_keys: bool = False
    """Whether its members may sign with another key than the current one."""
    down_since: int | None = None
    """When the level lost its last trusted member; None: it has one."""


M = TypeVar("M", bound=MemberState)


@dataclass(slots=True)
class Levels(Generic[M]):
    """The state machine. Belongs to one thread; after each call, the caller takes `events`."""

    levels: Sequence[Level]
    members: Sequence[M]
    mode: Mode = "smart"
    ramp: int = 0
    emergency_delay: int = 0
    suspicion: int = 0
    """How much longer the other levels must be down while one of their members is only suspected."""
    emergency_permitted: bool = True
    emergency_spent: bool = False
    emergency_fault: str = ""
    """Why the emergency members cannot start at present."""
    key: bytes | None = None
    """The current public key: at first, the key of the first member that starts."""
    active: int | None = None
    forced: int | None = None
    ready: tuple[M, ...] = ()
    """The members that may take a request now: trusted, of the active level, with its key."""
    version: int = 0
    """Grows with every change of `ready` or of a weight."""
    events: list[Event] = field(default_factory=list)
    ramping: tuple[M, ...] = ()
    """The members that take a part of their share for now."""
    steady: tuple[M, ...] = ()
    """The members that take the rest: those of `ready`, or while all of these ramp up, of the other levels."""
    _left: str | None = None
    _why: str = ""
    _key_level: int = 0

    @property
    def sharing(self) -> tuple[M, ...]:
        """The members that take the requests of callers, each in proportion to its weight."""
        return (*self.steady, *self.ramping)

    @property
    def round(self) -> int:
        """The sum of weights at which a ramping member has its turn: a full one has each turn of its share."""
        return FULL * (len(self.ready) if self.ramping and self.steady[0] in self.ready else 1)

    def pick_for(self, key: bytes | None, tried: Collection[M]) -> M | None:
        """The member for the next attempt: none of `tried`; with `key`, if a signature under that key may exist.
        While no member is trusted, a member whose last probe was good may sign."""
        wanted = key if key is not None or not self.ready else self.ready[0].key
        for level in self._order():
            if self.levels[level].name == EMERGENCY and level != self.active:
                continue  # the level is entered when no other level can sign, not by one request
            found = [m for m in self._trusted(level) if m not in tried and m.key == wanted]
            if found:
                return least_loaded(found)
        if not any(self._trusted(level) for level in self._order()):
            found = [m for m in self.members if m.half_open and m not in tried and self.usable(m, key)]
            if found:
                return least_loaded(found)
        return None

    def started(self, member: M, key: bytes, now: int) -> None:
        """The member has started, with this public key."""
        member.key = key
        member.checked_at = now
        if self._brings_the_key(member):
            self.key, self._key_level = key, member.level
        if not self.usable(member, None):
            member.reason = "holds another key, and acceptOtherKeys does not name its level"
            member.breaker("key").trip(now)
            self._note("member-down", member)
        self.refresh(now)

    def stopped(self, member: M, now: int) -> None:
        """The member has stopped."""
        member.key = None
        self.refresh(now)

    def use_key(self, key: bytes, now: int) -> None:
        """Change the current key. The caller has changed the `key` of its holders before."""
        self.key, self._key_level = key, 0
        self.refresh(now)

    def failed(self, member: M, kind: Kind, reason: str, now: int) -> None:
        """Count a failed attempt."""
        member.reason = reason
        if self.mode == "literal" and kind not in _ALWAYS:
            return
        if kind == "slow" and not any(m is not member and m.key == member.key for m in self.ready):
            return  # a slow member is better than none
        was = member.trusted
        if member.breaker(kind).fail(now) and was:
            self._note("member-down", member, failure=kind)
        member.suspected = kind in _SUSPICIONS and (was or member.suspected)
        self.refresh(now)

    def stalled(self, member: M, now: int) -> None:
        """The member has requests and ends none of them."""
        if self.mode == "literal" or not member.trusted:
            return
        member.reason = "it has requests and ends none"
        member.breaker("late").trip(now)
        member.suspected = True
        self._note("member-down", member, failure="late")
        self.refresh(now)

    def given_up(self, level: int, now: int) -> None:
        """Literal mode: a request has used up its retries on the level."""
        for member in self.members:
            if member.level == level and member.trusted:
                member.breaker("down").trip(now)
                self._note("member-down", member, failure="down")
        self.refresh(now)

    def succeeded(self, member: M, now: int) -> None:
        """Count a good attempt on a member that is not trusted yet."""
        self.probed(member, True, "", now)

    def probed(self, member: M, good: bool, reason: str, now: int, kind: Kind = "down") -> None:
        """Count a probe. A bad probe of a trusted member counts as a failed request."""
        member.checked_at = now
        found = member.open_breakers
        if not found:
            if not good:
                self.failed(member, kind, reason, now)
            return
        if not good:
            member.reason, member.suspected = reason, False
        closed = [breaker.probed(good, now) for breaker in found]
        if all(closed) and not member.open_breakers:
            others = any(m is not member and m.key == member.key and m.trusted for m in self.members)
            if self.ramp and others:
                member.weight, member.ramp_from = _FIRST, now
            self._note("member-up", member)
            member.reason = ""
        self.refresh(now)
        self.version += 1  # requests may wait for a half-open member

    def progressed(self, member: M) -> None:
        """Note that the member has signed since the last look."""
        for breaker in member.breakers.values():
            breaker.progress()

    def probes_due(self, now: int) -> list[M]:
        """The members with a probe due: out of service, or, once in an interval, on standby or just stopped."""
        hurry = not self.ready
        return [m for m in self.members if m.due(now, hurry) or self._standby_due(m, now)]

    def _standby_due(self, member: M, now: int) -> bool:
        stopped = member.condition == "stopped"
        return (
            (stopped or (member.trusted and member not in self.ready))
            and self.levels[member.level].name != EMERGENCY
            and now >= member.checked_at + member.interval
        )

    def drain(self, member: M, on: bool, reason: str, now: int) -> None:
        """Stop or resume sending requests to a member. Requests in flight end on that member."""
        if member.drained != on:
            member.drained = on
            self._note("member-drained" if on else "member-resumed", member, why=reason)
            self.refresh(now)

    def readmit(self, member: M, reason: str, now: int) -> None:
        """Let probes decide about a repaired member, whatever its breakers say; the first probe is due at once."""
        if not member.open_breakers:
            return
        member.breakers.clear()
        member.breaker("down").trip(now)
        member.breaker("down").hasten(now)
        self._note("member-readmitted", member, why=reason)
        self.refresh(now)

    def force(self, level: int | None, reason: str, now: int) -> None:
        """Prefer a level to all others; None: no longer. If it fails, the others follow in order."""
        if self.forced != level:
            name = None if level is None else self.levels[level].name
            self.forced, self._why = level, reason
            self.events.append(
                Event("level-released" if level is None else "level-forced", level_to=name, reason=reason)
            )
            self.refresh(now)

    def permit_emergency(self, permitted: bool, reason: str, now: int) -> None:
        """Allow or forbid the emergency level."""
        if self.emergency_permitted != permitted:
            self.emergency_permitted = permitted
            self.events.append(Event("emergency-enabled" if permitted else "emergency-disabled", reason=reason))
            self.refresh(now)

    def emergency_used_up(self, spent: bool, reason: str, now: int) -> None:
        """Note whether the emergency budget or its time is used up."""
        if self.emergency_spent != spent:
            self.emergency_spent = spent
            if spent:
                self.events.append(Event("emergency-exhausted", reason=reason))
            self.refresh(now)

    def emergency_failed(self, fault: str, now: int) -> None:
        """Note why the emergency members could not start; "": they may be tried again."""
        if self.emergency_fault != fault:
            self.emergency_fault = fault
            self.refresh(now)
            self.version += 1

    def tick(self, now: int) -> None:
        """Increase the weight of ramping members."""
        changed = False
        for member in self.members:
            if member.weight < FULL:
                passed = now - member.ramp_from
                member.weight = FULL if passed >= self.ramp else _FIRST + (FULL - _FIRST) * passed // self.ramp
                changed = True
        if changed:
            self.refresh(now)
            self.version += 1

    def emergency_wanted(self, now: int) -> bool:
        """Whether the emergency members are to run: no other level can sign, and the level is allowed."""
        if self.forced is not None and self.levels[self.forced].name == EMERGENCY:
            return self.emergency_possible()
        since = self.all_down_since()
        return since is not None and now >= since + self.emergency_wait and self.emergency_possible()

    @property
    def emergency_wait(self) -> int:
        """How long all other levels must be down before the emergency level is entered."""
        suspected = any(m.suspected and not m.trusted and not m.drained for m in self.members)
        return self.emergency_delay + (self.suspicion if suspected else 0)

    def refresh(self, now: int) -> None:
        """Recompute the members that may sign."""
        for index, level in enumerate(self.levels):
            if self._trusted(index):
                level.down_since = None
            elif level.down_since is None:
                level.down_since = now
        active = next((index for index in self._order() if self._trusted(index)), None)
        if active is None and self._let_slow_ones_return():
            active = next((index for index in self._order() if self._trusted(index)), None)
        ready = self._of_one_key(active) if active is not None else ()
        steady = tuple(m for m in ready if m.weight == FULL)
        ramping = tuple(m for m in ready if m.weight < FULL)
        if ramping and not steady:
            steady = tuple(
                m
                for index in range(len(self.levels))
                for m in self._trusted(index)
                if m.weight == FULL and m.key == ramping[0].key and self.levels[m.level].name != EMERGENCY
            )
        if not steady:
            ramping, steady = (), ready
        if (ready, ramping, steady) != (self.ready, self.ramping, self.steady) or active != self.active:
            self.version += 1
        before = self.ready
        self.ready, self.ramping, self.steady = ready, ramping, steady
        if active != self.active:
            self._moved(active, before)

    def _moved(self, active: int | None, before: tuple[M, ...]) -> None:
        was, self.active = self.active, active
        if active is None:
            self._left = None if was is None else self.levels[was].name
            self.events.append(Event("outage", level_from=self._left, reason=self.causes()))
            return
        name = self.levels[active].name
        last = self.levels[was].name if was is not None else self._left
        key = self.ready[0].key or b""
        details: dict[str, Any] = {"public_key": key.hex(), "members": [m.name for m in self.ready]}
        if before and before[0].key != key:
            details["previous_public_key"] = (before[0].key or b"").hex()
        if last is None:
            return  # the first level after the start
        kind: EventKind = "recovered"
        if last != name:
            kind = "failover" if self._rank(name) > self._rank(last) else "failback"
        reason = self._why if active == self.forced else self.causes(active) if kind == "failover" else ""
        self.events.append(Event(kind, last, name, self.ready[0].name, reason, details))

    def causes(self, below: int | None = None) -> str:
        """Why members are out of service, as one line."""
        out = [
            f"{m.name}: {m.reason or m.condition}"
            for m in self.members
            if not m.trusted and (below is None or m.level < below) and (m.reason or m.drained)
        ]
        return "; ".join(out)

    def _rank(self, name: str) -> int:
        return next(index for index, level in enumerate(self.levels) if level.name == name)

    def _order(self) -> Iterable[int]:
        if self.forced is not None:
            yield self.forced
        for index in range(len(self.levels)):
            if index != self.forced:
                yield index

    def _trusted(self, level: int) -> list[M]:
        if self.levels[level].name == EMERGENCY and not self.emergency_possible():
            return []
        return [m for m in self.members if m.level == level and m.trusted and self.usable(m, None)]

    def _of_one_key(self, level: int) -> tuple[M, ...]:
        """A level's trusted members that hold one key: the current one if possible, else the one used until now."""
        trusted = self._trusted(level)
        now_used = self.ready[0].key if self.ready else None
        prefer: list[Callable[[bytes | None], bool]] = [lambda key: key == self.key, lambda key: key == now_used]
        chosen = next((m.key for test in prefer for m in trusted if test(m.key)), trusted[0].key)
        return tuple(m for m in trusted if m.key == chosen)

    def _brings_the_key(self, member: M) -> bool:
        """The first one to start, or one of a level above it, if that one's level may sign with another key."""
        if self.levels[member.level].name == EMERGENCY:
            return False
        return self.key is None or (member.level < self._key_level and self.levels[self._key_level].other_keys)

    def usable(self, member: M, key: bytes | None) -> bool:
        """Whether its key may sign: the one asked for, the current one, or another by consent."""
        if key is not None:
            return member.key == key
        return self.levels[member.level].other_keys or self.key in (None, member.key)

    def emergency_possible(self) -> bool:
        """Whether the emergency level may be used, if nothing else is left."""
        return self.emergency_permitted and not self.emergency_spent and not self.emergency_fault

    def all_down_since(self) -> int | None:
        """Since when no level but the emergency level has a trusted member; None: one has."""
        times = [level.down_since for level in self.levels if level.name != EMERGENCY]
        return None if None in times else max((time for time in times if time is not None), default=None)

    def _let_slow_ones_return(self) -> bool:
        slow = [m for m in self.members if _open(m) == {"slow"}]
        for member in slow:
            del member.breakers["slow"]
        return bool(slow)

    def _note(self, kind: EventKind, member: M, **details: Any) -> None:
        self.events.append(
            Event(
                kind,
                member=member.name,
                reason=member.reason,
                details=details,
                level_from=self.levels[member.level].name,
            )
        )


def least_loaded(members: Sequence[M]) -> M:
    """The member with the fewest requests in flight and waiting; the first of equals."""
    best = members[0]
    engine = best.engine
    least = engine.in_flight + engine.waiting
    for member in members[1:]:
        engine = member.engine
        load = engine.in_flight + engine.waiting
        if load < least:
            best, least = member, load
    return best


def _open(member: MemberState) -> set[Kind]:
    return {breaker.kind for breaker in member.open_breakers}
