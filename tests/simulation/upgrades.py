"""What an older version leaves on the disk: its state store, which this tree brings up to date.

The store that a life of this tree has left is written again with the tables of a former schema, as the commits of their
time made them (tests/upgrades). What that version did not have is left out: tables, scopes of the seal, the register of
stores. An audit log has had one form all the time; an older version notes no marks of its store in it.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from tests.simulation.disk import Image
from tests.support.paths import ROOT

from hsmcore.config import Secret
from hsmcore.recovery import marks
from hsmcore.state.seal import Problems, Seal, derive

STORE: Final = "state.db"
SCHEMAS: Final = (1, 2, 3, 5, 6, 7, 8)
"""The schemas of former versions; 4 was never in use."""
POSITIONS: Final = 6
"""The first that knows of bound positions,"""
SEALED: Final = 5
"""the first with a seal."""
_REGISTER: Final = "hsmcore"
_SCOPES: Final = {"policy": POSITIONS, "fleet": 7, "witness": 8}
"""The scopes of the seal that came later, and when."""


@contextmanager
def older_version() -> Iterator[None]:
    """A process of an older version compares no store with its log."""
    real = marks.witness_of
    marks.witness_of = lambda _config: False
    try:
        yield
    finally:
        marks.witness_of = real


def left_by(image: Image, schema: int, secret: Secret | None, place: Path) -> Image:
    """Return the image as an older version would have left it. `place`: a folder for its store, for now."""
    rest = {name: content for name, content in image.items() if name.split("/")[0] != _REGISTER}
    store = {name: content for name, content in rest.items() if name.startswith(STORE)}
    rest = {name: content for name, content in rest.items() if name not in store}
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in store.items():
        (place / name).write_bytes(content or b"")
    rows = _rows(place / STORE)
    if not rows:
        return rest  # it was not made yet
    path = place / f"older-{STORE}"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((ROOT / f"tests/upgrades/schema-{schema}.sql").read_text())
        connection.execute("PRAGMA journal_mode = WAL")
        for table in _tables(connection) - {"schema_version"}:
            connection.execute(f"DELETE FROM {table}")  # noqa: S608  # our own names, here and below
            known = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for row in rows.get(table, ()):
                kept = {name: value for name, value in row.items() if name in known}
                places = ", ".join("?" * len(kept))
                connection.execute(
                    f"INSERT INTO {table} ({', '.join(kept)}) VALUES ({places})",  # noqa: S608
                    [*kept.values()],
                )
        if secret is not None:
            _seal(connection, schema, secret)
        connection.commit()
    return {**rest, STORE: path.read_bytes()}


def _rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return {
            table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]  # noqa: S608
            for table in _tables(connection)
        }


def _tables(connection: sqlite3.Connection) -> set[str]:
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {row[0] for row in found.fetchall()}


def _seal(connection: sqlite3.Connection, schema: int, secret: Secret) -> None:
    """Have the seal vouch for the scopes that there were."""
    seal = Seal(derive(secret), lambda _connection: "", Problems(), witnessed=False)
    for store, counter, digests in connection.execute("SELECT store, counter, digests FROM seal").fetchall():
        there = {name: one for name, one in orjson.loads(digests).items() if _SCOPES.get(name, 0) <= schema}
        text = orjson.dumps(there, option=orjson.OPT_SORT_KEYS).decode()
        connection.execute("UPDATE seal SET digests = ?, mac = ?", (text, seal._mac(store, counter, text)))
