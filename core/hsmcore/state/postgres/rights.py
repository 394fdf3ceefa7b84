"""What a signer's role may do with the tables of a fleet. It makes and changes none, and takes no row away that keeps a
promise: that is for their owner. So who has a signer's password can bind no second payload to a position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, text

from hsmcore.state.errors import StoreError
from hsmcore.state.schema import (
    APPROVAL,
    AUDIT_MARK,
    BACKUP,
    BOUND,
    DESIRED_STATE,
    FAILOVER_EVENT,
    FLEET_FLOOR,
    KEY_BINDING,
    KEY_EVIDENCE,
    KEY_SET,
    METADATA,
    NOTICE,
    NOTICE_DELIVERY,
    ROTATION_SETTING,
    ROTATION_STEP,
    SNAPSHOT,
    VERSION,
)

_USUAL: Final = "SELECT, INSERT, UPDATE"
_RIGHTS: Final = {
    BOUND: "SELECT, INSERT",
    # An UPDATE is needed to lock its row. Versions are counted by the other column.
    VERSION: "SELECT, UPDATE (applied_ns)",
} | dict.fromkeys(
    (
        APPROVAL, AUDIT_MARK, BACKUP, DESIRED_STATE, FAILOVER_EVENT, FLEET_FLOOR, KEY_BINDING, KEY_EVIDENCE, KEY_SET,
        NOTICE, NOTICE_DELIVERY, ROTATION_SETTING, ROTATION_STEP, SNAPSHOT,
    ),
    f"{_USUAL}, DELETE",
)  # fmt: skip
"""By table, where they are not the usual ones."""
_ROLE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@$-]{0,62}")
_SIGNERS: Final = text("""SELECT rolname FROM pg_class c, aclexplode(c.relacl) JOIN pg_roles r ON r.oid = grantee
    WHERE c.oid = to_regclass(:bound) AND privilege_type = 'INSERT' AND NOT pg_has_role(grantee, relowner, 'MEMBER')
    ORDER BY 1""")
_OWNS: Final = text("""SELECT pg_has_role(r.oid, nspowner, 'MEMBER') FROM pg_roles r, pg_namespace
    WHERE rolname = :role AND nspname = :schema""")
_LACKS: Final = text("""SELECT format('GRANT %s ON DATABASE %I TO %I', kind, datname, cast(:role AS text)),
    pg_has_role(datdba, 'MEMBER') FROM pg_database, unnest(ARRAY['CONNECT', 'TEMPORARY']) kind
    WHERE datname = current_database() AND NOT has_database_privilege(:role, oid, kind)""")
HINT: Final = (
    "Run `hsmcore fleet migrate --role ROLE` as the owner of its tables, for what a signer needs. Other work needs"
    " the owner's URL: see docs/FLEET.md."
)
"""Where a role lacks a right."""


def grants(schema: str, role: str) -> list[str]:
    """Return the statements that give a role the rights of a signer, and take from it what others it has. Raises
    StoreError for a name that needs more than quotes."""
    if not _ROLE.fullmatch(role):
        raise StoreError(f"{role!a} is no name of a role", hint="Name one of letters, digits, and any of _.@$-")
    tables: dict[str, list[str]] = {}
    for table in METADATA.sorted_tables:
        tables.setdefault(_RIGHTS.get(table, _USUAL), []).append(f'"{schema}"."{table.name}"')
    every = ", ".join(name for names in tables.values() for name in names)
    return [
        f'REVOKE ALL ON {every} FROM "{role}"',
        f'REVOKE ALL ON SCHEMA "{schema}" FROM "{role}"',
        f'GRANT USAGE ON SCHEMA "{schema}" TO "{role}"',
        *(f'GRANT {rights} ON {", ".join(names)} TO "{role}"' for rights, names in tables.items()),
    ]


def signers(connection: Connection, schema: str) -> list[str]:
    """Return the roles that have a signer's rights in a schema."""
    return list(connection.execute(_SIGNERS, {"bound": f'"{schema}".bound'}).scalars())


def give(connection: Connection, schema: str, roles: Sequence[str]) -> None:
    """Give roles the rights of a signer, as the owner. Raises StoreError for one that no right limits, or that lacks
    what only the database's owner gives."""
    for role in roles:
        statements = grants(schema, role)
        _require_limited(connection, schema, role)
        for statement, may in connection.execute(_LACKS, {"role": role}).all():
            if not may:
                raise StoreError(f"role {role} cannot use the database", hint=f"As the database's owner: {statement}")
            statements.append(statement)
        for statement in statements:
            connection.exec_driver_sql(statement)


def _require_limited(connection: Connection, schema: str, role: str) -> None:
    owns = connection.execute(_OWNS, {"role": role, "schema": schema}).scalar()
    if owns is None:
        raise StoreError(f"there is no role {role}", hint=f"Make it: CREATE ROLE \"{role}\" LOGIN PASSWORD '…'")
    if owns:
        raise StoreError(
            f"role {role} owns the tables, is a member of their owner, or a superuser: no right limits it",
            hint="Make another role for the signers.",
        )
