"""A transaction as an exchange: what it asks, and what it changes once all answers are there.

Statements are made once, by SQLAlchemy. A file, and a store with a seal, have them executed one after the other; a
server gets all questions in one message and all changes in another (state/postgres/text.py). What guards a signature
in a fleet is done this way: a bind, a claim and a renewal of the epoch, a role. Store.exchange adds the questions about
the roles of the task; the seal is checked before each statement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from sqlalchemy import Connection, Select
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.selectable import CompoundSelect

from hsmcore.state.errors import StoreError

T = TypeVar("T")

CHANGED: Final = "a row was changed by another transaction since it was read"
AGAIN: Final = "Nothing was written: try again."


class Question(NamedTuple):
    """A query and its values."""

    statement: Select[Any] | CompoundSelect[Any]
    values: Mapping[str, Any] = {}


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


class Asking(Protocol):
    """Asks single questions. Belongs to one event loop."""

    async def ask(self, question: Question) -> Sequence[Sequence[Any]]:
        """Return the answer, once its transaction is committed. Raises StoreError, StoreUnknown."""

    async def close(self) -> None:
        """Close its own connection, if it has one. Idempotent."""


def answered(connection: Connection, questions: Sequence[Question]) -> Answers:
    """Ask one question after the other."""
    return [connection.execute(asked.statement, asked.values).all() for asked in questions]


def one_by_one(questions: Sequence[Question], decide: Decide[T]) -> Callable[[Connection], T]:
    """Return the work of a transaction that executes one statement after the other."""

    def work(connection: Connection) -> T:
        result, changes = decide(answered(connection, questions))
        for change in changes:
            values = change.values if len(change.values) > 1 else change.values[0]
            if connection.execute(change.statement, values).rowcount == 0 and change.required:
                raise StoreError(CHANGED, hint=AGAIN)
        return result

    return work
