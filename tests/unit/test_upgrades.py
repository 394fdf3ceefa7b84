"""State stores of every former schema: they open, keep their rows, and end as a new one begins."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.loops import one_loop

from hsmcore.state import Store
from hsmcore.state.schema import MIGRATIONS

FOLDER = Path(__file__).parents[1] / "upgrades"
NEVER_IN_USE = {4}


def number_of(path):
    return int(path.stem.partition("-")[2])


STORES = sorted(FOLDER.glob("schema-*.sql"), key=number_of)


def make_store(path, text):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(text)
        connection.execute("PRAGMA journal_mode = WAL")
    path.chmod(0o600)


def contents(path):
    """The rows of each table, each as a dictionary, and the statements that made tables and indices."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        made = connection.execute("SELECT * FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
        tables = [each["name"] for each in made if each["type"] == "table"]
        # Its key was an INTEGER once, which is the same to SQLite.
        shaped = [name for name in tables if name != "schema_version"]
        rows = {name: [dict(row) for row in connection.execute("SELECT * FROM " + name)] for name in tables}  # noqa: S608
        columns = {
            name: [tuple(column)[1:] for column in connection.execute(f"PRAGMA table_info({name})")] for name in shaped
        }
        indices = sorted(" ".join(each["sql"].split()) for each in made if each["type"] == "index" and each["sql"])
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    return rows, (columns, indices)


@one_loop
@pytest.mark.parametrize("stored", STORES, ids=lambda path: path.stem)
async def test_a_store_of_a_former_version_is_brought_up_to_date(stored, tmp_path):
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    make_store(old, stored.read_text())
    before, _ = contents(old)
    assert {row["version"] for row in before["schema_version"]} == set(range(1, number_of(stored) + 1))
    for _ in range(2):  # the second time there is nothing to do
        await (await Store.open(old)).close()
    await (await Store.open(new)).close()
    rows, schema = contents(old)
    fresh, fresh_schema = contents(new)
    assert schema == fresh_schema
    assert [row["version"] for row in rows["schema_version"]] == [each.number for each in MIGRATIONS]
    del before["schema_version"], fresh["schema_version"]
    assert sum(map(len, before.values())) >= 4
    for table, kept in before.items():
        for row in kept:
            same = [{name: each[name] for name in row} for each in rows[table]]
            assert row in same, table


def test_there_are_stores_of_the_schemas_that_were_in_use():
    """A new migration brings one along, so no release can forget it: docs/RELEASING.md."""
    assert [number_of(path) for path in STORES] == [m.number for m in MIGRATIONS if m.number not in NEVER_IN_USE]
