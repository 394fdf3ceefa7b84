"""Write a state store of this version, with a row in each table, as SQL: python -m tests.upgrades.make FILE.

With each new schema, and again until that is released. Those of released schemas are stores that the commits of their
time made; none is ever changed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from pathlib import Path

from hsmcore.state import Store

# What a table checks, or the code reads as more than text.
VALUES = {
    "members": '["softhsm:a"]',
    "details": "{}",
    "value": "{}",
    "digests": "{}",
    "state": "active",
    "status": "done",
    "public_key": "ab" * 32,
    "digest": "cd" * 32,
    "bits": "1",
    "ended_ns": 2,
    "max_transactions": 100,
}
NOT_FILLED = {"schema_version", "seal"}  # the first is; the second would be forged


def fill(connection: sqlite3.Connection) -> None:
    """Put a row into each table."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    for (table,) in tables.fetchall():
        if table in NOT_FILLED:
            continue
        row = {}
        for _, column, kind, required, _, key in connection.execute(f"PRAGMA table_info({table})"):
            usual = f"{table}.{column}" if kind == "TEXT" else 1
            row[column] = VALUES.get(column, usual if required or key else None)
        marks = ", ".join("?" * len(row))
        statement = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})"  # noqa: S608  # names of our own
        connection.execute(statement, list(row.values()))
    connection.commit()


def main() -> None:
    """Write the file that the command line names."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"

        async def make() -> None:
            await (await Store.open(path)).close()

        asyncio.run(make())
        connection = sqlite3.connect(path)
        fill(connection)
        Path(sys.argv[1]).write_text("\n".join(connection.iterdump()) + "\n")
        connection.close()


if __name__ == "__main__":
    main()
