"""The rules by which a position is bound. Pure: what there is, and what is wanted, is passed in."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from hsmcore.errors import DoubleSign, PolicyRefused
from hsmcore.manager.policy.wants import NotNext, PayloadPlace
from hsmcore.state import StoreNotGenuine, positions
from hsmcore.state.mark import WINDOW, Mark

Rows = dict[tuple[str, int], dict[str, Any]]
"""What is bound, as columns by name, by domain and position."""


class Rules(NamedTuple):
    """By which a position is bound. `most_ahead`: as Watermark; `vouch`: Store.vouch."""

    most_ahead: int | None
    vouch: Callable[..., str]

    def refusal(self, mark: Mark, row: dict[str, Any] | None, want: PayloadPlace, epoch: int) -> Exception | None:
        """Return why a place is not bound, or not again; None: it may be. `mark`, `row`: what there is. `epoch`: of the
        fleet, or 0."""
        where = f"position {want.position} of {want.domain}"
        if want.first is not None and (row is None or row["digest"] != want.digest):
            following = max(mark.high, mark.floor) + 1
            if (want.first, want.epoch) != (following, epoch):
                moved = NotNext(f"{where}: the next one is {following}, in epoch {epoch}")
                moved.next = following
                return moved
        if want.position <= mark.floor:
            return PolicyRefused(f"{where} is at or below the floor {mark.floor} ({mark.reason})")
        if row is not None:
            if not positions.is_genuine(self.vouch, row):
                return StoreNotGenuine(f"the state store is not genuine: the row of {where} was changed")
            return None if row["digest"] == want.digest else _double(row)
        if mark.has(want.position):
            return StoreNotGenuine(f"the state store is not genuine: the row of {where} was removed")
        newest = max(mark.high, mark.floor)
        if self.most_ahead is not None and want.first is None and 0 <= newest < want.position - self.most_ahead:
            return PolicyRefused(
                f"{where} is more than maxAhead ({self.most_ahead}) beyond the highest, {newest}",
                hint="If it is right, give up what lies before it: `hsmcore policy floor set --help`.",
            )
        if not mark.knows(want.position) and self.vouch():
            return PolicyRefused(
                f"{where} is more than {WINDOW} behind the newest, {mark.high}, and was not signed before",
                hint="Nobody can tell any more whether its row was removed from the state store.",
            )
        return None


def _double(row: dict[str, Any]) -> DoubleSign:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row["bound_ns"] / 1e9))
    where = f"position {row['position']} of {row['domain']}"
    error = DoubleSign(f"{where} was bound to another payload, {row['digest']}, by {row['holder']} at {when}")
    error.domain, error.position, error.digest = row["domain"], row["position"], bytes.fromhex(row["digest"])
    error.holder, error.bound_ns = row["holder"], row["bound_ns"]
    return error
