"""One connection to a fleet's database, and what is sent at the beginning and the end of its transactions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Self, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, Table, select
from sqlalchemy.exc import SQLAlchemyError

from hsmcore.state.database import BUSY_SECONDS, Rows, reason
from hsmcore.state.errors import StoreAway, StoreChanged, StoreError
from hsmcore.state.exchange import CHANGED, Decide, Question
from hsmcore.state.postgres import rights
from hsmcore.state.postgres.text import asked, rows_of, said, saying_then, written

T = TypeVar("T")

ANSWER_SECONDS: Final = 30.0
"""The time after which rare work that the server does not answer counts as failed."""
IDLE_MS: Final = 1000
"""The time after which the server ends a transaction whose host has stopped in it."""
LEAST_VERSION: Final = 15


class CommitLost(Exception):
    """Whether a transaction was written durably is unknown."""


class Link:
    """A connection. A failure that leaves it in doubt closes it. Belongs to the store's thread. `waits`: whether
    what it commits must be on a standby. `seconds`: the time after which the beginning of a transaction counts as
    failed, and an exchange while the server confirms others: a firewall may have forgotten the connection."""

    def __init__(self, engine: Engine, *, waits: bool, seconds: float) -> None:
        self._waits, self._seconds, self._commits_since = waits, seconds, math.inf
        self._facts: Facts | None = None
        self._connection = engine.connect()
        driver = self._connection.connection.driver_connection
        assert isinstance(driver, Patient)  # noqa: S101  # for the type checker
        self._driver = driver
        self._answers: list[list[tuple[Any, ...]]] = []
        self.is_unsealed = False
        """Whether the transaction has found no seal when it began."""
        self.found: tuple[Any, ...] = ()
        """What `beginning` asked for with `more`, when it began."""

    @property
    def is_open(self) -> bool:
        """Whether it may be used."""
        return not self._driver.closed

    def begin(
        self,
        statements: Sequence[bytes],
        know: Callable[[Facts, Link], None],
        questions: Sequence[Question] | None = None,
        *,
        turn: bool = False,
    ) -> None:
        """Begin a transaction with the statements of `beginning`, for `finish`; with questions, which go into the same
        message, for `exchange`. `know` may refuse the server. `turn`: another transaction may have it, and be idle."""
        self._driver.be_patient(self._seconds + (IDLE_MS / 1e3 if turn else 0.0))
        if questions is None:
            self._connection.begin()
            questions = ()
        try:
            rows = said(self._driver, b"; ".join([*statements, *asked(self._driver.pgconn, questions)]))
            self._facts = Facts.of(rows[FACTS_AT])
            know(self._facts, self)
            begun = len(rows) - len(questions)
            self._answers = rows[begun:]
            self.found = rows[begun - 1][0][:-1]
            self.is_unsealed = rows[begun - 1][0][-1] is False
        except BaseException:
            self.undo()
            raise

    def system(self) -> str:
        """Return the server's system identifier: its standbys have the same one."""
        row = self._driver.execute(SYSTEM).fetchone()
        return str(row[0]) if row else ""

    def finish(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in the transaction, and commit it. Raises CommitLost."""
        self._driver.be_patient()
        try:
            result = work(self._connection)
            self._require_sound()
        except BaseException:
            self.undo()
            raise
        self._commit()
        return result

    def portions(self, table: Table, most: int) -> Iterator[Rows]:
        """Yield the rows of a table in `work` of `finish`, at most so many at a time; each portion is waited for as a
        transaction is."""
        with self._driver.cursor(name="portions") as cursor:
            cursor.execute(str(select(table).compile(dialect=self._connection.dialect)).encode())
            while rows := cursor.fetchmany(most):
                yield rows
                self._driver.be_patient()

    def put(self, table: Table, portions: Iterable[Rows]) -> None:
        """Add rows in `work` of `finish`; each portion may take as long as a transaction."""
        names = ", ".join(f'"{column.name}"' for column in table.columns)
        with self._driver.cursor() as cursor, cursor.copy(f'COPY "{table.name}" ({names}) FROM STDIN'.encode()) as copy:
            for rows in portions:
                self._driver.be_patient()
                for row in rows:
                    copy.write_row(row)
            self._driver.be_patient()

    def exchange(self, decide: Decide[T]) -> T:
        """Decide by the answers of `begin`, and send what is to be written together with COMMIT. Raises CommitLost."""
        self._driver.be_patient()
        try:
            result, changes = decide(self._answers)
            self._require_sound()
            statements = written(self._driver.pgconn, changes)
        except BaseException:
            self.undo()
            raise
        self._commits_since = time.monotonic()
        try:
            self._commit(statements)
        finally:
            self._commits_since = math.inf
        return result

    def hasten(self, dialled_at: float = math.inf) -> None:
        """The server has confirmed another transaction: an exchange that waits for longer has lost its connection.
        `dialled_at`: it has answered on a connection that was dialled then, by the monotonic clock, after one that was
        silent: whatever waits since before has lost its connection, too. Any thread."""
        since = self._commits_since if dialled_at == math.inf else self._driver.sent_at
        if since < min(dialled_at, time.monotonic() - self._seconds):
            self.hurry()

    def _commit(self, changes: Sequence[bytes] | None = None) -> None:
        self._driver.warned = ""
        after: Sequence[tuple[Any, ...]] = ()
        try:
            if changes is None:
                self._connection.commit()
                after = said(self._driver, AFTERWARDS)[0] if self._waits else ()
            elif self._waits:
                steps = saying_then(self._driver.pgconn, [*changes, b"COMMIT"], AFTERWARDS)
                after = rows_of(self._driver.wait(steps)[-1])
            else:
                said(self._driver, b"; ".join([*changes, b"COMMIT"]))
        except (SQLAlchemyError, psycopg.Error) as error:
            if self._driver.info.transaction_status == TransactionStatus.INERROR:  # a change failed: before COMMIT
                self.undo()
                if isinstance(error, psycopg.errors.DivisionByZero):
                    raise StoreChanged(CHANGED) from None
                raise
            self.close()
            raise CommitLost(f"the connection failed in COMMIT: {reason(error)}") from None
        if self._driver.warned:
            # For example, the wait for the synchronous standby was cancelled: the commit is visible, and may be lost.
            raise CommitLost(f"COMMIT was confirmed with a warning: {self._driver.warned}")
        if self._waits and (self._facts is None or not self._facts.lasts(after)):
            raise CommitLost(RELEASED)

    def try_out(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in the transaction, and take it back."""
        try:
            return work(self._connection)
        finally:
            self.undo()

    def _require_sound(self) -> None:
        if self._driver.info.transaction_status != TransactionStatus.INTRANS:
            # COMMIT would roll it back, and say so in no error.
            raise psycopg.errors.InFailedSqlTransaction("a statement of the transaction failed")

    def undo(self) -> None:
        """Take the transaction back."""
        with suppress(SQLAlchemyError, psycopg.Error):
            self._connection.rollback()
            self._driver.rollback()
        if self._driver.info.transaction_status != TransactionStatus.IDLE:
            self.close()

    def hurry(self) -> None:
        """Wait for no answer any more. Any thread."""
        self._driver.be_patient(0.0)

    def close(self) -> None:
        """Close it. Idempotent."""
        self._driver.close()
        with suppress(SQLAlchemyError, psycopg.Error):
            self._connection.invalidate()
        with suppress(SQLAlchemyError, psycopg.Error):
            self._connection.close()


class Warned:
    """Keeps the first warning of a server."""

    warned = ""
    """Since this was emptied."""

    def noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        """A notice has come."""
        if notice.severity_nonlocalized == "WARNING":
            self.warned = self.warned or notice.message_primary or "a warning"


class Patient(Warned, psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for answers until a moment. Then it is closed, as if the server had gone: a server that
    was stopped keeps its connections."""

    _until = math.inf
    """The moment, by the monotonic clock."""
    sent_at = math.inf
    """When the message was sent that has no answer yet."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.add_notice_handler(self.noticed)

    def be_patient(self, seconds: float = ANSWER_SECONDS) -> None:
        """Wait for answers until so many seconds from now. Any thread."""
        self._until = time.monotonic() + seconds

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Wait as psycopg does, which returns from each wait for the server after a tenth of a second at most."""
        return super().wait(self._limited(gen), *args, **options)

    def _limited(self, steps: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        self.sent_at = time.monotonic()
        try:
            state = next(steps)
            while True:
                ready = yield state
                if not ready and time.monotonic() >= self._until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError("the server does not answer")
                state = steps.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            self.sent_at = math.inf


class Facts(NamedTuple):
    """A server's settings, read at the beginning of each transaction."""

    standby: bool
    fsync: str
    full_page_writes: str
    synchronous_standby_names: str
    version: int
    encoding: str
    started: object
    timeline: str
    backend: int
    loaded: str
    """The time at which this backend read the server's configuration."""

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]]) -> Self:
        """Return those of FACTS, in whose row others may follow them."""
        return cls(*rows[0][: len(cls._fields)])

    def problems(self, *, single_node: bool) -> Iterator[tuple[str, str]]:
        """Yield why the server may not be used, with what to do."""
        if self.standby:
            yield STANDBY
        for name in ("fsync", "full_page_writes"):
            if getattr(self, name) != "on":
                yield f"{name} is off: a crash of the server loses what it confirmed", f"Set {name} = on."
        if not self.synchronous_standby_names and not single_node:
            yield BY_ITSELF
        if self.version < LEAST_VERSION * 10_000:
            yield f"it is PostgreSQL {self.version // 10_000}", f"Use PostgreSQL {LEAST_VERSION} or newer."
        if self.encoding != "UTF8":
            yield f"its encoding is {self.encoding}", "Make a database with ENCODING 'UTF8'."

    def lasts(self, after: Sequence[tuple[Any, ...]]) -> bool:
        """Whether a COMMIT since then has waited for the standby, by what AFTERWARDS has found behind it. When
        synchronous_standby_names is emptied, all commits that wait are confirmed, without a warning; so a configuration
        that was read since may have been empty. A pooler may ask another backend: what that one has read before says
        nothing."""
        [(names, backend, loaded)] = after
        return bool(names) and (backend != self.backend or loaded == self.loaded)


