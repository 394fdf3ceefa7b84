"""Background services that survive a restart: the stored key ring, its rotation, and notices to operators."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.config import Config, KeyManagerConfig
from hsmcore.config.root import default_register
from hsmcore.failover.levels import EMERGENCY
from hsmcore.failover.path import SigningPath
from hsmcore.handover.base import ADD_SETTLED, Handover, can_be_asked, require_whole
from hsmcore.manager.rotation.context import ManagerPort
from hsmcore.state import StoreBusy, StoreError

if TYPE_CHECKING:
    from hsmcore.manager.notices import NoticeService
    from hsmcore.manager.rotation.service import RotationService
    from hsmcore.recovery.marks import Marks
    from hsmcore.recovery.own_store import OwnStore
    from hsmcore.recovery.state_backup import StateBackups
    from hsmcore.state import Store

_LOOK_SECONDS: Final = 1.0
_HOUR_NS: Final = 3_600_000_000_000
STORE_NOT_GENUINE: Final = "store-not-genuine"
NOT_SEALED_HINT: Final = (
    "A writer of its file is believed: give stateSecret, then adopt the store (`hsmcore state seal --help`)."
)
_NOTICED: Final = {
    "failover": "failover",
    "failback": "failover",
    "emergency-operation": "emergency",
    STORE_NOT_GENUINE: "failure",
}
"""Events that become notices, and the kind of notice."""
_KEPT: Final = (
    "failover.service", "manager.key_sets", "manager.notices", "manager.policy.watermark", "manager.publishing",
    "manager.rotation.service", "recovery.key_domains", "recovery.own_store", "recovery.state_backup",
)  # fmt: skip
"""What only a key manager that keeps state needs, with SQLAlchemy behind it."""


class BackgroundServices:
    """State store, rotation and notices of one key manager; empty without `keyRotation`, `notices`, or levels and a
    `stateSecret`. Belongs to the event loop that opens it."""

    def __init__(self, config: Config) -> None:
        for name in _KEPT if config.key_manager.keeps_state else ():
            import_module(f"hsmcore.{name}")  # now: to load it later would hold the event loop up
        self.config = config
        """The configuration that the members start with."""
        self.pinned: frozenset[str] = frozenset()
        """The members that start with the key ring's current key."""
        self.rotation: RotationService | None = None
        self.notices: NoticeService | None = None
        self._store: Store | None = None
        self._own: OwnStore | None = None
        self._marks: Marks | None = None
        self._audit: AuditLog | None = None
        self.state_backups: StateBackups | None = None
        self._scope = Scope()

    def announce_with(self, handover: Handover) -> None:
        """As KeyManager.on_rotation."""
        require_whole(handover)
        if not can_be_asked(handover):
            get_logger().warning("the handover cannot say which key the chain obeys", hint=ADD_SETTLED)
        if self.rotation is not None:
            self.rotation.handover = handover

    @classmethod
    async def open(
        cls, config: Config, audit: AuditLog | None, handover: Handover | None = None, *, rotates: bool = True
    ) -> Self:
        """Open the state store if anything needs it, and compare it with the audit log, which is open; None: nothing is
        signed. `rotates`: see create_key_manager. Raises HsmError, and leaves nothing open then."""
        background = cls(config)
        background._audit = audit
        if not config.key_manager.keeps_state:
            return background
        from hsmcore.recovery.marks import Marks
        from hsmcore.recovery.own_store import OwnStore

        try:
            if (own := await OwnStore.open(config)) is not None:
                background._own = own
                background._scope.defer(own.close)
            if audit is not None and (marks := await Marks.open(config, audit)) is not None:
                background._marks = marks
                background._scope.defer(marks.close)
            return await background._open(handover, rotates=rotates)
        except BaseException:
            await background.close()
            raise

    async def _open(self, handover: Handover | None, *, rotates: bool) -> Self:
        from hsmcore.manager.notices import NoticeService
        from hsmcore.manager.rotation.service import RotationService
        from hsmcore.state import Store

        config = self.config
        rules = config.key_manager
        rotation = rules.active_rotation
        if rotation is not None and not rules.descriptor.rotates:
            get_logger().warning(f"an {rules.type} key is not rotated", path=f"{rules.where}.keyRotation")
            rotation = None
        sealed = config.state_secret is not None
        if not sealed and (rotation is not None or config.has_emergency):
            get_logger().warning("the state store is not sealed", store=rules.state_name, hint=NOT_SEALED_HINT)
        if rotation is None and rules.notices is None and not (sealed and rules.has_levels):
            return self
        self._store = store = await Store.open(rules.state_place, config.state_secret)
        self._scope.defer(store.close)
        notices = self.notices = NoticeService(store, rules.notices)
        self._scope.defer(notices.close)
        if rotation is not None:
            before = rules.notices.before_hours * _HOUR_NS if rules.notices is not None else 0
            self.rotation = RotationService(config, rotation, store, notices.announce, before, rotates=rotates)
            self._scope.defer(self.rotation.close)
            self.rotation.handover = handover
            self.config, self.pinned = await self.rotation.configured()
        return self

    async def claim(self, path: SigningPath) -> None:
        """The members run: compare the store with what this host knows of their keys, before anything is signed. Raises
        StoreBehind, StoreError, KeyMismatch for a key that was replaced, DomainMismatch for one that has bound
        positions in another domain; a member that starts later is refused for it."""
        rules = self.config.key_manager
        if rules.own.descriptor.ephemeral:
            return
        if self._own is not None:
            await self._own.claim(frozenset(version.public_key for version in path.signing()))
        if rules.fleet is None and rules.active_rotation is None and (self._own is not None or _may_know(rules)):
            await asyncio.to_thread(_require_current, rules, path.signing()[0].public_key)
        if rules.keeps_state or _may_know(rules):
            domains = await asyncio.to_thread(import_module, "hsmcore.recovery.key_domains")
            for endpoint in path.endpoints:
                log = None if endpoint.level_name == EMERGENCY else self._audit  # its keys are new, and it must be fast
                endpoint.admits = partial(domains.require, self.config, log=log)
            await domains.require(self.config, {version.public_key for version in path.signing()}, self._audit)

    async def begin(self, port: ManagerPort, started: KeyVersion, events: Events) -> None:
        """The members run: resume an unfinished rotation, deliver notices, watch the seal of the store. Raises
        KeyMismatch, StoreNotGenuine."""
        if not self.config.key_manager.keeps_state:
            return
        from hsmcore.recovery.state_backup import StateBackups
        from hsmcore.state.keys import require_no_other_ring

        self.state_backups = StateBackups.begin(self.config, self._audit)
        if self.state_backups is not None:
            self._scope.defer(self.state_backups.close)
        if self.notices is not None:
            notices = self.notices
            for event, kind in _NOTICED.items():
                self._scope.defer(events.on(event, partial(notices.note, kind, event)))
            notices.begin()
        watched = self._store or (None if self._own is None else self._own.store)
        if watched is not None:
            await self._watch(watched, port)
        if self.rotation is not None and self._store is not None and self.config.key_manager.state_file is None:
            await require_no_other_ring(self._store, started.public_key)
        if self._marks is not None:
            await self._marks.begin()
        if self.rotation is not None and self._store is not None:
            await self.rotation.begin(port, started)

    @property
    def store_number(self) -> int:
        """The id of the state store's file; 0: there is none."""
        return 0 if self._own is None else self._own.number

    @property
    def store_problems(self) -> Mapping[str, str] | None:
        """Why the state store is not genuine, by scope; None: there is none, or a fleet's without a seal. Any
        thread."""
        if self._own is not None:
            return self._own.store.problems
        return None if self._store is None or self.config.state_secret is None else self._store.problems

    async def _watch(self, store: Store, port: ManagerPort) -> None:
        loop = asyncio.get_running_loop()

        def told(scope: str, problem: str) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._tell, port, scope, problem)

        await store.look()
        self._scope.defer(store.watch(told))
        for scope, problem in store.problems.items():
            self._tell(port, scope, problem)
        failed = "the state store was not looked at"
        self._scope.every(_LOOK_SECONDS, partial(self._look, store), failed, at_once=False)

    async def _look(self, store: Store) -> None:
        with suppress(StoreError):  # an act that needs the store says so
            await store.look()
            if self._own is not None:
                await self._own.look()

    @staticmethod
    def _tell(port: ManagerPort, scope: str, problem: str) -> None:
        if problem:
            port.tell(STORE_NOT_GENUINE, scope=scope, reason=problem)

    async def close(self) -> None:
        """Stop all services; the next start resumes unfinished work. Idempotent."""
        await self._scope.close()


def _may_know(rules: KeyManagerConfig) -> bool:
    """Return whether a store of this host may have a key ring, though this key manager keeps nothing."""
    with suppress(RuntimeError):  # a user without a home
        return any(map(os.path.exists, (rules.state_path, default_register())))  # which never raises
    return False


def _require_current(rules: KeyManagerConfig, public_key: bytes) -> None:
    from hsmcore.recovery.own_store import require_current  # loaded outside the event loop

    require_current(rules, public_key)


def missing(rules: KeyManagerConfig) -> Path | None:
    """Return the path of a store of this host that the first start makes; None: there is one, or none is kept."""
    kept = rules.fleet is None and rules.keeps_state
    return rules.state_path if kept and not rules.state_path.exists() else None


async def abandon(path: Path | None) -> None:
    """Remove a store that a start has made, which was refused; not if something is in it, or another process uses it:
    an operator who restores a backup is not to find one there."""
    if path is not None:
        from hsmcore.state.sqlite import discard

        with suppress(StoreBusy):
            await asyncio.to_thread(discard, path)
