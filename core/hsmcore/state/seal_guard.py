"""The seal's place in a transaction: which scopes a statement uses, and that each is checked before its first use."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import UpdateBase

from hsmcore.state.errors import StoreError, StoreNotGenuine
from hsmcore.state.seal import EARLIER, SCOPE, Seal, is_sqlite, seal_row
from hsmcore.state.sealed_rows import HOT, SEALED


class SealGuard:
    """One transaction: checks each scope before its first use, and seals again those that it writes. `lenient`: rows of
    a scope that is not genuine may be read, to show them. `seal`: None if the configuration has no stateSecret.
    `unsealed`: whether the store is known to have no seal."""

    def __init__(self, connection: Connection, seal: Seal | None, *, lenient: bool, unsealed: bool) -> None:
        self._connection, self._seal, self._lenient = connection, seal, lenient
        self._vouched: tuple[str, dict[str, str]] | None = None
        self._problems: dict[str, str] = {}
        self._written: set[str] = set()
        self._unsealed = unsealed
        self._busy = False

    def before(self, statement: Any) -> None:
        """Check the scopes that a statement uses. Raises StoreNotGenuine; StoreError for a write without the secret."""
        writes = isinstance(statement, UpdateBase)
        if self._busy or (self._seal is None and not writes):
            return
        self._busy = True
        try:
            used = scopes_of(statement)
            for scope in filter(used.__contains__, SEALED):
                self._require(scope, writes=writes)
        finally:
            self._busy = False

    def end(self) -> int:
        """Seal what was written. Returns the seal's new counter, or 0."""
        self._busy = True
        if self._seal is None or not self._written or self._vouched is None:
            return 0
        if not is_sqlite(self._connection):
            # SQLite's transaction keeps others from the schema. Here no trigger can come once a table is written.
            foreign = self._seal.foreign(self._connection)
            if foreign:
                raise StoreNotGenuine(f"the state store is not genuine: {foreign} is not of hsmcore's making")
        return self._seal.renew(self._connection, self._vouched[1], self._written)

    def _require(self, scope: str, *, writes: bool) -> None:
        if self._seal is None:
            if writes and not self._unsealed:
                if seal_row(self._connection) is not None:
                    raise StoreError("the state store is sealed", hint="Give this process the stateSecret too.")
                self._unsealed = True
            return
        if scope not in self._problems:
            if self._vouched is None:
                self._vouched = self._seal.read(self._connection)
            broken, vouched = self._vouched
            self._problems[scope] = broken or self._seal.problem(self._connection, scope, vouched)
            if broken != EARLIER:  # that is over with this transaction
                self._seal.note(scope, self._problems[scope])
        problem = self._problems[scope]
        if problem and (writes or not self._lenient):
            raise StoreNotGenuine(f"the state store is not genuine: {scope}: {problem}")
        if writes:
            self._written.add(scope)


@lru_cache(maxsize=256)  # some statements are made once and used for every transaction
def scopes_of(statement: Any) -> frozenset[str]:
    """Return the scopes of the tables that a statement uses."""
    return frozenset(SCOPE[name] for name in _sealed_tables(statement))


def _sealed_tables(statement: Any) -> frozenset[str]:
    """Return the sealed tables that a statement names anywhere, be it by one column in a subquery."""
    parts = [*visitors.iterate(statement)] if hasattr(statement, "get_children") else [statement]
    tables = [part if isinstance(part, Table) else getattr(part, "table", None) for part in parts]
    return frozenset(table.name for table in tables if isinstance(table, Table) and table.name in SCOPE)


@lru_cache(maxsize=256)
def is_quick(statement: Any) -> bool:
    """Return whether a statement asks only for tables that have hot columns, or writes no other column: one that says
    so by the option `hot`."""
    tables = _sealed_tables(statement)
    if isinstance(statement, UpdateBase):
        return not tables or bool(statement.get_execution_options().get("hot"))
    return tables <= HOT.keys()
