"""Statements as the text of one message to a server, their values in it: nothing is prepared, so that it passes through
a pooler, and the server is asked once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import psycopg
from psycopg import generators
from psycopg.pq import Escaping, ExecStatus
from psycopg.pq.abc import PGresult
from sqlalchemy.dialects.postgresql import psycopg as dialects
from sqlalchemy.sql.dml import Insert

from hsmcore.state.exchange import Change, Question

_DIALECT: Final = dialects.dialect()  # type: ignore[no-untyped-call]
_READ: Final[Mapping[int, Callable[[bytes], Any]]] = {16: b"t".__eq__, 20: int, 21: int, 23: int}
"""How a column's text becomes a value, by the type's number: bool, int8, int2 and int4. Other types stay text."""


def said(driver: psycopg.Connection[Any], text: bytes) -> list[list[tuple[Any, ...]]]:
    """Send a message, and return the rows of each of its statements. Raises psycopg.Error for the first that fails:
    none behind it was executed."""
    driver.pgconn.send_query(text)
    results = driver.wait(generators.execute(driver.pgconn))
    if results[-1].status == ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(results[-1])
    return [rows_of(result) for result in results]


def said_then(driver: psycopg.Connection[Any], statements: Sequence[bytes], then: bytes) -> list[tuple[Any, ...]]:
    """Send statements of a transaction, and one more that the server begins only after them: it has read by then
    messages that came in between, such as another configuration. It goes in the same message. Returns the rows of that
    one. Raises psycopg.Error for the first that fails: none of the statements behind it was executed."""
    server = driver.pgconn
    server.enter_pipeline_mode()
    for statement in statements:
        server.send_query_params(statement, None)
    server.pipeline_sync()
    server.send_query_params(then, None)
    server.pipeline_sync()
    results = driver.wait(generators.execute(server))
    while sum(result.status == ExecStatus.PIPELINE_SYNC for result in results) < 2:
        results += driver.wait(generators.fetch_many(server))
    server.exit_pipeline_mode()
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
    return rows_of(results[-2])


def rows_of(result: PGresult) -> list[tuple[Any, ...]]:
    """Return the rows of a result."""
    reads = [_READ.get(result.ftype(at), bytes.decode) for at in range(result.nfields)]
    return [
        tuple(None if (value := result.get_value(row, at)) is None else read(value) for at, read in enumerate(reads))
        for row in range(result.ntuples)
    ]


def asked(driver: psycopg.Connection[Any], questions: Sequence[Question]) -> bytes:
    """Return the text of questions, each behind a semicolon."""
    said = [_filled(driver, *_text(one.statement), one.values) for one in questions]
    return "".join(f"; {one}" for one in said).encode()


def written(driver: psycopg.Connection[Any], changes: Sequence[Change]) -> list[bytes]:
    """Return the statements of changes. One that is required and changes no row fails, with DivisionByZero, and with it
    all of the message that follows."""
    return [text.encode() for change in changes for text in _changes(driver, change)]


def _changes(driver: psycopg.Connection[Any], change: Change) -> list[str]:
    text, fixed = _text(change.statement, tuple(change.values[0]))
    if isinstance(change.statement, Insert):
        head, _, row = text.partition(" VALUES ")
        return [f"{head} VALUES {', '.join(_filled(driver, row, fixed, values) for values in change.values)}"]
    if change.required:
        text = f"WITH done AS ({text} RETURNING 1) SELECT 1 / count(*) FROM done"  # noqa: S608  # a statement of ours
    return [_filled(driver, text, fixed, values) for values in change.values]


def _filled(driver: psycopg.Connection[Any], text: str, fixed: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    escape = Escaping(driver.pgconn).escape_literal
    return text % {name: _literal(escape, value) for name, value in {**fixed, **values}.items()}


def _literal(escape: Callable[[bytes], Any], value: object) -> str:
    """Return a value in quotes, whatever its type: the statement says which one it is."""
    if type(value) is not int and type(value) is not str:
        raise TypeError(f"{type(value).__name__} is no value of a statement")
    text = str(value)
    if "\0" in text:
        raise ValueError("a text with a NUL is no value of a statement")
    return bytes(escape(text.encode())).decode()


@lru_cache(maxsize=64)
def _text(statement: Any, keys: tuple[str, ...] | None = None) -> tuple[str, dict[str, Any]]:
    """Return a statement in psycopg's form, and its constant values. `keys`: the names of its values."""
    compiled = statement.compile(dialect=_DIALECT, column_keys=keys)
    return str(compiled), dict(compiled.params)
