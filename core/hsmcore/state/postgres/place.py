"""Where a fleet's rows are: what is to be known of its database, and the name of its schema there."""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from sqlalchemy import Connection, text

from hsmcore.state.errors import StoreError
from hsmcore.state.seal import SealSecret

PREFIX: Final = "hsmcore_"
_SCHEMAS: Final = text("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, :prefix) ORDER BY 1")
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


def refuse_others(connection: Connection, server: DatabaseServer, shown: str, *, begins: bool) -> None:
    """Refuse to begin in the database of another fleet, unless an operator has asked for it, and in one whose fleet
    has another number of key managers: under a name with a typing error, nothing would seem to be bound."""
    own, schema = schema_name(server.name), schema_name(server.name, server.manager)
    schemas = connection.execute(_SCHEMAS, {"prefix": PREFIX}).scalars().all()
    if schema in schemas:
        return
    several = [other for other in schemas if other.startswith(f"{own}__")]
    for other in schemas:
        if other in (own, *several):
            if (other == own) != (schema == own):
                raise StoreError(
                    f"{shown}: it holds {other}, and {schema} would begin beside it",
                    hint="Rename that schema if it is this key manager's: ALTER SCHEMA … RENAME TO …",
                )
        elif not begins:
            raise StoreError(
                f"{shown}: it is the database of another fleet, {other.removeprefix(PREFIX)}",
                hint="Correct fleet.name. Only if several fleets are to share the database: hsmcore fleet migrate",
            )
