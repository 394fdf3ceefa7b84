"""How long a request may wait for a member to come back."""

from __future__ import annotations

from typing import Final, TypeVar

from hsmcore.failover.breaker import SECOND
from hsmcore.failover.levels import EMERGENCY, Levels
from hsmcore.failover.member_state import MemberState

STARTING_NS: Final = 5 * SECOND
"""How long requests wait for the emergency level's key."""

M = TypeVar("M", bound=MemberState)


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
