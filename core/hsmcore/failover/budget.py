"""The emergency budget: a number of signatures within a number of seconds, also across crashes.

An episode begins with the first use of the emergency level and ends only by `reset`; it continues when the level is
left and entered again, and when the process restarts. Its time counts from its first signature. Its limits are those
of its beginning; a stricter configuration applies at once, a laxer one after the next reset.

Units are reserved durably in blocks of at most BLOCK before they are used, so neither a crash nor several processes can
spend more than the budget; a crash wastes the rest of a block, at most BLOCK - 1 units. Of the last two blocks each
unit is reserved by itself, so that none lies idle in one process while another one is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Self

from sqlalchemy import Connection, select, update

from hsmcore.base.steady import HELD_NS
from hsmcore.base.waiting import shielded
from hsmcore.config import Config, Failover
from hsmcore.errors import BadArgument
from hsmcore.failover.errors import EmergencyRefused
from hsmcore.failover.events import Event
from hsmcore.failover.history import insert_events
from hsmcore.state.clock import StoreClock
from hsmcore.state.errors import StoreNotGenuine
from hsmcore.state.schema import EMERGENCY_EPISODE as EPISODE
from hsmcore.state.schema import insert_row
from hsmcore.state.store import Store

BLOCK: Final = 16
SECOND: Final = 1_000_000_000
FOREVER: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """`emergencyModeRestrictions`: signatures, and seconds from the first signature."""

    max_transactions: int
    max_seconds: int


@dataclass(frozen=True, slots=True)
class EmergencyStatus:
    """The present episode. Times are Unix nanoseconds; `reserved` is at least the number of used units."""

    episode: int | None
    began_ns: int | None
    first_ns: int | None
    expires_ns: int | None
    max_transactions: int
    max_seconds: int
    reserved: int
    left: int
    expired: bool
    held: int = 0
    """Units that this process has reserved, or is reserving, and not used."""

    @property
    def usable(self) -> bool:
        """Whether this process may make another signature."""
        return self.left + self.held > 0 and not self.expired


class Emergency:
    """Spends one budget. Belongs to one event loop. `wall`, `boot`: the machine's clocks, see StoreClock."""

    def __init__(
        self,
        store: Store,
        limits: Limits,
        wall: Callable[[], int] | None = None,
        boot: Callable[[], int] | None = None,
    ) -> None:
        self._store = store
        self._limits = limits
        self._clock = StoreClock(store, wall, boot)
        self._reserving = asyncio.Lock()
        self._episode = 0
        self._units = 0  # of the present block: reserved durably, not used
        self._asked = 0  # units of reservations under way
        self._until = 0
        self.seen: EmergencyStatus | None = None
        """The last result of `status`."""

    @classmethod
    def of(cls, config: Config, store: Store) -> Self:
        """The budget that a configuration allows."""
        limits = (config.key_manager.active_failover or Failover()).emergency_mode_restrictions
        return cls(store, Limits(limits.max_transactions, limits.max_time_seconds))

    async def begin(self) -> EmergencyStatus:
        """Begin an episode, or continue the present one. Starts no clock."""
        await self._clock.follow()
        now = self._now()

        def work(connection: Connection) -> tuple[EmergencyStatus, int]:
            row = _row(connection, self._limits, now.ns, begin=True)
            return _status(connection, self._limits, now), now.times(row)[1]

        found, latest = await self._store.run(work)
        self._clock.reach(latest)  # time that passes before the first reservation counts too
        return self._with_own(found)

    def _now(self) -> _Now:
        now = self._clock.now()
        return _Now(now, now + HELD_NS if self._clock.agrees else FOREVER)

    def try_spend(self, units: int = 1) -> int:
        """Use units of the reserved block. Returns the episode's number; 0: `spend` must reserve more units."""
        if self._units < units or self._clock.now() >= self._until:
            return 0
        self._units -= units
        return self._episode

    async def spend(self, units: int = 1) -> int:
        """Use units, reserved durably before this returns. Returns the episode's number, for `give_back`. Raises
        EmergencyRefused or StoreError, and then uses none. Units that were reserved for a cancelled caller stay for the
        next caller."""
        while not (episode := self.try_spend(units)):
            async with self._reserving:
                if not (episode := self.try_spend(units)):
                    await shielded(self._reserve(units))
                    continue
            break
        return episode

    async def _reserve(self, units: int) -> None:
        await self._clock.follow()
        now, own, left = self._now(), self._episode, self._units
        self._asked += units
        try:
            found = await self._store.run(lambda connection: _reserve(connection, self._limits, now, units, own, left))
        finally:
            self._asked -= units
        self._clock.reach(found.latest)
        if found.episode != self._episode:
            self._episode, self._units = found.episode, 0  # the old episode was reset, with its units
        if found.refusal:
            raise EmergencyRefused(found.refusal)
        # Added and not set: a caller that was cancelled may have left another reservation running beside this one.
        self._units += found.taken
        self._until = found.until

    def give_back(self, episode: int, units: int = 1) -> None:
        """Return units of an attempt that certainly made no signature."""
        if episode == self._episode:
            self._units += units

    async def close(self) -> None:
        """Return the rest of the block to the store. A store that is not genuine gets nothing back."""
        units, self._units = self._units, 0
        if units:
            own = self._episode
            with suppress(StoreNotGenuine):
                await self._store.run(
                    lambda connection: connection.execute(
                        update(EPISODE)
                        .where(EPISODE.c.id == own, EPISODE.c.ended_ns.is_(None))
                        .values(reserved=EPISODE.c.reserved - units)
                    )
                )

    async def reset(self, reason: str) -> EmergencyStatus:
        """End the episode; the next use begins another one with a full budget. Returns the last status of the old one.
        The same transaction adds the reset to the history, so no reset lacks a record; a key manager copies it to its
        audit log. Raises BadArgument without a reason."""
        if not reason.strip():
            raise BadArgument("a reset of the emergency budget needs a reason")
        await self._clock.follow()
        now = self._now()

        def work(connection: Connection) -> EmergencyStatus:
            before = _status(connection, self._limits, now)
            connection.execute(
                update(EPISODE).where(EPISODE.c.ended_ns.is_(None)).values(ended_ns=now.ns, end_reason=reason)
            )
            details = {"episode": before.episode, "reserved": before.reserved, "first_ns": before.first_ns}
            insert_events(connection, [(time.time_ns(), Event("emergency-reset", reason=reason, details=details))])
            return before

        self._episode = self._units = 0  # so that an attempt under way gives nothing back
        return await self._store.run(work)

    async def count(self, used: int, first_ns: int) -> int:
        """Count units that the store has forgotten: those of signatures since `first_ns`. Returns how many are left."""
        await self._clock.follow()
        now = self._now()

        def work(connection: Connection) -> int:
            row = _row(connection, self._limits, now.ns, begin=True)
            reserved, first = min(row.reserved + used, row.max_transactions), min(row.first_ns or first_ns, first_ns)
            connection.execute(update(EPISODE).where(EPISODE.c.id == row.id).values(reserved=reserved, first_ns=first))
            return _status(connection, self._limits, now).left

        return await self._store.run(work)

    async def status(self) -> EmergencyStatus:
        """The present episode. Units of the present block count as reserved."""
        with suppress(StoreNotGenuine):
            await self._clock.take_up()  # and keeps nothing: a reader of the store changes nothing
        now = self._now()
        found = await self._store.run(lambda connection: _status(connection, self._limits, now))
        self.seen = self._with_own(found)
        return self.seen

    def _with_own(self, found: EmergencyStatus) -> EmergencyStatus:
        if found.episode != self._episode:
            self._episode = self._units = 0  # they belong to an episode that was reset
        return replace(found, held=self._units + self._asked)


