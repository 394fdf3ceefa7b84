"""The shares of a batch for the members of a level. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from hsmcore.failover.member_state import FULL, MemberState

WORTH_SHARING: Final = 16
"""Messages; a smaller batch goes to one member in one crossing."""

M = TypeVar("M", bound=MemberState)


def share_out(count: int, members: Sequence[M]) -> list[tuple[M, int]]:
    """How many of `count` requests each member takes, so that afterwards load is in proportion to weight. The numbers
    add up to `count`; a member with a higher load takes none."""
    loads = {m: (m.engine.in_flight + m.engine.waiting, m.weight / FULL) for m in members}
    taking = sorted(members, key=lambda m: loads[m][0] / loads[m][1])
    while True:
        height = (count + sum(loads[m][0] for m in taking)) / sum(loads[m][1] for m in taking)
        if loads[taking[-1]][0] <= height * loads[taking[-1]][1] or len(taking) == 1:
            break
        taking.pop()
    wanted = [height * loads[m][1] - loads[m][0] for m in taking]
    shares = [int(want) for want in wanted]
    by_rest = sorted(range(len(taking)), key=lambda i: shares[i] - wanted[i])
    for index in by_rest[: count - sum(shares)]:
        shares[index] += 1
    return [(m, share) for m, share in zip(taking, shares, strict=True) if share]
