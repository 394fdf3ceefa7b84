"""The state store of one host, as the key manager that runs on it holds it: others see that it runs, the register knows
which keys the store keeps promises for, and a start that is refused leaves no empty store behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from hsmcore.config import Config, KeyManagerConfig
from hsmcore.config.root import default_register
from hsmcore.errors import KeyMismatch
from hsmcore.state import Store, StoreBehind, StoreError, presence
from hsmcore.state.register import Keeper, Register
from hsmcore.state.sqlite import number_of, successor_in


def register() -> Register:
    """Return the register of this user."""
    try:
        return Register(default_register())
    except RuntimeError:  # a user without a home
        return Register(None)


def behind_hint(rules: KeyManagerConfig) -> str:
    """Return what to do about a store that the audit log goes on after: name the one that this host knows of the log,
    if it is there. May block."""
    here, log = os.path.realpath(rules.state_path), os.path.realpath(rules.audit_log_file or "")
    known = {one for one in register().all() if one.audit_log and os.path.realpath(one.audit_log) == log}
    others = {str(one.store) for one in known if str(one.store) != here and number_of(one.store) == one.id}
    if rules.manager is not None or len(others) != 1:  # several key managers have one log, and a store each
        return StoreBehind.default_hint
    return (
        f'Name the one that this host knows of the log: "stateFile": "{others.pop()}". Only if that one is lost: '
        "`hsmcore state reconcile --reason TEXT`."
    )


def require_current(rules: KeyManagerConfig, public_key: bytes) -> None:
    """Where keys are not rotated any more: raise KeyMismatch if a key ring of this host says that the key which is to
    sign was replaced. Blocks."""
    stores = [rules.state_path]
    with suppress(StoreError):  # a store that keeps a promise says so
        known = register().read(public_key)
        stores += [] if known is None else [known.store]
    for path in stores:
        if successor := successor_in(path, public_key):
            raise KeyMismatch(
                f"key {public_key.hex()} was replaced by key {successor}, says the key ring in state store {path}, and "
                "the configuration rotates no key, so the replaced one would sign",
                hint=f'Name the key that replaced it ("keyId": "{successor}" of a PKCS#11 token, in place of keyLabel '
                "and publicKey), or have keyRotation again as it was.",
            )


class OwnStore:
    """Belongs to one event loop."""

    def __init__(self, store: Store, rules: KeyManagerConfig, here: presence.Presence) -> None:
        self.store = store
        self._rules, self._presence = rules, here
        self._keeper: Keeper | None = None
        self._end: Callable[[], None] | None = None

    @classmethod
    async def open(cls, config: Config) -> Self | None:
        """Open the store; None: there is none, or a fleet's. Raises StoreError, SecretUnavailable."""
        rules = config.key_manager
        if rules.fleet is not None or not rules.keeps_state:
            return None
        store = await Store.open(rules.state_path, config.state_secret)
        try:
            here = await asyncio.to_thread(presence.Presence, rules.state_path)
        except BaseException:
            await store.close()
            raise
        return cls(store, rules, here)

    async def claim(self, keys: frozenset[bytes]) -> None:
        """Compare with what is known of the keys, before anything is signed with them. Raises StoreBehind for a store
        that is not the one of a key, or that is empty and may not be, StoreError."""
        rules = self._rules
        log, begins = rules.audit_log_file or "", not rules.require_state
        self._keeper = Keeper(register(), rules.state_path, log, keys, begins=begins)
        self._end = await self.store.keep(self._keeper)

    @property
    def number(self) -> int:
        """The store's id; 0 before `claim`."""
        return 0 if self._keeper is None else self._keeper.number

    async def look(self) -> None:
        """Note what another process has promised in the store. Raises StoreBehind, StoreError."""
        if self._keeper is not None and not self._keeper.noted:
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
