"""A transaction as an exchange: what it asks, and what it changes once all answers are there.

Statements are made once, by SQLAlchemy. A file, and a store with a seal, have them executed one after the other; a
server gets all questions in one message and all changes in another (state/postgres/text.py), or both in one, where what
the changes rely on is a question that must find a row. What guards a signature in a fleet is done this way: a bind, a
claim and a renewal of the epoch, a role. Store.exchange adds the questions about the roles of the task; the seal is
checked before each statement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Dialect, Select, TextClause
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.selectable import CompoundSelect

from hsmcore.state.errors import StoreChanged

T = TypeVar("T")

CHANGED: Final = "a row was changed by another transaction since it was read"


class Question(NamedTuple):
    """A query and its values; or a change that says what it has changed (RETURNING). `required`: nothing is written at
    all unless it finds a row."""

    statement: Select[Any] | CompoundSelect[Any] | UpdateBase | TextClause
    values: Mapping[str, Any] = {}
    required: bool = False


class Change(NamedTuple):
    """A statement that writes, and its values: a row for each time, at least one. `required`: nothing is written at all
    unless it changes a row."""

    statement: UpdateBase
    values: Sequence[Mapping[str, Any]]
    required: bool = False


Answers = Sequence[Sequence[Sequence[Any]]]
"""The rows for each question."""
Decide = Callable[[Answers], tuple[T, Sequence[Change]]]
"""Returns the result and what is to be written. It may be called again, for another transaction."""


class Reply(NamedTuple):
    """What one message has found."""

    answers: Answers
    """Of the questions: a change has none."""
    server: tuple[str, str]
    """System and timeline of the server that answered; "" for a file."""
    incarnation: str
    """As Store.incarnation, of that server."""
    again: bool = False
    """Whether it was sent twice: the first one may have been done, and had no answer."""
    found: tuple[Any, ...] = ()
    """What the store has asked for besides, to judge the answers by."""


class Asking(Protocol):
    """Asks and changes, a transaction in one message each, on a connection of its own. Belongs to one event loop."""

    async def ask(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        """Do one thing after the other in a transaction; return the answers once it is committed. Raises StoreError;
        StoreUnknown if the answer took longer than `seconds`: what was sent may be done later all the same."""

    async def still(self, question: Question, incarnation: str, seconds: float) -> bool:
        """Return whether a question has an answer, and the server of it is this one, as of Reply. Nothing is written,
        and no standby waited for. Raises StoreError."""

    async def close(self) -> None:
        """Close its own connection, if it has one. Idempotent."""


class Relying(Protocol):
    """Asks and changes where each message is done only if the database is what this process knows of it."""

    async def ask(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        """As Asking. StoreError says nothing of whether it was done."""

    def ends(self) -> None:
        """Wait no longer than for a server that confirms others. In the loop."""

    async def close(self) -> None:
        """Close its own connection. Idempotent."""


async def still(asking: Asking, question: Question, incarnation: str, seconds: float) -> bool:
    """Asking.still, by `ask`."""
    told = await asking.ask([question], seconds)
    return bool(told.answers[0]) and told.incarnation == incarnation


Execute = Callable[[Connection, Any, Sequence[Mapping[str, Any]]], tuple[Sequence[Sequence[Any]], int]]
"""Executes a statement for each of the rows of values. Returns the rows that it has found, and how many it has
changed."""


def executed(
    connection: Connection, statement: Any, values: Sequence[Mapping[str, Any]]
) -> tuple[Sequence[Sequence[Any]], int]:
    """Execute, by SQLAlchemy."""
    found = connection.execute(statement, values if len(values) > 1 else values[0])
    return found.all() if found.returns_rows else [], found.rowcount


def answered(connection: Connection, work: Sequence[Question | Change], execute: Execute = executed) -> Answers:
    """Do one thing after the other. Returns the answers to the questions."""
    answers = []
    for one in work:
        asks = isinstance(one, Question)
        found, changed = execute(connection, one.statement, [one.values] if isinstance(one, Question) else one.values)
        if asks:
            answers.append(found)
        if one.required and not (found if asks else changed):
            raise StoreChanged(CHANGED)
    return answers


def one_by_one(
    questions: Sequence[Question], decide: Decide[T], execute: Execute = executed
) -> Callable[[Connection], T]:
    """Return the work of a transaction that executes one statement after the other."""

    def work(connection: Connection) -> T:
        result, changes = decide(answered(connection, questions, execute))
        answered(connection, changes, execute)
        return result

    return work


@lru_cache(maxsize=128)  # statements are made once
def text_of(
    dialect: Dialect, statement: Any, keys: tuple[str, ...] | None = None, schema: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Return a statement in the driver's form, and its constant values. `keys`: the names of its values. `schema`:
    which it names."""
    where = {} if schema is None else {"schema_translate_map": {None: schema}, "render_schema_translate": True}
    compiled = statement.compile(dialect=dialect, column_keys=keys, **where)
    return str(compiled), dict(compiled.params)
