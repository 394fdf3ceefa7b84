"""The rows of a fleet's store as a file of SQLite, and back, a portion at a time: a store has millions of rows."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Table, create_engine, delete
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from hsmcore.state.database import Rows, migrate
from hsmcore.state.errors import StoreError
from hsmcore.state.sqlite import FILE_HINT


def fill(path: Path, rows: Iterable[tuple[Table, Iterable[Rows]]]) -> None:
    """Make a store of these rows, portion by portion. It is of no use unless this returns."""
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
    try:
        with engine.connect() as connection, connection.begin():
            migrate(connection, f"state store {path}")
            for table, portions in rows:
                connection.execute(delete(table))
                names, marks = ", ".join(table.c.keys()), ", ".join("?" * len(table.c))
                for found in portions:
                    put = f"INSERT INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608  # our own names
                    connection.exec_driver_sql(put, [tuple(row) for row in found])
    finally:
        engine.dispose()


def portions_of(path: Path, table: Table, most: int) -> Iterator[Rows]:
    """Yield the rows of a table of a store that is closed, at most so many at a time. Raises StoreError."""
    with _reading(path) as on:
        rows = on.execute(f"SELECT {', '.join(table.c.keys())} FROM {table.name}")  # noqa: S608  # our own names
        while found := rows.fetchmany(most):
            yield found


def rows_in(path: Path) -> int:
    """Return about how many rows a store has that is closed: those of `bound`, which are nearly all. Raises as
    `portions_of`."""
    with _reading(path) as on:
        return int(on.execute("SELECT count(*) FROM bound").fetchone()[0])


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro", uri=True)) as on:
            yield on
    except sqlite3.Error as error:
        raise StoreError(f"state store {path}: {error}", hint=FILE_HINT) from None
