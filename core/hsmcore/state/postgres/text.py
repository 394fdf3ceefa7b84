"""Statements as the text of one message to a server, their values in it: nothing is prepared, so that it passes through
a pooler, and the server is asked once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import generators
from psycopg.pq import Escaping, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from sqlalchemy.dialects.postgresql import psycopg as dialects
from sqlalchemy.sql.dml import Insert, UpdateBase

from hsmcore.state.exchange import Change, Question, text_of

Steps = Generator[Any, Any, list[PGresult]]
_DIALECT: Final = dialects.dialect()  # type: ignore[no-untyped-call]
_READ: Final[Mapping[int, Callable[[bytes], Any]]] = {16: b"t".__eq__, 20: int, 21: int, 23: int}
"""How a column's text becomes a value, by the type's number: bool, int8, int2 and int4. Other types stay text."""

_REQUIRED: Final = "WITH done AS ({}) SELECT 1 / count(*) FROM done"


def said(driver: psycopg.Connection[Any], text: bytes) -> list[list[tuple[Any, ...]]]:
    """Send a message, and return the rows of each of its statements. Raises psycopg.Error for the first that fails:
    none behind it was executed."""
    return [rows_of(result) for result in driver.wait(saying(driver.pgconn, text))]


def saying(server: PGconn, text: bytes) -> Steps:
    """Send a message in steps, as psycopg waits. Returns the result of each of its statements. Raises as `said`."""
    server.send_query(text)
    return _good((yield from generators.execute(server)))


def saying_then(server: PGconn, statements: Sequence[bytes], then: bytes) -> Steps:
    """Send, in steps, statements of a transaction, and one more that the server begins only after them: it has read by
    then messages that came in between, such as another configuration. It goes in the same message. Returns the result
    of each. Raises psycopg.Error for the first that fails: none of the statements behind it was executed."""
    server.enter_pipeline_mode()
    for statement in statements:
        server.send_query_params(statement, None)
    server.pipeline_sync()
    server.send_query_params(then, None)
    server.pipeline_sync()
    results = yield from generators.execute(server)
    while sum(result.status == ExecStatus.PIPELINE_SYNC for result in results) < 2:
        results += yield from generators.fetch_many(server)
    server.exit_pipeline_mode()
    return [result for result in _good(results) if result.status != ExecStatus.PIPELINE_SYNC]


def _good(results: list[PGresult]) -> list[PGresult]:
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
    return results


def rows_of(result: PGresult) -> list[tuple[Any, ...]]:
    """Return the rows of a result."""
    reads = [_READ.get(result.ftype(at), bytes.decode) for at in range(result.nfields)]
    return [
        tuple(None if (value := result.get_value(row, at)) is None else read(value) for at, read in enumerate(reads))
        for row in range(result.ntuples)
    ]


def asked(server: PGconn, questions: Sequence[Question]) -> list[bytes]:
    """Return the statements of questions. One that is required and finds no row fails, as a change does."""
    return [_asked(server, one).encode() for one in questions]


def _asked(server: PGconn, question: Question) -> str:
    text, fixed = text_of(_DIALECT, question.statement, _set_by(question))
    return _filled(server, _REQUIRED.format(text) if question.required else text, fixed, question.values)


def asked_in(server: PGconn, question: Question, schema: str) -> bytes:
    """Return the statement of a query that names the schema of its tables."""
    return _filled(server, *text_of(_DIALECT, question.statement, None, schema), question.values).encode()


def _set_by(question: Question) -> tuple[str, ...] | None:
    return tuple(question.values) if isinstance(question.statement, UpdateBase) else None


def written(server: PGconn, changes: Sequence[Change]) -> list[bytes]:
    """Return the statements of changes. One that is required and changes no row fails, with DivisionByZero, and with it
    all of the message that follows."""
    return [text.encode() for change in changes for text in _changes(server, change)]


def _changes(server: PGconn, change: Change) -> list[str]:
    text, fixed = text_of(_DIALECT, change.statement, tuple(change.values[0]))
    if isinstance(change.statement, Insert):
        head, _, row = text.partition(" VALUES ")
        return [f"{head} VALUES {', '.join(_filled(server, row, fixed, values) for values in change.values)}"]
    if change.required:
        text = _REQUIRED.format(f"{text} RETURNING 1")
    return [_filled(server, text, fixed, values) for values in change.values]


def _filled(server: PGconn, text: str, fixed: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    escape = Escaping(server).escape_literal
    return text % {name: _literal(escape, value) for name, value in {**fixed, **values}.items()}


def _literal(escape: Callable[[bytes], Any], value: object) -> str:
    """Return a value in quotes, whatever its type: the statement says which one it is."""
    if type(value) is not int and type(value) is not str:
        raise TypeError(f"{type(value).__name__} is no value of a statement")
    text = str(value)
    if "\0" in text:
        raise ValueError("a text with a NUL is no value of a statement")
    return bytes(escape(text.encode())).decode()
