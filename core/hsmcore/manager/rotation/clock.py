"""The clock by which a rotation is due, an overlap ends, and a key is destroyed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hsmcore.base.log import get_logger
from hsmcore.base.steady import SteadyClock
from hsmcore.manager.rotation.schedule import moment
from hsmcore.state import Keys

_KEPT: Final = "clock"
"""The ring's setting that holds the mark."""
ACCEPTED: Final = "clock-accepted"
"""The setting that holds the mark of a clock which an operator vouches for, until it is taken up; or ""."""
_KEEP_NS: Final = 3_600 * 10**9


class RotationClock(SteadyClock):
    """A steady clock whose mark lies in the key ring's store. `wall`, `boot`: the machine's clocks."""

    def __init__(
        self, keys: Keys, wall: Callable[[], int] | None = None, boot: Callable[[], int] | None = None
    ) -> None:
        super().__init__(wall, boot, _say)
        self._keys, self._begun, self._kept, self._agreed = keys, False, 0, False

    async def look(self) -> bool:
        """Look at the clocks, and keep the mark once an hour. Returns whether they agree since this look. Raises
        StoreError."""
        await self.take_up()
        if accepted := await self._keys.setting(ACCEPTED):
            self.resume(accepted, 0)
            await self._keys.set_setting(ACCEPTED, "")
            self._kept = 0
        now = self.now()
        if abs(now - self._kept) >= _KEEP_NS:
            await self._keys.set_setting(_KEPT, self.mark)
            self._kept = now
        agreed, self._agreed = self._agreed, self.agrees
        return self._agreed and not agreed

    async def take_up(self) -> None:
        """Go on from the mark. Idempotent. Raises StoreError."""
        if not self._begun:
            ring = await self._keys.all()
            times = [(key.created_ns, key.activated_ns or 0, key.deactivated_ns or 0) for key in ring]
            self.resume(await self._keys.setting(_KEPT) or "", max(map(max, times), default=0))
            self._begun = True


def _say(before: int, now: int) -> None:
    get_logger().warning(
        "the clock was set: until it has held for a day, no rotation begins by it and no key ends by it",
        before=moment(before).isoformat(),
        now=moment(now).isoformat(),
    )