_KINDS: Final[Sequence[tuple[type[Exception], type[StoreError]]]] = (
    (psycopg.OperationalError, StoreAway),
    (psycopg.errors.IdleInTransactionSessionTimeout, StoreAway),
    (psycopg.errors.UniqueViolation, StoreChanged),
    (Exception, StoreError),
)


def failure(error: Exception, shown: str) -> StoreError:
    """Return the store's error for a statement's, of whose transaction nothing was written."""
    driver = getattr(error, "orig", error)
    if isinstance(driver, psycopg.errors.FeatureNotSupported):  # BEGIN READ WRITE
        return StoreAway(f"{shown}: {STANDBY[0]}", hint=STANDBY[1])
    if isinstance(driver, psycopg.errors.ReadOnlySqlTransaction):
        return StoreAway(f"{shown}: {reason(error)}", hint=STANDBY[1])
    kind = next(kind for sort, kind in _KINDS if isinstance(driver, sort))
    lacks = isinstance(driver, psycopg.errors.InsufficientPrivilege)
    return kind(f"{shown}: {reason(error)}", hint=rights.HINT if lacks else HINT)


HINT: Final = "Check the database server, and the way to it."
STANDBY: Final = ("the server is a standby", "Name the primary, or all servers, in the URL.")
BY_ITSELF: Final = (
    "it has no synchronous standby: its loss loses what it confirmed",
    "Set synchronous_standby_names, or fleet.singleNode if one server is to do.",
)
FAILING_OVER: Final = STANDBY, BY_ITSELF
"""Problems that end with a failover: a server that was a primary, and one that has no standby yet."""
_SETTINGS: Final = ("fsync", "full_page_writes", "synchronous_standby_names")
FACTS: Final = f"""SELECT pg_is_in_recovery(), {", ".join(f"current_setting('{name}')" for name in _SETTINGS)},
    current_setting('server_version_num')::int, current_setting('server_encoding'), pg_postmaster_start_time(),
    CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END,
    pg_backend_pid(), pg_conf_load_time()"""
