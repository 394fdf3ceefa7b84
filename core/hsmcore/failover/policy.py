"""The next step of a request after a failed attempt: try a member, wait, or give up. Pure decisions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from hsmcore.failover.breaker import SECOND
from hsmcore.failover.levels import EMERGENCY, Levels, least_loaded
from hsmcore.failover.member_state import MemberState

M = TypeVar("M", bound=MemberState)


@dataclass(slots=True)
class Attempts(Generic[M]):
    """The attempts of a request. `bound_to`: the key under which a signature may exist; no other key may sign the
    message then, unless the caller allows it."""

    bound_to: bytes | None = None
    only: bytes | None = None
    """The key that the caller asks for."""
    tried: list[M] = field(default_factory=list)
    rounds: int = 0
    level: int | None = None
    retries: int = 0
    waited: bool = False

    @property
    def key(self) -> bytes | None:
        """The only key that may sign the message; None: any may."""
        return self.only if self.bound_to is None else self.bound_to


@dataclass(frozen=True, slots=True)
class Try(Generic[M]):
    """Try this member now."""

    member: M


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until `until` (monotonic ns); `eager`: or until the levels change."""

    until: int
    eager: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No member can sign the message."""


Step = Try[M] | Wait | GiveUp


def next_step(levels: Levels[M], attempts: Attempts[M], now: int) -> Step[M]:
    """Decide. The caller bounds the wait by the request's deadline, and asks again afterwards."""
    if levels.mode == "literal":
        return _literal(levels, attempts, now)
    return _smart(levels, attempts, now)


def _smart(levels: Levels[M], attempts: Attempts[M], now: int) -> Step[M]:
    member = levels.pick_for(attempts.key, attempts.tried)
    if member is not None:
        return Try(member)
    if attempts.tried and (again := levels.pick_for(attempts.key, ())) is not None:
        # Every remaining member already failed this request but is trusted: retry at once, then at the interval.
        level = levels.levels[again.level]
        attempts.rounds += 1
        attempts.tried.clear()
        if attempts.rounds > level.retries:
            return GiveUp()
        return Wait(now if attempts.rounds == 1 else now + level.interval, eager=False)
    until = hope_until(levels, attempts.key, now)
    return GiveUp() if until is None else Wait(until, eager=True)


def _literal(levels: Levels[M], attempts: Attempts[M], now: int) -> Step[M]:
    """Each level in turn: one attempt, then the retries, each after the interval."""
    if attempts.level is None:
        attempts.level = levels.active or 0
    while attempts.level < len(levels.levels):
        level = levels.levels[attempts.level]
        if level.name == EMERGENCY:
            return _literal_emergency(levels, attempts, now)
        members = _members_of(levels, attempts.level, attempts.key)
        untried = [m for m in members if m not in attempts.tried]
        if untried and attempts.retries == 0 and not attempts.tried:
            return Try(least_loaded(untried))
        if members and attempts.waited:
            attempts.waited = False
            return Try(least_loaded(untried or members))
        if attempts.retries < level.retries:
            attempts.retries += 1
            attempts.waited = True
            return Wait(now + level.interval, eager=False)
        levels.given_up(attempts.level, now)
        attempts.level += 1
        attempts.retries = 0
        attempts.tried.clear()
    return GiveUp()


def _members_of(levels: Levels[M], level: int, key: bytes | None) -> list[M]:
    """Every member of the level that a retry may reach, regardless of earlier failures."""
    return [
        member
        for member in levels.members
        if member.level == level
        and member.key is not None
        and levels.usable(member, key)
        and not member.drained
        and not member.fenced
        and all(breaker.kind != "wrong" for breaker in member.open_breakers)
    ]


def _literal_emergency(levels: Levels[M], attempts: Attempts[M], now: int) -> Step[M]:
    member = levels.pick_for(attempts.key, attempts.tried)
    if member is not None:
        return Try(member)
    until = 0 if attempts.tried or attempts.key is not None else emergency_hope(levels)
    return Wait(until, eager=True) if until > now else GiveUp()


STARTING_NS: Final = 5 * SECOND
"""How long requests wait for the emergency level's key."""


def hope_until(levels: Levels[M], key: bytes | None, now: int) -> int | None:
    """Until when a request may wait (`key`: the only key that may sign it); None: every level is given up."""
    hopes = [emergency_hope(levels) if key is None else 0]
    for index, level in enumerate(levels.levels):
        waited_for = any(
            member.level == index
            and not member.drained
            and not member.fenced
            and (member.key is None or levels.usable(member, key))
            for member in levels.members
        )
        if level.name != EMERGENCY and waited_for and level.down_since is not None:
            hopes.append(level.down_since + level.retries * level.interval)
    last = max(hopes)
    return last if last > now else None


def emergency_hope(levels: Levels[M]) -> int:
    """Until when a request may wait for the emergency level; 0: not at all."""
    since = levels.all_down_since()
    if since is None or not levels.emergency_possible() or all(lv.name != EMERGENCY for lv in levels.levels):
        return 0
    return since + levels.emergency_wait + STARTING_NS
