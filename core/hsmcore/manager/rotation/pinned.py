"""The configuration and the key ring: the configuration names the first key of the ring, the ring the one that signs.

At the start the current key's id and public key replace those in the providers' settings. So the configured key need
not exist any more, and no other key can take the current one's place.

A ring that is not genuine decides nothing: the configured key signs, if the ring does not contradict it.
"""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy.exc import SQLAlchemyError

from hsmcore.base.keyring import KeyVersion
from hsmcore.config import Config, Provider, ProviderSettings, all_members
from hsmcore.state import Keys, Store, StoredKey, StoreNotGenuine
from hsmcore.state.keys import active_key


def configured_as(config: Config) -> str:
    """Return the configuration's description of its key: if this text changes, the configuration was changed."""
    settings = config.key_manager.config
    names = ("key_label", "key_id", "key_handle", "public_key")
    found = {name: getattr(settings, name, None) for name in names}
    return orjson.dumps({name: value for name, value in found.items() if value is not None}).decode()


async def current_of(config: Config, keys: Keys) -> StoredKey | None:
    """Return the ring's current key; None if the ring has not begun, or the configured key was changed since."""
    current = await keys.current()
    return current if current is None or await keys.setting("configured") == configured_as(config) else None


def may_have_ring(config: Config) -> bool:
    """Return whether keys are rotated, and there is a store that may have a key ring."""
    rules = config.key_manager
    return rules.active_rotation is not None and (rules.fleet is not None or rules.state_path.is_file())


async def as_started(config: Config) -> tuple[Config, list[StoredKey]]:
    """Return the configuration that a key manager would sign with now, and the key ring; no ring if there is none, if
    it is not genuine, or if the configured key decides. The store is only read. Raises StoreError."""
    if not may_have_ring(config):
        return config, []
    store = await Store.open_to_read(config.key_manager.state_place, config.state_secret)
    try:
        keys, seal = Keys(store), await store.seal_status()
        current = None if seal is not None and seal.problems else await current_of(config, keys)
        return (config, []) if current is None else (pinned(config, current)[0], await keys.all())
    finally:
        await store.close()


async def require_same_key(store: Store, started: KeyVersion) -> None:
    """Raise StoreNotGenuine unless the current key of a ring that is not genuine is the key that the configuration has
    started with. So a forged ring chooses no key, and a ring that was damaged after a rotation does not bring back the
    key before it."""
    try:
        current = await store.run(active_key, shows=True)
    except (ValueError, TypeError, SQLAlchemyError):
        current = None  # a forged row
    if current is None or current.public_key != started.public_key:
        raise StoreNotGenuine(
            f"{store.name}: it is not genuine, and its current key is not {started.id}, which the configuration names",
            hint="Compare what `hsmcore state seal` shows, and adopt it; or name the key that is to sign in the "
            "configuration, and another store (stateFile, fleet.store).",
        )


def aliases(config: Config) -> dict[str, str]:
    """Return the alias that the configuration names its key with, by member."""
    rules = config.key_manager
    failover = rules.failover
    more = (*(failover.primary or ()), *(failover.secondary or ())) if failover is not None else ()
    return {
        member.name: member.config.key_alias
        for member in all_members((rules, *more))
        if member.config.key_alias is not None
    }


def pinned(config: Config, current: StoredKey) -> tuple[Config, frozenset[str]]:
    """Return the configuration in which members sign with the current key, and their names: those that hold it by the
    ring, and those that may sign with no other key. The latter may be new, or have got a new name, or lack the key."""
    rules = config.key_manager
    failover = rules.failover
    others = frozenset(failover.accept_other_keys if failover is not None else ())
    names: set[str] = set()

    def settings(provider: Provider, level: str) -> ProviderSettings:
        members = {member.name for member in all_members((provider,))}
        bound = current.origin != "configured" and level not in others
        if not bound and members.isdisjoint(current.members):
            return provider.config
        names.update(members)
        return provider.config.pinned(
            current.key_id, current.public_key.hex(), current.algorithm, configured=current.origin == "configured"
        )

    changes: dict[str, Any] = {"config": settings(rules, "primary")}
    if failover is not None:
        lists: dict[str, tuple[Provider, ...]] = {}
        for level, providers in (("primary", failover.primary), ("secondary", failover.secondary)):
            if providers is not None:  # a provider keeps its name: some are named after their key
                lists[level] = tuple(
                    provider.named(provider.name).model_copy(update={"config": settings(provider, level)})
                    for provider in providers
                )
        changes["failover"] = failover.model_copy(update=lists)
    return config.model_copy(update={"key_manager": rules.named(rules.name).model_copy(update=changes)}), frozenset(
        names
    )
