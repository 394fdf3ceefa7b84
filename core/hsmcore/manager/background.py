"""Background services that survive a restart: the stored key ring, its rotation, and notices to operators."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, Self

from hsmcore.config import Config
from hsmcore.events import Events
from hsmcore.handover.base import Handover
from hsmcore.keyring import KeyVersion
from hsmcore.log import get_logger
from hsmcore.manager.notices import NoticeService
from hsmcore.rotation.context import ManagerPort
from hsmcore.rotation.service import RotationService
from hsmcore.state import Store

_HOUR_NS: Final = 3_600_000_000_000
_NOTICED: Final = {"failover": "failover", "failback": "failover", "emergency-operation": "emergency"}
"""Events that become notices, and the kind of notice."""


class BackgroundServices:
    """State store, rotation and notices of one key manager; empty without `keyRotation` and `notices`. Belongs to the
    event loop that opens it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        """The configuration that the members start with."""
        self.pinned: frozenset[str] = frozenset()
        """The members that start with the key ring's current key."""
        self.rotation: RotationService | None = None
        self.notices: NoticeService | None = None
        self._store: Store | None = None
        self._subscriptions: list[Callable[[], None]] = []

    @classmethod
    async def open(cls, config: Config, handover: Handover | None = None, *, rotates: bool = True) -> Self:
        """Open the state store if anything needs it. `rotates`: see create_key_manager. Raises HsmError, and leaves
        nothing open then."""
        background = cls(config)
        rules = config.key_manager
        rotation = rules.active_rotation
        if rotation is not None and not rules.descriptor.rotates:
            get_logger().warning(f"an {rules.type} key is not rotated", path=f"{rules.where}.keyRotation")
            rotation = None
        if rotation is None and rules.notices is None:
            return background
        background._store = store = await Store.open(rules.state_path)
        try:
            notices = background.notices = NoticeService(store, rules.notices)
            if rotation is not None:
                before = rules.notices.before_hours * _HOUR_NS if rules.notices is not None else 0
                background.rotation = RotationService(
                    config, rotation, store, notices.announce, before, rotates=rotates
                )
                background.rotation.handover = handover
                background.config, background.pinned = await background.rotation.configured()
        except BaseException:
            await store.close()
            raise
        return background

    async def begin(self, port: ManagerPort, started: KeyVersion, events: Events) -> None:
        """The members run: resume an unfinished rotation, deliver notices. Raises KeyMismatch."""
        if self.notices is not None:
            notices = self.notices
            for event, kind in _NOTICED.items():
                self._subscriptions.append(events.on(event, partial(notices.note, kind, event)))
            notices.begin()
        if self.rotation is not None:
            await self.rotation.begin(port, started)

    async def close(self) -> None:
        """Stop all services; the next start resumes unfinished work. Idempotent."""
        async with AsyncExitStack() as rest:  # from the last line to the first, whatever one of them raises
            if self._store is not None:
                rest.push_async_callback(self._store.close)
            if self.notices is not None:
                rest.push_async_callback(self.notices.close)
            if self.rotation is not None:
                rest.push_async_callback(self.rotation.close)
            for end in self._subscriptions:
                rest.callback(end)