AFTERWARDS: Final = b"SELECT current_setting('synchronous_standby_names'), pg_backend_pid(), pg_conf_load_time()"
"""In a separate message behind COMMIT: a backend reads a changed configuration between two messages only. The server
tells its backends of it before the process that lets the commits go."""
RELEASED: Final = "the server's configuration was loaded while COMMIT waited for the standby, perhaps without one"
FACTS_AT: Final = 1
MORE: Final = 6
"""Columns of schema.rare_of."""
SYSTEM: Final = b"SELECT system_identifier FROM pg_control_system()"
_COMMIT_AT_LEAST: Final = """CASE WHEN current_setting('synchronous_commit') = 'remote_apply'
    THEN 'remote_apply' ELSE 'on' END"""


def take_turn(schema: str) -> str:
    """Return the statement that waits until no other transaction holds the row lock."""
    return f'SELECT version FROM "{schema}".schema_version WHERE version = 1 FOR UPDATE'  # noqa: S608  # a name of ours


def beginning(
    schema: str,
    *,
    writes: bool,
    turn: bool,
    exists: bool = True,
    alone: bool = False,
    seconds: float = BUSY_SECONDS,
    more: tuple[str, str] = ("", ""),
) -> list[bytes]:
    """Return the statements that begin a transaction. Their results: see FACTS_AT; the last column of the last one, if
    the schema exists, says whether the store is sealed; `alone`: it fails then, with DivisionByZero, since the rest of
    the transaction is in the same message. `seconds`: how long it waits for a lock. `more`: columns that stand before
    that one, and a join that they need."""
    settings = {
        # A temporary table would come first if it were not named.
        "search_path": f"'\"{schema}\", pg_temp'",
        "synchronous_commit": _COMMIT_AT_LEAST,
        "lock_timeout": f"'{int(seconds * 1e3)}'",
        "statement_timeout": "'0'",
        "idle_in_transaction_session_timeout": f"'{IDLE_MS}'",
    }
    statements = [
        "BEGIN ISOLATION LEVEL " + ("READ COMMITTED READ WRITE" if writes else "REPEATABLE READ READ ONLY"),
        FACTS + "".join(f", set_config('{name}', {value}, true)" for name, value in settings.items()),
    ]
    sealed = f'EXISTS (SELECT FROM "{schema}".seal)'
    if alone:
        sealed = f"1 / (NOT {sealed})::int"
    if turn and writes:
        statements.append(take_turn(schema))
    if exists and writes:
        columns, join = more
        sealed = f"{columns}, {sealed} FROM (SELECT) AS one {join}" if columns else sealed
        # Behind the turn: only then does no other transaction seal it.
        statements[-1:] = [statements[-1], f"SELECT {sealed}"] if turn else [f"{statements[-1]}, {sealed}"]
    return [one.encode() for one in statements]
