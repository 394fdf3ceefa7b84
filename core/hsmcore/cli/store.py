"""For commands that work on the state store of a configuration with key rotation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.config import Config, KeyRotation
    from hsmcore.state import Store

T = TypeVar("T")


def rotation_rules(config: Config) -> KeyRotation:
    """Raises ConfigurationError without an enabled keyRotation."""
    rules = config.key_manager
    if rules.key_rotation is None or not rules.key_rotation.enabled:
        raise ConfigurationError.of(
            [ConfigFault(f"{rules.where}.keyRotation", "is missing or not enabled, so no key is rotated")],
            hint='Add "keyRotation": {"intervalDays": 30} to the configuration.',
        )
    return rules.key_rotation


def on_state(config: Config, work: Callable[[Store], Awaitable[T]]) -> T:
    """Do something with the state store that a configuration names."""
    return asyncio.run(in_state(config, work))


async def in_state(config: Config, work: Callable[[Store], Awaitable[T]]) -> T:
    """The same within an event loop."""
    from hsmcore.state import Store

    store = await Store.open(config.key_manager.state_path)
    try:
        return await work(store)
    finally:
        await store.close()


async def rotates_somewhere(store: Store) -> bool:
    """Whether a running key manager rotates the keys of this store."""
    from hsmcore.state import Desired

    return any("rotation" in report for report in await Desired(store).running())


def when(time_ns: int | None) -> str | None:
    """Unix nanoseconds for people, in UTC."""
    return None if time_ns is None else datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="seconds")
