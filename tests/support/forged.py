"""States that a writer of the state store can bring about without its secret: each column of each sealed table, rows
added, removed, doubled and put back, the seal itself, and objects of SQL that change rows on their own."""
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, Table, insert
from tests.support.raw_store import REFUSED, Place, Raw, raw

from hsmcore.state.schema import (
    APPROVAL,
    AUDIT_MARK,
    BOUND,
    FAILOVER_EVENT,
    FLEET,
    FLEET_FLOOR,
    FLEET_HOST,
    KEY_BINDING,
    KEY_EVIDENCE,
    KEY_SET,
    NOTICE,
    NOTICE_DELIVERY,
    PUBLISHED,
    ROLE,
    SEAL,
    SNAPSHOT,
)
from hsmcore.state.sealed_rows import SEALED

Work = Callable[[Raw], object]
TABLES = tuple(table for tables in SEALED.values() for table in tables)
UNSEALED = (FAILOVER_EVENT, SNAPSHOT, NOTICE, NOTICE_DELIVERY, KEY_BINDING, BOUND, KEY_SET, KEY_EVIDENCE, PUBLISHED)
_FAR = 4_102_444_800_000_000_000
_NUMBERS = (0, 2, _FAR, None, "1", 9e999)
_WORDS = {
    "state": ("active", "pending", "overlap", "deactivated", "destroyed"),
    "status": ("running", "undoing", "overlap", "done", "failed", "aborted"),
    "step": ("approve", "generate", "handover", "activate", "deactivate", "destroy"),
    "outcome": ("begun", "done", "undone"),
    "details": ("{}", '{"handover": false}', "null"),
    "members": ("[]", '["softhsm:other"]'),
    "method": ("totp", "signature", "sealed"),
    "value": ("emergency", "enabled", "secondary"),
    "name": ("force", "emergency", "rotate", "rotate-abort", "readmit:softhsm:primary", "configured"),
    "cause": ("chosen", "schedule"),
}


@dataclass(frozen=True, slots=True)
class Forgery:
    name: str
    table: str
    """The table that is changed; "" if it is the seal or the schema."""
    scope: str
    """What is told to be not genuine; "" if it is everything."""
    work: Work


def add_fleet(connection: Connection) -> None:
    """Add rows of a fleet of two hosts, and marks of two audit logs."""
    for number in range(2):
        mark = {"logged": "ab", "pending": "cd", "marked_ns": 5, "restored": ""}
        connection.execute(insert(AUDIT_MARK).values(name=f"log-{number}", **mark))
    numbers = {"claimed_ns": 1, "renewals": 7, "released": 0, "incident": 0}
    words = {"holder": "one:1:ab", "host": "one", "timeline": "1", "system": "7", "reason": ""}
    connection.execute(insert(FLEET).values(name="tests", epoch=3, **numbers, **words))
    for number, name in enumerate(("one", "two")):
        host = {"instance": f"{name}:1:ab", "seen_ns": 5, "state": "holder", "incident": 0, "retired": 0, "note": ""}
        connection.execute(insert(FLEET_HOST).values(name=name, **host))
        connection.execute(insert(FLEET_FLOOR).values(host=name, domain="chain/block", position=number, digest="ab"))
        connection.execute(insert(ROLE).values(name=f"role-{number}", epoch=2, holder="one:1:ab", until_ns=9))


