"""The clock by which a rotation is due, an overlap ends, and a key is destroyed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hsmcore.base.log import get_logger
from hsmcore.manager.rotation.schedule import moment
from hsmcore.state import Keys, Store
from hsmcore.state.clock import StoreClock

ACCEPTED: Final = "clock-accepted"
"""The setting that holds the mark of a clock which an operator vouches for, until it is taken up; or ""."""


class RotationClock(StoreClock):
    """The clock of a key ring's store. `wall`, `boot`: the machine's clocks."""

    def __init__(
        self, store: Store, wall: Callable[[], int] | None = None, boot: Callable[[], int] | None = None
    ) -> None:
        super().__init__(store, wall, boot, _say)
        self._keys, self._agreed = Keys(store), False

    async def look(self) -> bool:
        """Look at the clocks, and keep the mark once an hour. Returns whether they agree since this look. Raises
        StoreError."""
        await self.take_up()
        if accepted := await self._keys.setting(ACCEPTED):
            self.resume(accepted, 0)
            await self._keys.set_setting(ACCEPTED, "")
            self._kept = 0
        await self.keep()
        agreed, self._agreed = self._agreed, self.agrees
        return self._agreed and not agreed


def _say(before: int, now: int) -> None:
    get_logger().warning(
        "the clock was set: until it has held for a day, no rotation begins by it and no key ends by it",
        before=moment(before).isoformat(),
        now=moment(now).isoformat(),
    )
