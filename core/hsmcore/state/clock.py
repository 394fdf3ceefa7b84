"""A steady clock whose mark lies in the store that it serves: budgets, bindings and rotations go on by the time
that is known there, whatever the wall clock says at a start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sqlalchemy import Connection, select

from hsmcore.base.steady import STEP_NS, SteadyClock
from hsmcore.state.errors import StoreNotGenuine
from hsmcore.state.keys import all_keys
from hsmcore.state.schema import ROTATION_SETTING as SETTING
from hsmcore.state.schema import replace_row
from hsmcore.state.store import Store

_MARK: Final = "clock"
"""The ring's setting that holds the mark."""
_KEEP_NS: Final = 3_600 * 10**9


class StoreClock(SteadyClock):
    """`wall`, `boot`, `stepped`: as for SteadyClock."""

    def __init__(
        self,
        store: Store,
        wall: Callable[[], int] | None = None,
        boot: Callable[[], int] | None = None,
        stepped: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(wall, boot, stepped)
        self._store, self._begun, self._kept, self._own = store, False, 0, True

    async def take_up(self) -> None:
        """Go on from the mark. Idempotent. Raises StoreError."""
        if not self._begun:
            self.resume(*await self._store.run(_known))
            self._begun = True

    async def keep(self) -> None:
        """Keep the mark, once an hour. Raises StoreError."""
        now = self.now()
        if self._own and abs(now - self._kept) >= _KEEP_NS:
            mark = self.mark
            await self._store.run(lambda connection: replace_row(connection, SETTING, _MARK, value=mark))
            self._kept = now

    def reach(self, moment: int) -> None:
        """As SteadyClock.reach. A clock that went on from another one's time leaves no mark for the rest."""
        self._own = self._own and moment - self.now() < STEP_NS
        super().reach(moment)

    async def follow(self) -> int:
        """Take up the mark, keep it, and return the time. A ring that is not genuine has no mark. Raises StoreError."""
        with suppress(StoreNotGenuine):
            await self.take_up()
            await self.keep()
        return self.now()


def _known(connection: Connection) -> tuple[str, int]:
    """Return the mark, and the latest time that the ring knows."""
    mark = connection.execute(select(SETTING.c.value).where(SETTING.c.name == _MARK)).scalar()
    times = [(key.created_ns, key.activated_ns or 0, key.deactivated_ns or 0) for key in all_keys(connection)]
    return mark or "", max(map(max, times), default=0)
