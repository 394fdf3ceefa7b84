"""The rows that a seal covers: their digests, and what of them no loss may take back unseen. For state/seal.py."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, Table, select

from hsmcore.state.schema import (
    APPROVAL,
    AUDIT_MARK,
    BACKUP,
    DESIRED_STATE,
    EMERGENCY_EPISODE,
    FLEET,
    FLEET_FLOOR,
    FLEET_HOST,
    KEY_DOMAIN,
    KEY_VERSION,
    ROLE,
    ROTATION,
    ROTATION_SETTING,
    ROTATION_STEP,
    SPENT,
    WATERMARK,
)

SEALED: Final[Mapping[str, tuple[Table, ...]]] = {
    "ring": (KEY_VERSION, ROTATION_SETTING, ROTATION),
    "steps": (ROTATION_STEP, APPROVAL),
    "backups": (BACKUP,),
    "budget": (EMERGENCY_EPISODE,),
    "orders": (DESIRED_STATE,),
    "policy": (WATERMARK, SPENT),
    "domains": (KEY_DOMAIN,),
    "fleet": (FLEET, FLEET_HOST, FLEET_FLOOR, ROLE),
    "witness": (AUDIT_MARK,),
}
"""The sealed tables, by scope. A statement that uses a table of a scope has the whole scope checked first. The rows of
`bound`, which are many, have a MAC each; `watermark` says which of them there are."""
HOT: Final[Mapping[str, frozenset[str]]] = {
    FLEET.name: frozenset({"renewals", "renewed_by"}),
    FLEET_HOST.name: frozenset({"instance", "seen_ns", "state"}),
    WATERMARK.name: frozenset({"high", "bits", "message", "mac"}),
}
"""The columns that binds and renewals write, by table. In a store whose seal has ROWS they are in no digest: who writes
them can delay and deny (renewals, renewed_by, instance), or has no MAC for them (high, bits)."""
ROWS: Final = "rows"
"""Stands among the digests of such a seal: that of a server's store."""
_IN_ORDER: Final = (ROTATION_STEP, APPROVAL)
"""Tables to which rows are only added: the newest one tells whether there is a new one."""


class Known(NamedTuple):
    """A process's memory of the last genuine state: digests by scope, and the rows that lacking compares."""

    digests: Mapping[str, str]
    rows: Mapping[Table, list[Any]]

    def after(self, digests: Mapping[str, str], rows: Mapping[Table, list[Any]] = MappingProxyType({})) -> Known:
        """Return this with what is known by now."""
        return Known({**self.digests, **digests}, {**self.rows, **rows})


@cache
def _rows_of(table: Table) -> Select[Any]:
    return select(table).order_by(*table.primary_key)


def lacking(known: Mapping[Table, list[Any]], rows: Mapping[Table, list[Any]]) -> str:
    """Return what an earlier state lacks that no host could put back, or "". `known`: rows of the later one."""
    hosts = {row.name for row in rows[FLEET_HOST] if not row.retired}
    floors = {row.name: row.floor for row in rows[WATERMARK]}
    for row in known.get(FLEET_HOST, ()):
        if not row.retired and row.name not in hosts:
            return f"host {row.name}, which may know of positions"
    for row in known.get(WATERMARK, ()):
        if row.floor > floors.get(row.name, -1):
            return f"the floor {row.floor} of {row.name}"
    return ""


def digest_of(
    connection: Connection, scope: str, kept: dict[Table, list[Any]] | None = None, *, cold: bool = False
) -> str:
    """Return the digest of the rows of a scope; `cold`: without the columns of HOT. `ascii` tells apart each value of
    each type, the same way in every version of Python. A NULL at the end is left out, so that a migration may append a
    column which may be NULL. `kept`: takes the rows that lacking compares."""
    digest = hashlib.sha256()
    for table in SEALED[scope]:
        digest.update(ascii(table.name).encode())
        rows = connection.execute(_rows_of(table)).all()
        hot = HOT.get(table.name, ()) if cold else ()
        places = [at for at, column in enumerate(table.c) if column.name not in hot]
        for row in rows:
            digest.update(ascii(_trimmed(row[at] for at in places)).encode())
        if kept is not None and table in (FLEET_HOST, WATERMARK):
            kept[table] = [*rows]
    return digest.hexdigest()


def fingerprint(connection: Connection, scopes: Iterable[str]) -> str:
    """Return a digest of the rows of scopes, from any writer, to see that they have changed; of what only grows, of the
    number of its newest row: it is asked for each second."""
    asked = [
        f"SELECT {'max(id)' if table in _IN_ORDER else '*'} FROM {table.name} ORDER BY 1"  # noqa: S608  # our names
        for scope in scopes
        for table in SEALED[scope]
    ]
    # Not by tables, which the guard would check: nothing is done for these rows.
    rows = [list(map(tuple, connection.exec_driver_sql(query))) for query in asked]
    return hashlib.sha256(ascii(rows).encode()).hexdigest()


def no_rows(scope: str) -> str:
    return hashlib.sha256("".join(ascii(table.name) for table in SEALED[scope]).encode()).hexdigest()


def _trimmed(row: Iterable[Any]) -> tuple[Any, ...]:
    values = tuple(row)
    while values and values[-1] is None:
        values = values[:-1]
    return values


def whole(connection: Connection) -> str:
    return hashlib.sha256(ascii([digest_of(connection, scope) for scope in SEALED]).encode()).hexdigest()
