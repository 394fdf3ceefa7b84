"""A transaction as an exchange: what it asks, and what it changes once all answers are there.

Statements are made once, by SQLAlchemy. A file, and a store with a seal, have them executed one after the other; a
server gets all questions in one message and all changes in another (state/postgres/text.py), or both in one, where what
the changes rely on is a question that must find a row. What guards a signature in a fleet is done this way: a bind, a
claim and a renewal of the epoch, a role. Store.exchange adds the questions about the roles of the task; the seal is
checked before each statement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Select, TextClause
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


class Asking(Protocol):
    """Asks and changes, a transaction in one message each, on a connection of its own. Belongs to one event loop."""

    async def ask(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        """Do one thing after the other in a transaction; return the answers once it is committed. Raises StoreError;
        StoreUnknown if the answer took longer than `seconds`: what was sent may be done later all the same."""

    async def close(self) -> None:
        """Close its own connection, if it has one. Idempotent."""


class Relying(Asking, Protocol):
    """Asking, where each message is done only if the database is what this process knows of it. StoreError says nothing
    of whether it was done."""

    def ends(self) -> None:
        """Wait no longer than for a server that confirms others. In the loop."""


def answered(connection: Connection, work: Sequence[Question | Change]) -> Answers:
    """Do one thing after the other. Returns the answers to the questions."""
    answers = []
    for one in work:
        if isinstance(one, Question):
            found = connection.execute(one.statement, one.values)
            answers.append(found.all() if found.returns_rows else [])
            if one.required and not answers[-1]:
                raise StoreChanged(CHANGED)
        else:
            _change(connection, one)
    return answers


def one_by_one(questions: Sequence[Question], decide: Decide[T]) -> Callable[[Connection], T]:
    """Return the work of a transaction that executes one statement after the other."""

    def work(connection: Connection) -> T:
        result, changes = decide(answered(connection, questions))
        answered(connection, changes)
        return result

    return work


def _change(connection: Connection, change: Change) -> None:
    values = change.values if len(change.values) > 1 else change.values[0]
    if connection.execute(change.statement, values).rowcount == 0 and change.required:
        raise StoreChanged(CHANGED)
