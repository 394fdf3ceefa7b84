"""The common base of a state store's databases: the thread, the seal, and the migrations.

state/sqlite.py is one file on one host, state/postgres/database.py a schema that several hosts write.
"""

from __future__ import annotations

import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import ColumnElement, Connection, insert, inspect, literal_column, select, text
from sqlalchemy.sql.dml import UpdateBase

from hsmcore.errors import HsmError
from hsmcore.state.errors import RowInvalid, StoreError
from hsmcore.state.exchange import Asking, Decide, Question, Relying, one_by_one
from hsmcore.state.schema import MIGRATIONS, TYPES, VERSION
from hsmcore.state.seal import Problems, Seal
from hsmcore.state.seal_guard import SealGuard

T = TypeVar("T")
Work = Callable[[Connection], T]
Keep = Callable[[Connection, set[str]], None]
Rows = Sequence[Sequence[Any]]
Told = Callable[[int, int], None]
"""Called with the rows that are copied by now, and about how many there are."""


ABSENT_HINT: Final = "The first start of a key manager makes it."
"""The hint where a reader finds no store."""
BUSY_SECONDS: Final = 10.0
"""Wait of a transaction for another process's, in seconds."""


class Database(ABC):
    """An open database: the connection, its thread, and the number of Stores that use them. `shown`: its name in
    errors."""

    witnessed = False
    """Whether the hosts of a fleet put back what it loses."""

    def __init__(self, shown: str, *, writes: bool) -> None:
        self.shown, self.writes = shown, writes
        self.users = 0
        """Changed under the registry's lock only."""
        self.thread = ThreadPoolExecutor(1, "hsmcore-state" if writes else "hsmcore-state-read")
        self.seal: Seal | None = None
        self.problems = Problems()
        self.keepers: list[Keep] = []
        """Called with a transaction and the tables that it writes, before it is committed (state/register.py)."""
        self._written = set[str]()
        self.listeners: list[Callable[[], None]] = []
        """Called in the thread after each connection."""
        self._guard: SealGuard | None = None
        self._process = os.getpid()

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """A value that no other database has."""

    def certificates(self) -> Mapping[str, float]:
        """When the certificates of the way to the database end, in seconds since 1970, by "host:port" or "client".
        Any thread. Blocks."""
        return {}

    @property
    def identity(self) -> tuple[str, str]:
        """System and timeline of the present connection; "" for a file. Any thread."""
        return "", ""

    @property
    def incarnation(self) -> str:
        """Another text for each server, timeline and start of the server; "" for a file. Any thread."""
        return ""

    @property
    def is_own_process(self) -> bool:
        """Whether this is not a child that was forked while the database was open."""
        return self._process == os.getpid()

    def require_own_process(self) -> None:
        """Raise StoreError in a forked child: SQLite there believes that it holds locks which are the parent's, and a
        connection to a server is the parent's."""
        if not self.is_own_process:
            raise StoreError(
                f"{self.shown}: it was open when this process was forked",
                hint="Open it after the fork, or start the child with spawn.",
            )

    def open(self, key: bytearray | None = None) -> None:
        """Connect, unless another Store has. `key`: of the seal, which this takes over. Runs in the thread."""
        self.connect()
        if key is None:
            return
        if self.seal is not None:
            same = self.seal.is_of(key)
            key[:] = bytes(len(key))
            if not same:
                hint = "Give all configurations of this store the same stateSecret."
                raise StoreError(f"{self.shown}: it is open with another stateSecret", hint=hint)
            return
        seal = Seal(key, self.foreign, self.problems, witnessed=self.witnessed)
        if self.writes:
            seal.seen(self.transact_unchecked(seal.begin))
        self.seal = seal

    @abstractmethod
    def connect(self) -> None:
        """Connect and migrate, unless that is done. Runs in the thread. Raises StoreError."""

    @abstractmethod
    def foreign(self, connection: Connection) -> str:
        """Return an object of the database that is missing, or that could change rows on its own, or ""."""

    @abstractmethod
    def transact_unchecked(self, work: Work[T], *, turn: bool = True) -> T:
        """Do `work` in one transaction. Runs in the thread, for an open Store."""

    @abstractmethod
    def copy_to(self, path: Path, told: Told | None) -> None:
        """Copy everything, as it is at one moment, into a new file of SQLite. Stops no writer. Runs in the thread."""

    def replace_all(self, copy: Path, aside: str, told: Told | None) -> None:
        """Put the rows of a file in the place of all others: of a server. A file is replaced as a file."""
        raise NotImplementedError

    @abstractmethod
    def disconnect(self) -> None:
        """Close the connection, if there is one. Runs in the thread."""

    @abstractmethod
    def exclusively(self, role: str) -> AbstractAsyncContextManager[None]:
        """Hold a role: Store.exclusively."""

    def require_in_place(self) -> None:  # noqa: B027  # a server's place is its connection
        """Raise StoreError if the database is no longer the one at its place. Runs in the thread."""

    def is_unsealed(self) -> bool:
        """Return whether the transaction is known to have found no seal in the store. False: it must look."""
        return False

    def transact(self, work: Work[T], *, lenient: bool, turn: bool = True) -> T:
        """Do `work` in one transaction, under the seal. Runs in the thread, for an open Store."""

        def guarded(connection: Connection) -> tuple[T, int]:
            guard = self._guard = SealGuard(connection, self.seal, lenient=lenient, unsealed=self.is_unsealed())
            self._written.clear()
            try:
                result = work(connection)
                for keep in self.keepers if self._written else ():
                    keep(connection, self._written)
                return result, guard.end()
            except (TypeError, ValueError, KeyError, OverflowError) as error:
                if isinstance(error, HsmError):
                    raise
                # The row's content must not reach a terminal or a log.
                raise RowInvalid(f"{self.shown}: a row is not as hsmcore writes it ({type(error).__name__})") from None
            finally:
                self._guard = None

        # A seal is read and written again: never by two at a time.
        result, counter = self.transact_unchecked(guarded, turn=turn or self.seal is not None)
        if self.seal is not None:
            self.seal.seen(counter)
        return result

    def exchange(self, questions: Sequence[Question], decide: Decide[T], *, lenient: bool, turn: bool = True) -> T:
        """Ask, decide and write in one transaction, under the seal. Runs in the thread, for an open Store."""
        return self.transact(one_by_one(questions, decide), lenient=lenient, turn=turn)

    def asking(self, in_turn: Asking) -> Asking:
        """Return what asks without the thread, if there is such a connection. `in_turn`: by the thread."""
        return in_turn

    def binding(self) -> Relying | None:
        """Return what binds without asking first; None: a database that is asked without a message."""
        return None

    def hurry(self) -> None:  # noqa: B027  # a file answers
        """Give up what has no answer, since the process ends. In the event loop."""

    def hasten(self) -> None:  # noqa: B027  # a file answers
        """The database has confirmed another transaction: give up what has waited for long. In the event loop."""

    def before_execute(self, _connection: Connection, statement: Any, *_: Any) -> None:
        """Let the seal check a statement, and note what it writes. Called by SQLAlchemy."""
        if self._guard is not None:
            self._guard.before(statement)
            if isinstance(statement, UpdateBase):
                self._written.add(str(getattr(statement.table, "name", "")))

    def leave(self) -> Future[None]:
        """Drop one user, after all work that it gave to the thread."""
        return self.thread.submit(self._leave)

    def _leave(self) -> None:
        with _LOCK:
            self.users -= 1
            if self.users > 0:
                return
            del _DATABASES[self.key, self.writes]
        try:
            self.disconnect()
            if self.seal is not None:
                self.seal.wipe()
        finally:
            self.thread.shutdown(wait=False)


