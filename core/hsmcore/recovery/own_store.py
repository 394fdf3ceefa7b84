"""The state store of one host, as the key manager that runs on it holds it: others see that it runs, the register knows
which keys the store keeps promises for, and a start that is refused leaves no empty store behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from hsmcore.config import Config, KeyManagerConfig
from hsmcore.config.root import default_state
from hsmcore.state import Store, presence
from hsmcore.state.register import Keeper, Register


def register() -> Register:
    """Return the register of this user."""
    try:
        return Register(default_state())
    except RuntimeError:  # a user without a home
        return Register(None)


class OwnStore:
    """Belongs to one event loop."""

    def __init__(self, store: Store, path: Path, log: str, here: presence.Presence) -> None:
        self.store = store
        self._path, self._log, self._presence = path, log, here
        self._keeper: Keeper | None = None
        self._end: Callable[[], None] | None = None

    @classmethod
    async def open(cls, config: Config) -> Self | None:
        """Open the store; None: there is none, or a fleet's. Raises StoreError, SecretUnavailable."""
        rules = config.key_manager
        if rules.fleet is not None or not rules.keeps_state:
            return None
        path = rules.state_path
        store = await Store.open(path, config.state_secret)
        try:
            here = await asyncio.to_thread(presence.Presence, path)
        except BaseException:
            await store.close()
            raise
        return cls(store, path, rules.audit_log_file or "", here)

    async def claim(self, keys: Iterable[bytes]) -> None:
        """Compare with what is known of the keys, before anything is signed with them. Raises StoreBehind for a store
        that is not the one of a key, StoreError."""
        self._keeper = Keeper(register(), self._path, self._log, keys)
        self._end = await self.store.keep(self._keeper)

    @property
    def number(self) -> int:
        """The store's id; 0 before `claim`."""
        return 0 if self._keeper is None else self._keeper.number

    async def look(self) -> None:
        """Note what another process has promised in the store. Raises StoreBehind, StoreError."""
        if self._keeper is not None and not self._keeper.has_noted:
            await self.store.run(self._keeper.settle)

    async def close(self) -> None:
        """Close the store. Idempotent."""
        end, self._end = self._end, None
        if end is not None:
            end()
        try:
            await self.store.close()
        finally:
            self._presence.end()


def is_attended(rules: KeyManagerConfig) -> bool:
    """Return whether a key manager runs on the state store of this host; False of a fleet. May block. Raises StoreError
    if it runs on a file that is no longer at its place."""
    return rules.fleet is None and presence.is_attended(rules.state_path)
