"""Rows of the state store, as another writer of the file may leave them: each reader gets values of their own type, or
an error of the store."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tests.fuzz.engine import main

from hsmcore.errors import HsmError
from hsmcore.failover.budget import Emergency, Limits
from hsmcore.failover.history import History
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark, marks_of
from hsmcore.manager.rotation.store import Rotations
from hsmcore.recovery.interchange import export, text_of
from hsmcore.state import Approval, Approvals, Backups, Desired, Keys, Store

_FOLDER = tempfile.TemporaryDirectory(prefix="hsmcore-fuzz-")
_PATH = Path(_FOLDER.name) / "state.db"
_LOOP = asyncio.new_event_loop()
_HEAD = 4
"""Bytes before the value: its table, column and row, and its type."""
_NULL, _NUMBER, _REAL, _TEXT = range(4)


async def _filled() -> Store:
    store = await Store.open(_PATH)
    keys, rotations = Keys(store), Rotations(store)
    await keys.begin("aa" * 8, b"\1" * 32, "ed25519", "key", ["softhsm:primary"], "as configured")
    current = await keys.current()
    assert current is not None
    rotation = await rotations.begin("manual", current.version, "key-2", None)
    await rotations.note(rotation.id, "generate", "done", {"keyId": "bb" * 8})
    await Approvals(store).add(rotation.id, Approval("bob", "ab"))
    await Emergency(store, Limits(100, 3600)).spend()
    await Desired(store).set("drain:softhsm:primary", "primary", "a reason")
    await Desired(store).report("host:1", {"members": []})
    mark = Watermark(store, "host:1")
    await mark.require(PayloadPlace("chain/block", 1, "ab" * 32))
    await mark.close()
    return store


_STORE = _LOOP.run_until_complete(_filled())
with closing(sqlite3.connect(_PATH)) as _connection:
    _TABLES = [
        (table, [column[1] for column in _connection.execute(f"PRAGMA table_info({table})")])
        for (table,) in _connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        if _connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608  # names of our own schema
    ]


def seeds() -> list[bytes]:
    """Each column, with values of each type."""
    values = ((_NULL, b""), (_NUMBER, b"\xff" * 8), (_REAL, b"inf"), (_TEXT, b"[]"), (_TEXT, b'{"a":{}}'), (_TEXT, b""))
    places = ((table, column) for table, (_, columns) in enumerate(_TABLES) for column in range(len(columns)))
    return [bytes((table, column, 0, kind)) + value for table, column in places for kind, value in values]


def _value(kind: int, data: bytes) -> Any:
    if kind == _NUMBER:
        return int.from_bytes(data[:8], "little", signed=True)
    if kind == _REAL:
        with suppress(ValueError):
            return float(data.decode("ascii", "replace"))
    return None if kind == _NULL else data.decode("utf-8", "replace") if kind == _TEXT else data


async def _read() -> list[str]:
    keys, rotations, desired = Keys(_STORE), Rotations(_STORE), Desired(_STORE)
    readers = (
        keys.all, keys.current, rotations.steps, rotations.open, rotations.last, rotations.failures_in_a_row,
        desired.all, desired.reports, desired.running, Emergency(_STORE, Limits(100, 3600)).status,
        History(_STORE).query, Backups(_STORE).of, lambda: marks_of(_STORE),
    )  # fmt: skip
    said = []
    for reader in readers:
        try:
            await reader()
        except HsmError as error:
            said.append(type(error).__name__)
    with suppress(HsmError):
        text_of(await export(_STORE, None))
    return said


def one(data: bytes) -> str:
    """Put a value into a row, and read everything."""
    if len(data) < _HEAD:
        return "short"
    table, columns = _TABLES[data[0] % len(_TABLES)]
    column, kind = columns[data[1] % len(columns)], data[3] % 5
    with closing(sqlite3.connect(_PATH, isolation_level=None)) as beside:
        row = beside.execute(f"SELECT rowid, {column} FROM {table} LIMIT 1").fetchone()  # noqa: S608
        change = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"  # noqa: S608
        try:
            beside.execute(change, (_value(kind, data[_HEAD:]), row[0]))
        except sqlite3.Error:  # a rule of the schema
            return f"refused {table}.{column}"
        try:
            said = _LOOP.run_until_complete(_read())
        finally:
            beside.execute(change, (row[1], row[0]))
    return f"{table}.{column} {kind} {','.join(said)}"


if __name__ == "__main__":
    main(seeds, one)
