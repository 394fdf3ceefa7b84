"""Where a fleet's rows are: what is to be known of its database, and the name of its schema there."""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from hsmcore.state.seal import SealSecret

PREFIX: Final = "hsmcore_"
_LONGEST: Final = 63  # bytes of a name in PostgreSQL


class FleetUrl(Protocol):
    """Where the URL stands: hsmcore.config.FleetStore."""

    @property
    def url(self) -> SealSecret: ...


class DatabaseServer(Protocol):
    """The database of a fleet: hsmcore.config.Fleet."""

    @property
    def store(self) -> FleetUrl: ...
    @property
    def name(self) -> str: ...
    @property
    def manager(self) -> str | None:
        """The key manager, where there are several: each has its own schema."""

    @property
    def single_node(self) -> bool: ...
    @property
    def ttl_ms(self) -> int: ...


def schema_name(fleet: str, manager: str | None = None) -> str:
    """Return the schema of a fleet's key manager. A fleet's name has no two dashes in a row, and none at its end."""
    both = PREFIX + (fleet if manager is None else f"{fleet}__{manager}").replace("-", "_")
    if len(both) <= _LONGEST:
        return both
    return f"{both[: _LONGEST - 9]}_{hashlib.sha256(both.encode()).hexdigest()[:8]}"
