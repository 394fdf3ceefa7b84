"""A state store as another program writes it, in SQL: the file, or the schema of a fleet."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import Table

from hsmcore.config import Fleet
from hsmcore.state.postgres.place import schema_name

Place = Path | Fleet
REFUSED: Final = (sqlite3.IntegrityError, psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError)
"""What the database says of rows that it does not take."""


class Raw:
    """One transaction."""

    def __init__(self, connection: Any, *, is_file: bool) -> None:
        self._connection, self.is_file = connection, is_file

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement with `?` for each value. Returns its rows."""
        if self.is_file:
            return list(self._connection.execute(statement, values).fetchall())
        cursor = self._connection.execute(statement.replace("?", "%s") if values else statement, values or None)
        return [] if cursor.description is None else cursor.fetchall()

    @property
    def last(self) -> str:
        """The column that says which row was written last."""
        return "rowid" if self.is_file else "ctid"

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        """All rows, in an order that does not depend on what was written since."""
        rows = self.execute(f"SELECT * FROM {table}")  # noqa: S608
        return rows if self.is_file else sorted(rows, key=repr)

    def put(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Put these rows in the place of all others."""
        self.execute(f"DELETE FROM {table}")  # noqa: S608
        own = "" if self.is_file else "OVERRIDING SYSTEM VALUE "
        for row in rows:
            self.execute(f"INSERT INTO {table} {own}VALUES ({','.join('?' * len(row))})", row)

    def double(self, table: Table) -> None:
        """Copy the rows that the indexes let in."""
        key = next(iter(table.primary_key)).name
        other = f"{key} + 1000" if key == "id" else f"{key} || '2'"
        names = [column.name for column in table.columns]
        copies = f"SELECT {', '.join(other if name == key else name for name in names)} FROM {table.name}"  # noqa: S608
        if self.is_file:
            self.execute(f"INSERT OR IGNORE INTO {table.name} {copies}")
        else:
            own = f"INSERT INTO {table.name} ({', '.join(names)}) OVERRIDING SYSTEM VALUE"
            self.execute(f"{own} {copies} ON CONFLICT DO NOTHING")

    def empty_with_each_notice(self, table: str) -> None:
        """Have another table emptied by whatever writes a notice."""
        if self.is_file:
            self.execute(f"CREATE TRIGGER forged AFTER INSERT ON notice BEGIN DELETE FROM {table}; END")  # noqa: S608
        else:
            self.execute(f"CREATE RULE forged AS ON INSERT TO notice DO ALSO DELETE FROM {table}")  # noqa: S608

    def objects(self) -> list[tuple[str, str, str]]:
        """Kind, name and SQL of each object that is no table of PostgreSQL."""
        if self.is_file:
            return sorted(self.execute("SELECT type, name, sql FROM sqlite_master"), key=repr)
        return self.execute(
            "SELECT 'INDEX', indexname::text, indexdef FROM pg_indexes WHERE schemaname = current_schema "
            "UNION ALL SELECT 'RULE', rulename, definition FROM pg_rules WHERE schemaname = current_schema "
            "UNION ALL SELECT 'VIEW', viewname, definition FROM pg_views WHERE schemaname = current_schema "
            "ORDER BY 1, 2"
        )

    def drop(self, kind: str, name: str) -> None:
        """Remove an object."""
        self.execute(f"DROP {kind} {name}{' ON notice' if kind == 'RULE' else ''}")


@contextmanager
def raw(place: Place) -> Iterator[Raw]:
    """A transaction, which is committed at the end."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place, timeout=10)) as file, file:
            for pragma in ("ignore_check_constraints = ON", "wal_autocheckpoint = 0"):
                file.execute(f"PRAGMA {pragma}")
            file.execute("BEGIN IMMEDIATE")
            yield Raw(file, is_file=True)
        return
    with psycopg.connect(place.store.url.resolve().decode(), prepare_threshold=None) as connection:
        connection.execute(f"SET LOCAL search_path = {schema_name(place.name, place.manager)}")
        yield Raw(connection, is_file=False)


def beside(place: Place, *statements: str) -> None:
    """Write into a store as another program would."""
    with raw(place) as connection:
        for statement in statements:
            connection.execute(statement)
