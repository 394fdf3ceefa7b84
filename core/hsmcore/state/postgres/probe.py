"""A look at a fleet's database from outside: which server answers, how it is reached, and whether it keeps what it
confirms. Makes and changes nothing, and needs no state store there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg

from hsmcore.state.errors import StoreError
from hsmcore.state.postgres.certificate import Certified, explained
from hsmcore.state.postgres.link import FACTS, HINT, SYSTEM, Facts
from hsmcore.state.postgres.place import PREFIX, DatabaseServer, schema_name
from hsmcore.state.postgres.url import resolved

_STATEMENT_TIMEOUT: Final = "SET LOCAL statement_timeout = 5000"
_SCHEMAS: Final = "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)"
_STANDBYS: Final = "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')"
_SEES_THEM: Final = "SELECT pg_has_role('pg_read_all_stats', 'USAGE')"


@dataclass(frozen=True, slots=True)
class Look:
    """The findings of a probe."""

    where: str
    """Hosts with their ports, and the database."""
    checks_server: bool
    """Whether no third party can answer in the server's place: it is this host, or its certificate is checked."""
    system: str
    facts: Facts
    exists: bool
    """Whether the fleet has its tables there."""
    standbys: int | None
    """Synchronous standbys that are connected; None: this user may not see them."""
    pooled: bool
    """Whether a pooler is between: the process that answers is not the one that the connection was told of."""
    certified: Certified


def look_at(server: DatabaseServer) -> Look:
    """Ask the server. Blocks. Raises StoreError, SecretUnavailable."""
    shown = f"state store of fleet {server.name}"
    given = resolved(server.store.url, shown)
    certified = Certified.of(given)
    try:
        with psycopg.connect(autocommit=True, prepare_threshold=None, **given.options()) as connection:
            connection.execute("BEGIN READ ONLY")
            connection.execute(_STATEMENT_TIMEOUT)
            facts = Facts(*connection.execute(FACTS.encode()).fetchone() or ())
            schemas = {name for (name,) in connection.execute(_SCHEMAS, (PREFIX,))}
            pooled = connection.info.backend_pid != facts.backend
            [system] = connection.execute(SYSTEM).fetchone() or ("",)
            [sees] = connection.execute(_SEES_THEM).fetchone() or (False,)
            [count] = connection.execute(_STANDBYS).fetchone() or (0,)
    except (psycopg.Error, TypeError) as error:
        said = explained(error, certified) if isinstance(error, psycopg.Error) else error
        raise StoreError(f"{shown} at {given.where}: {said}", hint=HINT) from None
    return Look(
        where=given.where,
        checks_server=given.is_here or given.sslmode != "require",
        system=str(system),
        facts=facts,
        exists=schema_name(server.name, server.manager) in schemas,
        standbys=int(count) if sees else None,
        pooled=pooled,
        certified=certified,
    )