_LOCK: Final = threading.Lock()
_DATABASES: Final[WeakValueDictionary[tuple[Hashable, bool], Database]] = WeakValueDictionary()
"""The open databases of this process. A Store that is dropped without `close` takes its entry along."""
# A child forked while another thread is in here would find the lock held for ever.
os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


def join(asked: Database) -> Database:
    """Return the database that is open already, or the one asked for. The caller counts as a user and must call
    `leave`."""
    with _LOCK:
        for mode in (True, False):
            inherited = _DATABASES.get((asked.key, mode))
            if inherited is not None:
                inherited.require_own_process()
        database = _DATABASES.setdefault((asked.key, asked.writes), asked)
        database.users += 1
        return database


def migrate(connection: Connection, shown: str, schema: str | None = None) -> None:
    """Make the tables, or bring them up to date. Raises StoreError for those of a newer version."""
    if not inspect(connection).has_table(VERSION.name, schema=schema):
        VERSION.create(connection)
    done = _known(connection, shown)
    for migration in MIGRATIONS:
        if migration.number not in done:
            for statement in migration.statements:
                connection.execute(text(_in_dialect(statement, connection)))
            connection.execute(insert(VERSION).values(version=migration.number, applied_ns=time.time_ns()))


def _in_dialect(statement: str, connection: Connection) -> str:
    for ours, theirs in TYPES[connection.dialect.name]:
        statement = re.sub(ours, theirs, statement)
    return statement


def require_known(connection: Connection, shown: str) -> None:
    """Raise StoreError unless the tables are those of this version: a reader changes nothing."""
    done, needed = _known(connection, shown), {each.number for each in MIGRATIONS}
    if done != needed:
        is_file = connection.dialect.name == "sqlite"
        who = "the key manager" if is_file else "one of the fleet's hosts, or `hsmcore fleet migrate` as the owner,"
        raise StoreError(
            f"{shown}: an older version of hsmcore has written it (it lacks schema {min(needed - done)})",
            hint=f"Start {who} with this version, which brings it up to date.",
        )


def _known(connection: Connection, shown: str) -> set[int]:
    """Return the numbers of the migrations that are done. Raises StoreError for those of a newer version."""
    done = set(connection.execute(select(VERSION.c.version)).scalars())
    newest = MIGRATIONS[-1].number
    if done and max(done) > newest:
        is_file = connection.dialect.name == "sqlite"
        raise StoreError(
            f"{shown}: a newer version of hsmcore has written it (schema {max(done)}, known up to {newest})",
            hint="Use that version, or name another stateFile." if is_file else "Use that version on this host, too.",
        )
    return done


def counted(told: Told | None, total: int) -> Callable[[Iterable[Rows]], Generator[Rows]]:
    """Return what tells how many rows have passed, of all portions that it passes on."""
    done = 0

    def each(portions: Iterable[Rows]) -> Generator[Rows]:
        nonlocal done
        for rows in portions:
            yield rows
            done += len(rows)
            if told is not None:
                told(done, max(done, total))

    return each


def now_ns(connection: Connection) -> int:
    """Return the time by the database's clock, in Unix nanoseconds: all hosts of a fleet have the same."""
    if connection.dialect.name == "sqlite":
        return time.time_ns()
    return int(connection.execute(_NOW).scalar_one())


NOW: Final[ColumnElement[int]] = literal_column("(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint")
"""As now_ns, in a statement for a server."""
_NOW: Final = select(NOW)


def reason(error: Exception) -> str:
    """Return the driver's words for an error, without the statement and its parameters."""
    return str(driver := getattr(error, "orig", error)) or type(driver).__name__