class Original:
    """The sealed tables of a store as they are now, to put them back."""

    def __init__(self, place: Place) -> None:
        self.place = place
        with raw(place) as connection:
            self.rows = {name: connection.rows(name) for name in _names()}
            self.schema = connection.objects()

    def forge(self, forgery: Forgery) -> bool:
        """Write the state. Returns whether the database takes it, and whether it differs from the original."""
        try:
            self._write(forgery.work)
        except REFUSED:
            return False
        return self.differs()

    def differs(self) -> bool:
        now = Original(self.place)
        # repr: 1 and True and 1.0 are equal.
        return repr((now.rows, now.schema)) != repr((self.rows, self.schema))

    def write(self, forgery: Forgery) -> bool:
        """Write a state of a table that is not sealed. Returns whether the database takes it."""
        try:
            self._write(forgery.work)
        except REFUSED:
            return False
        return True

    def put_back(self) -> None:
        def work(connection: Raw) -> None:
            known = {(kind, name) for kind, name, _ in self.schema}
            for kind, name, _ in connection.objects():
                if (kind, name) not in known:
                    connection.drop(kind, name)
            for name in self.rows:
                connection.execute(f"DELETE FROM {name}")
            there = {name for _, name, _ in connection.objects()}
            for _, name, sql in reversed(self.schema):  # tables, then their indexes
                if name not in there:
                    connection.execute(sql)
            for name, rows in self.rows.items():
                connection.put(name, rows)

        self._write(work)
        assert not self.differs()

    def _write(self, work: Work) -> None:
        with raw(self.place) as connection:
            work(connection)


def _names() -> list[str]:
    return [table.name for table in (*TABLES, SEAL)]


def forgeries(table: str | None = None) -> Iterator[Forgery]:
    """Yield every state, those of a sealed table, or (with "") all others. Some of them SQLite refuses in some
    stores."""
    return (each for each in _forgeries() if table in (None, each.table))


def unsealed(table: Table) -> Iterator[Forgery]:
    """Yield states of a table that is not sealed, since no act follows from it."""
    yield from _columns(table, "")
    yield Forgery(f"{table.name}: all rows removed", table.name, "", _sql(f"DELETE FROM {table.name}"))


def _columns(table: Table, scope: str) -> Iterator[Forgery]:
    for column in table.columns:
        numbers = isinstance(column.type, (BigInteger, Integer))
        values: tuple[Any, ...] = _NUMBERS if numbers else ("", "00", None, *_WORDS.get(column.name, ()))
        for value in values:
            yield Forgery(
                f"{table.name}.{column.name}={value}", table.name, scope, _set(table.name, column.name, value)
            )


def _forgeries() -> Iterator[Forgery]:
    for scope, tables in SEALED.items():
        for table in tables:
            yield from _columns(table, scope)
            key = next(iter(table.primary_key)).name
            yield Forgery(
                f"{table.name}: the last row removed", table.name, scope, _sql(_LAST_GONE.format(table.name, key))
            )
            yield Forgery(f"{table.name}: all rows removed", table.name, scope, _sql(f"DELETE FROM {table.name}"))
            yield Forgery(f"{table.name}: its rows doubled", table.name, scope, _doubled(table))
    for column in SEAL.columns:
        for value in ("", 0, 10**18, "{}"):
            yield Forgery(f"seal.{column.name}={value}", "", "", _set("seal", column.name, value))
    yield Forgery("the seal removed", "", "", _sql("DELETE FROM seal"))
    for table in TABLES:
        yield Forgery(f"a trigger that empties {table.name}", "", "", _trigger(table.name))
    yield Forgery("one person is a quorum", "", "", _quorum)
    yield Forgery("two keys may be active", "", "", _sql("DROP INDEX key_version_active"))
    yield Forgery("a view of ours", "", "", _sql("CREATE VIEW forged AS SELECT * FROM rotation"))


_LAST_GONE = "DELETE FROM {0} WHERE {1} = (SELECT max({1}) FROM {0})"


def _set(table: str, column: str, value: Any) -> Work:
    """Change the last row."""

    def work(connection: Raw) -> None:
        last = connection.last
        statement = f"UPDATE {table} SET {column} = ? WHERE {last} = (SELECT max({last}) FROM {table})"
        connection.execute(statement, (value,))

    return work


def _sql(statement: str) -> Work:
    return lambda connection: connection.execute(statement)


def _quorum(connection: Raw) -> None:
    connection.execute("DROP INDEX approval_once")
    connection.execute("DROP INDEX approval_code")
    connection.double(APPROVAL)


def _doubled(table: Table) -> Work:
    return lambda connection: connection.double(table)


def _trigger(table: str) -> Work:
    return lambda connection: connection.empty_with_each_notice(table)
