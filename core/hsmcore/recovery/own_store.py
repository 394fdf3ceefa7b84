"""The state store of one host, as the key manager that runs on it holds it: others see that it runs, the register knows
which keys the store keeps promises for, and a start that is refused leaves no empty store behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Self

from hsmcore.base.scope import Scope
from hsmcore.config import Config, KeyManagerConfig
from hsmcore.config.root import default_register
from hsmcore.errors import KeyMismatch
from hsmcore.members.control import ControlPlane
from hsmcore.members.control.plane import CLOSE_SECONDS
from hsmcore.recovery import token_notes
from hsmcore.state import Store, StoreBehind, StoreError, presence
from hsmcore.state.register import Keeper, Register
from hsmcore.state.sqlite import number_of, successor_in


def register() -> Register:
    """Return the register of this user."""
    try:
        return Register(default_register())
    except RuntimeError:  # a user without a home
        return Register(None)


def _unknown(keys: Iterable[bytes]) -> frozenset[bytes]:
    known, unknown = register(), set[bytes]()
    for key in keys:
        with suppress(StoreError):  # the keeper says so
            unknown |= {key} if known.read(key) is None else set()
    return frozenset(unknown)


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
        self._tokens: Callable[[], Sequence[ControlPlane]] = tuple
        self._on_tokens = frozenset[bytes]()
        self._scope = Scope()
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

    async def claim(self, keys: frozenset[bytes], tokens: Callable[[], Sequence[ControlPlane]]) -> None:
        """Compare with what is known of the keys, before anything is signed with them. `tokens`: those of the running
        members that may keep notes. Raises StoreBehind for a store that is not the one of a key, or that is empty and
        may not be, StoreError."""
        rules = self._rules
        log, begins = rules.audit_log_file or "", not rules.require_state
        self._tokens = tokens if token_notes.is_due(rules) else tuple
        unknown = await asyncio.to_thread(_unknown, keys) if self._tokens() else ()
        told = await token_notes.told(self._tokens(), unknown) if unknown else {}
        self._keeper = Keeper(register(), rules.state_path, log, keys, begins=begins, told=told)
        self._end = await self.store.keep(self._keeper)

    @property
    def number(self) -> int:
        """The store's id; 0 before `claim`."""
        return 0 if self._keeper is None else self._keeper.number

    async def look(self) -> None:
        """Note what another process has promised in the store; begin to have the tokens say what is noted. Raises
        StoreBehind, StoreError."""
        if self._keeper is None:
            return
        if not self._keeper.noted:
            await self.store.run(self._keeper.settle)
        fresh = {key: entry for key, entry in self._keeper.noted.items() if key not in self._on_tokens}
        if fresh and (tokens := self._tokens()):
            self._on_tokens |= fresh.keys()  # a token that refuses is asked again by the next start
            failed = "no token was told which state store is the key's"
            self._scope.start(token_notes.note(tokens, fresh.values()), failed=failed)

    async def close(self) -> None:
        """Close the store; the tokens are told of a first promise until then. Idempotent."""
        if self._keeper is not None and self._keeper.wrote and not self._keeper.noted.keys() <= self._on_tokens:
            with suppress(StoreError):
                await self.look()
            await self._scope.finish(CLOSE_SECONDS)  # a short program has no other moment
        end, self._end = self._end, None
        if end is not None:
            end()
        try:
            await self._scope.close()
            await self.store.close()
        finally:
            self._presence.end()


def is_attended(rules: KeyManagerConfig) -> bool:
    """Return whether a key manager runs on the state store of this host; False of a fleet. May block. Raises StoreError
    if it runs on a file that is no longer at its place."""
    return rules.fleet is None and presence.is_attended(rules.state_path)
