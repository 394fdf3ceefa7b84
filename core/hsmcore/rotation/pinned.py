"""The configuration and the key ring: the configuration names the first key of the ring, the ring the one that signs.

At the start the current key's id and public key replace those in the providers' settings. So the configured key need
not exist any more, and no other key can take the current one's place.
"""

from __future__ import annotations

from typing import Any

import orjson

from hsmcore.config import Config, Provider, ProviderSettings, all_members
from hsmcore.state import StoredKey


def configured_as(config: Config) -> str:
    """Return the configuration's description of its key: if this text changes, the configuration was changed."""
    settings = config.key_manager.config
    names = ("key_label", "key_id", "key_handle", "public_key")
    found = {name: getattr(settings, name, None) for name in names}
    return orjson.dumps({name: value for name, value in found.items() if value is not None}).decode()


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


def pinned(config: Config, current: StoredKey) -> Config:
    """Return the configuration in which the members that hold the current key sign with it."""
    rules = config.key_manager
    changes: dict[str, Any] = {"config": _settings(rules, current)}
    if rules.failover is not None:
        lists = {
            name: tuple(_provider(provider, current) for provider in providers)
            for name in ("primary", "secondary")
            if (providers := getattr(rules.failover, name)) is not None
        }
        changes["failover"] = rules.failover.model_copy(update=lists)
    return config.model_copy(update={"key_manager": rules.named(rules.name).model_copy(update=changes)})


def _provider(provider: Provider, current: StoredKey) -> Provider:
    # Some are named after their key.
    return provider.named(provider.name).model_copy(update={"config": _settings(provider, current)})


def _settings(provider: Provider, current: StoredKey) -> ProviderSettings:
    settings = provider.config
    holds = any(member.name in current.members for member in all_members((provider,)))
    if not holds:
        return settings
    return settings.pinned(
        current.key_id, current.public_key.hex(), current.algorithm, configured=current.origin == "configured"
    )