@dataclass(frozen=True, slots=True)
class _Reserved:
    episode: int
    latest: int
    refusal: str = ""
    taken: int = 0
    until: int = 0


class _Now(NamedTuple):
    ns: int
    most_ns: int
    """A later moment of the past was dated by a clock that was wrong."""

    def times(self, row: Any) -> tuple[int | None, int]:
        """Return an episode's first signature and its latest known time, which is now or later."""
        if row.latest_ns > self.most_ns:
            return None if row.first_ns is None else self.ns, self.ns
        return row.first_ns, max(self.ns, row.latest_ns)


def _reserve(connection: Connection, limits: Limits, at: _Now, units: int, own: int, left: int) -> _Reserved:
    row = _row(connection, limits, at.ns, begin=True)
    wanted = units - (left if row.id == own else 0)
    most, seconds = min(row.max_transactions, limits.max_transactions), min(row.max_seconds, limits.max_seconds)
    begun, now = at.times(row)
    first = now if begun is None else begun
    until = first + seconds * SECOND
    if now >= until:
        return _Reserved(row.id, now, f"the emergency key's time of {seconds} s is over")
    free = most - row.reserved
    if free < wanted:
        return _Reserved(row.id, now, f"the emergency budget of {most} signatures is used up")
    taken = wanted if free <= 2 * BLOCK else max(wanted, BLOCK)
    connection.execute(
        update(EPISODE)
        .where(EPISODE.c.id == row.id)
        .values(reserved=EPISODE.c.reserved + taken, first_ns=first, latest_ns=now)
    )
    return _Reserved(row.id, now, "", taken, until)


def _row(connection: Connection, limits: Limits, now: int, *, begin: bool) -> Any:
    query = select(EPISODE).where(EPISODE.c.ended_ns.is_(None))
    row = connection.execute(query).one_or_none()
    if row is None and begin:
        insert_row(
            connection,
            EPISODE,
            began_ns=now,
            latest_ns=now,
            max_transactions=limits.max_transactions,
            max_seconds=limits.max_seconds,
            reserved=0,
        )
        row = connection.execute(query).one()
    return row


def _status(connection: Connection, limits: Limits, at: _Now) -> EmergencyStatus:
    row = _row(connection, limits, at.ns, begin=False)
    if row is None:
        most, seconds = limits.max_transactions, limits.max_seconds
        return EmergencyStatus(None, None, None, None, most, seconds, 0, most, expired=False)
    most, seconds = min(row.max_transactions, limits.max_transactions), min(row.max_seconds, limits.max_seconds)
    first, now = at.times(row)
    expires = None if first is None else first + seconds * SECOND
    expired = expires is not None and now >= expires
    left = max(most - row.reserved, 0)
    return EmergencyStatus(row.id, row.began_ns, first, expires, most, seconds, row.reserved, left, expired)
