"""Levels of members: which may sign now, who takes the next request, and what changed. No I/O, no clock of its own.

`pick` is on the way of every signature: it compares a few integers. Everything else happens when something fails,
comes back, or is asked for by a person. Times are nanoseconds of a monotonic clock. What happened lies in `events`.
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
_ALWAYS: Final[frozenset[Kind]] = frozenset({"wrong", "key", "auth", "fatal"})
"""What takes a member out also in literal mode: it must not sign."""


@dataclass(slots=True)
class Level:
    """A level's rules. `retries` attempts, `interval` nanoseconds apart, before it is given up."""

    name: str
    retries: int
    interval: int
    other_keys: bool = False
    """Whether its members may sign with another key than the current one."""
    down_since: int | None = None
    """When it was found without a member that is trusted; None: it has one."""


M = TypeVar("M", bound=MemberState)


@dataclass(slots=True)
class Levels(Generic[M]):
    """The state machine. It belongs to one thread; whoever calls it takes `events` afterwards."""

    levels: Sequence[Level]
    members: Sequence[M]
    mode: Mode = "smart"
    ramp: int = 0
    emergency_delay: int = 0
    emergency_permitted: bool = True
    emergency_spent: bool = False
    emergency_fault: str = ""
    """Why its members cannot be started at present."""
    key: bytes | None = None
    """The current public key; the first member that starts brings it."""
    active: int | None = None
    forced: int | None = None
    ready: tuple[M, ...] = ()
    """Who may take a request now: the trusted members of the active level that hold its key."""
    version: int = 0
    """Grows with every change of `ready`."""
    events: list[Event] = field(default_factory=list)
    _ramping: tuple[M, ...] = ()
    _steady: tuple[M, ...] = ()
    _left: str | None = None
    _why: str = ""
    _key_level: int = 0

    def pick(self) -> M | None:
        """The least loaded member of the active level; None: nobody may sign."""
        if self._ramping:
            return self._pick_ramping()
        ready = self.ready
        if not ready:
            return None
        best = ready[0]
        if len(ready) > 1:
            best = least_loaded(ready)
        return best

    def _pick_ramping(self) -> M:
        for member in self._ramping:
            member.turn += member.weight
            if member.turn >= FULL * (len(self.ready) if self._steady and self._steady[0] in self.ready else 1):
                member.turn = 0
                return member
        return least_loaded(self._steady or self._ramping)

    @property
    def sharing(self) -> tuple[M, ...]:
        """Those whom `pick` chooses among."""
        return (*self._steady, *self._ramping) if self._ramping else self.ready

    def pick_for(self, key: bytes | None, tried: Collection[M]) -> M | None:
        """Who may try next: not one of `tried`; with `key`, if a signature under that one may exist already.
        While nobody is trusted, a member whose last probe was good may."""
        wanted = key if key is not None or not self.ready else self.ready[0].key
        for level in self._order():
            if self.levels[level].name == EMERGENCY and level != self.active:
                continue  # it is entered when nothing else is left, not by one request
            found = [m for m in self._trusted(level) if m not in tried and m.key == wanted]
            if found:
                return least_loaded(found)
        if not any(self._trusted(level) for level in self._order()):
            found = [m for m in self.members if m.half_open and m not in tried and self.usable(m, key)]
            if found:
                return least_loaded(found)
        return None

    def started(self, member: M, key: bytes, now: int) -> None:
        """The member works, with this public key."""
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
        """The member has been closed."""
        member.key = None
        self.refresh(now)

    def use_key(self, key: bytes, now: int) -> None:
        """Another key is the current one. Members that hold it have got it as their `key` before."""
        self.key, self._key_level = key, 0
        self.refresh(now)

    def failed(self, member: M, kind: Kind, reason: str, now: int) -> None:
        """An attempt failed."""
        member.reason = reason
        if self.mode == "literal" and kind not in _ALWAYS:
            return
        if kind == "slow" and not any(m is not member and m.key == member.key for m in self.ready):
            return  # slow is better than nobody
        was = member.trusted
        if member.breaker(kind).fail(now) and was:
            self._note("member-down", member, failure=kind)
        self.refresh(now)

    def stalled(self, member: M, now: int) -> None:
        """It has requests and ends none of them."""
        if self.mode == "literal" or not member.trusted:
            return
        member.reason = "it has requests and ends none"
        member.breaker("late").trip(now)
        self._note("member-down", member, failure="late")
        self.refresh(now)

    def given_up(self, level: int, now: int) -> None:
        """Literal mode: a request has retried the level as often as it may."""
        for member in self.members:
            if member.level == level and member.trusted:
                member.breaker("down").trip(now)
                self._note("member-down", member, failure="down")
        self.refresh(now)

    def succeeded(self, member: M, now: int) -> None:
        """An attempt on a member that is not trusted yet was good."""
        self.probed(member, True, "", now)

    def probed(self, member: M, good: bool, reason: str, now: int, kind: Kind = "down") -> None:
        """A probe ended. Of a trusted member a bad one counts like a failure of a request."""
        member.checked_at = now
        found = member.open_breakers
        if not found:
            if not good:
                self.failed(member, kind, reason, now)
            return
        if not good:
            member.reason = reason
        closed = [breaker.probed(good, now) for breaker in found]
        if all(closed) and not member.open_breakers:
            others = any(m is not member and m.key == member.key and m.trusted for m in self.members)
            if self.ramp and others:
                member.weight, member.ramp_from, member.turn = 0, now, 0
            self._note("member-up", member)
            member.reason = ""
        self.refresh(now)
        self.version += 1  # a member that is half-open now may be waited for

    def progressed(self, member: M) -> None:
        """The member has signed since the last look."""
        for breaker in member.breakers.values():
            breaker.progress()

    def probes_due(self, now: int) -> list[M]:
        """Who wants a probe: members that are out, and members on standby, once in an interval."""
        hurry = not self.ready
        return [m for m in self.members if m.due(now, hurry) or self._standby_due(m, now)]

    def _standby_due(self, member: M, now: int) -> bool:
        return (
            member.trusted
            and member not in self.ready
            and self.levels[member.level].name != EMERGENCY
            and now >= member.checked_at + member.interval
        )

    def drain(self, member: M, on: bool, reason: str, now: int) -> None:
        """Send it nothing any more, or again. Requests in flight end where they are."""
        if member.drained != on:
            member.drained = on
            self._note("member-drained" if on else "member-resumed", member, why=reason)
            self.refresh(now)

    def readmit(self, member: M, reason: str, now: int) -> None:
        """A person has mended it: whatever it was out for, probes decide from now on, the first one at once."""
        if not member.open_breakers:
            return
        member.breakers.clear()
        member.breaker("down").trip(now)
        member.breaker("down").retry_at = member.breaker("down").quick_at = now
        self._note("member-readmitted", member, why=reason)
        self.refresh(now)

    def force(self, level: int | None, reason: str, now: int) -> None:
        """Prefer a level to all others, or no longer. If it fails, the others follow in their order."""
        if self.forced != level:
            name = None if level is None else self.levels[level].name
            self.forced, self._why = level, reason
            self.events.append(
                Event("level-released" if level is None else "level-forced", level_to=name, reason=reason)
            )
            self.refresh(now)

    def permit_emergency(self, permitted: bool, reason: str, now: int) -> None:
        """Whether the emergency level may be used at all."""
        if self.emergency_permitted != permitted:
            self.emergency_permitted = permitted
            self.events.append(Event("emergency-enabled" if permitted else "emergency-disabled", reason=reason))
            self.refresh(now)

    def emergency_used_up(self, spent: bool, reason: str, now: int) -> None:
        """Whether the emergency budget or its time is used up."""
        if self.emergency_spent != spent:
            self.emergency_spent = spent
            if spent:
                self.events.append(Event("emergency-exhausted", reason=reason))
            self.refresh(now)

    def emergency_failed(self, fault: str, now: int) -> None:
        """Its members could not be started ("": they may be tried again)."""
        if self.emergency_fault != fault:
            self.emergency_fault = fault
            self.refresh(now)
            self.version += 1

    def tick(self, now: int) -> None:
        """Let shares grow."""
        changed = False
        for member in self.members:
            if member.weight < FULL:
                passed = now - member.ramp_from
                member.weight = FULL if passed >= self.ramp else FULL // 16 + (FULL - FULL // 16) * passed // self.ramp
                changed = True
        if changed:
            self.refresh(now)

    def emergency_wanted(self, now: int) -> bool:
        """Whether nothing but the emergency level can sign, and it may: whoever has its members starts them."""
        if self.forced is not None and self.levels[self.forced].name == EMERGENCY:
            return self.emergency_possible()
        since = self.all_down_since()
        return since is not None and now >= since + self.emergency_delay and self.emergency_possible()

    def refresh(self, now: int) -> None:
        """Work out anew who may sign."""
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
            steady = tuple(m for index in range(len(self.levels)) for m in self._trusted(index)
                           if m.weight == FULL and m.key == ramping[0].key
                           and self.levels[m.level].name != EMERGENCY)  # fmt: skip
            if not steady:
                ramping = ()
        if (ready, ramping, steady) != (self.ready, self._ramping, self._steady) or active != self.active:
            self.version += 1
        before = self.ready
        self.ready, self._ramping, self._steady = ready, ramping, steady
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
            return  # it begins
        kind: EventKind = "recovered"
        if last != name:
            kind = "failover" if self._rank(name) > self._rank(last) else "failback"
        reason = self._why if active == self.forced else self.causes(active) if kind == "failover" else ""
        self.events.append(Event(kind, last, name, self.ready[0].name, reason, details))

    def causes(self, below: int | None = None) -> str:
        """Why members are out, as one line."""
        out = [f"{m.name}: {m.reason or m.condition}" for m in self.members
               if not m.trusted and (below is None or m.level < below) and (m.reason or m.drained)]  # fmt: skip
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
        """Since when no level but the emergency one has a trusted member; None: one has."""
        times = [level.down_since for level in self.levels if level.name != EMERGENCY]
        return None if None in times else max((time for time in times if time is not None), default=None)

    def _let_slow_ones_return(self) -> bool:
        slow = [m for m in self.members if _open(m) == {"slow"}]
        for member in slow:
            del member.breakers["slow"]
        return bool(slow)

    def _note(self, kind: EventKind, member: M, **details: Any) -> None:
        self.events.append(Event(kind, member=member.name, reason=member.reason, details=details,
                                 level_from=self.levels[member.level].name))  # fmt: skip


def least_loaded(members: Sequence[M]) -> M:
    """The one with the fewest requests in flight and waiting; the first of equals."""
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
