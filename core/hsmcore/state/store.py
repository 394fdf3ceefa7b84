"""The store: one small database for state that must survive a crash.

SQLite in WAL mode with synchronous=FULL: a committed transaction survives kill -9 and a power cut. Every transaction
takes the write lock when it begins, so the processes on one file take turns, and each sees the results of the one
before. A role that one process at a time may have is taken with `exclusively`.

A process has one connection to a file for each mode, whatever the number of Stores: POSIX locks belong to the process,
so a second opener must not be able to undo the first one's. Only SQLite may open the file: closing any descriptor of it
drops all of SQLite's locks in this process, and the next process to finish deletes the WAL that is in use.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

from sqlalchemy import Connection, Engine, Select, create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from hsmcore.errors import HsmError
from hsmcore.state.ownership import make_empty, make_folder, open_or_make
from hsmcore.state.schema import MIGRATIONS, SERIAL, VERSION
from hsmcore.state.seal import (
    Guard,
    Listener,
    Schema,
    Seal,
    SealSecret,
    SealStatus,
    StoreError,
    StoreNotGenuine,
    derive,
    schema_of,
)

T = TypeVar("T")

BUSY_SECONDS: Final = 10.0
"""Wait of a transaction for another process's, in seconds."""
_RETRY_SECONDS: Final = 0.01


OWNER_HINT: Final = "All files beside the state file must belong to the key manager's user: chown them."


class StoreBusy(HsmError):
    """Another process has the role."""

    default_status = "BUSY"
    default_hint = "Let the other process end it, or stop that process."


class Store:
    """One database. All Stores of a process on one file share a connection and its thread; tasks of any loop may use a
    Store. Closing one leaves the others open.

    `run` is for the classes that own tables: Emergency, History, Desired, …
    """

    def __init__(self, path: Path, database: _Database, *, shows: bool = False) -> None:
        self.path = path
        self._database = database
        self._shows = shows
        self._closed = False

    @classmethod
    async def open(cls, path: str | os.PathLike[str], secret: SealSecret | None = None, *, shows: bool = False) -> Self:
        """Open the database, make it (mode 0600) and its folder (0700) if they are missing, and migrate its tables.
        With the configuration's stateSecret, rows are sealed (state/seal.py), and `run` raises StoreNotGenuine for
        others; `shows`: not for reading, since the rows are only shown. Raises StoreError, also for a store that a
        newer version has written, and in a forked child for one that was open at the fork; SecretUnavailable."""
        key = None if secret is None else await asyncio.to_thread(derive, secret)
        return await cls._opened(Path(path), key, writes=True, shows=shows)

    @classmethod
    async def open_to_read(cls, path: str | os.PathLike[str], secret: SealSecret | None = None) -> Self:
        """Open a database that other processes write: this one makes and changes nothing, and blocks no writer. What it
        reads is not checked; `secret`: for `seal_status`. Raises StoreError, also if there is no database."""
        key = None if secret is None else await asyncio.to_thread(derive, secret)
        return await cls._opened(Path(path), key, writes=False)

    @classmethod
    async def _opened(cls, path: Path, key: bytearray | None, *, writes: bool, shows: bool = False) -> Self:
        database = _join(await asyncio.to_thread(_file_at, path, writes=writes))
        try:
            await asyncio.shield(asyncio.wrap_future(database.thread.submit(database.open, key)))
        except BaseException:
            database.leave()
            raise
        return cls(path, database, shows=shows)

    async def run(self, work: Callable[[Connection], T], *, shows: bool = False) -> T:
        """Do `work` in one transaction, which is durable when this returns. Raises StoreError, StoreNotGenuine;
        `shows`: as in `open`.

        Cancelling the caller does not stop a transaction that has begun.
        """
        return await self._run(lambda: self._database.transact(work, lenient=shows or self._shows))

    async def seal_status(self) -> SealStatus | None:
        """Check the whole seal. None: the configuration has no stateSecret. Raises StoreError."""
        seal = self._database.seal
        return None if seal is None else await self._run(lambda: self._database.transact_unchecked(seal.status))

    async def look(self) -> None:
        """Bring `problems` up to date. Cheap if no other process has written. Raises StoreError."""
        seal = self._database.seal
        if seal is not None:
            await self._run(lambda: self._database.transact_unchecked(seal.look))

    async def adopt(self, digest: str) -> None:
        """Seal the rows as they are, if `seal_status` has shown this digest of them. Raises StoreError."""
        seal = self._database.seal
        if seal is None:
            raise StoreError("the configuration has no stateSecret", hint="See `hsmcore state seal --help`.")
        await self._run(lambda: seal.seen(self._database.transact_unchecked(lambda on: seal.adopt(on, digest))))
        await self.seal_status()

    @property
    def problems(self) -> Mapping[str, str]:
        """Why rows are not genuine, by scope, at the last look. Any thread."""
        return {} if self._database.seal is None else self._database.seal.problems

    def vouch(self, *columns: object) -> str:
        """As Seal.vouch, in `work` of `run`; "" in a store without a seal."""
        return "" if self._database.seal is None else self._database.seal.vouch(*columns)

    def require_genuine(self) -> None:
        """Raise StoreNotGenuine if there are problems."""
        for scope, problem in self.problems.items():
            raise StoreNotGenuine(f"the state store is not genuine: {scope}: {problem}")

    def watch(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` told of each change of `problems`, in the store's thread. Returns how to end that."""
        listeners = [] if self._database.seal is None else self._database.seal.listeners
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise StoreError(f"state store {self.path}: it is closed")
        self._database.require_own_process()
        return await asyncio.get_running_loop().run_in_executor(self._database.thread, self._translated, work)

    async def rows(self, query: Select[Any]) -> list[dict[str, Any]]:
        """Return the rows of a query, by column. Raises StoreError."""

        def work(connection: Connection) -> list[dict[str, Any]]:
            # The names are a subclass of str, which orjson refuses as a key.
            return [{str(name): value for name, value in row.items()} for row in connection.execute(query).mappings()]

        return await self.run(work)

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except SQLAlchemyError as error:
            raise StoreError(f"state store {self.path}: {_reason(error)}") from None

    @asynccontextmanager
    async def exclusively(self, role: str) -> AsyncIterator[None]:
        """Hold a role that one process at a time may have, such as "rotation". Raises StoreBusy at once if another
        process, or another task of this one, has it. The role ends with the process, however that ends."""
        # The same lock, whatever path this Store was opened by.
        lock = Path(f"{self._database.file.path}.{role}.lock")
        try:
            descriptor = open_or_make(lock)
        except OSError as error:
            raise StoreError(f"state store {self.path}: {error.filename}: {error.strerror}", hint=OWNER_HINT) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreBusy(f"state store {self.path}: another process has the role {role!r}") from None
            yield
        finally:
            os.close(descriptor)

    async def close(self) -> None:
        """Close the Store after all work given to `run` before. The last Store on the file closes the connection.
        Idempotent; does nothing in a forked child."""
        if self._closed:
            return
        self._closed = True
        if self._database.is_own_process:
            await asyncio.shield(asyncio.wrap_future(self._database.leave()))


class Tables:
    """Base class of the classes that own tables."""

    def __init__(self, store: Store) -> None:
        self._store = store


@dataclass(frozen=True, slots=True)
class _File:
    """The identity of a file: a file that replaces it is another one."""

    path: Path
    device: int
    inode: int


class _Database:
    """An open file: the connection, its thread, and the number of Stores that use them."""

    def __init__(self, file: _File, *, writes: bool) -> None:
        self.file, self.writes = file, writes
        self.users = 0
        """Changed under _LOCK only."""
        self.thread = ThreadPoolExecutor(1, "hsmcore-state" if writes else "hsmcore-state-read")
        self.seal: Seal | None = None
        self._guard: Guard | None = None
        self._process = os.getpid()
        self._opened: tuple[Engine, Connection] | None = None

    @property
    def is_own_process(self) -> bool:
        """Whether this is not a child that was forked while the file was open."""
        return self._process == os.getpid()

    def require_own_process(self) -> None:
        """Raise StoreError in a forked child: SQLite there believes that it holds locks which are the parent's."""
        if not self.is_own_process:
            raise StoreError(
                f"state store {self.file.path}: it was open when this process was forked",
                hint="Open it after the fork, or start the child with spawn.",
            )

    def open(self, key: bytearray | None = None) -> None:
        """Connect, unless another Store has. `key`: of the seal, which this takes over. Runs in the thread."""
        if self._opened is None:
            self._opened = (_open if self.writes else _open_to_read)(self.file.path)
            if self.writes:
                event.listen(self._opened[1], "before_execute", self._before_execute)
        if key is None:
            return
        if self.seal is not None:
            same = self.seal.is_of(key)
            key[:] = bytes(len(key))
            if not same:
                raise StoreError(f"state store {self.file.path}: it is open with another stateSecret")
            return
        seal = Seal(key, _expected_schema())
        if self.writes:
            seal.seen(self.transact_unchecked(seal.begin))
        self.seal = seal

    def _before_execute(self, _connection: Connection, statement: Any, *_: Any) -> None:
        if self._guard is not None:
            self._guard.before(statement)

    def transact(self, work: Callable[[Connection], T], *, lenient: bool) -> T:
        """Do `work` in one transaction, under the seal. Runs in the thread, for an open Store."""

        def guarded(connection: Connection) -> tuple[T, int]:
            guard = self._guard = Guard(connection, self.seal, lenient=lenient)
            try:
                result = work(connection)
                return result, guard.end()
            finally:
                self._guard = None

        result, counter = self.transact_unchecked(guarded)
        if self.seal is not None:
            self.seal.seen(counter)
        return result

    def transact_unchecked(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in one transaction. Runs in the thread, for an open Store."""
        assert self._opened is not None  # noqa: S101  # for the type checker
        connection = self._opened[1]
        with connection.begin():
            return work(connection)

    def leave(self) -> Future[None]:
        """Drop one user, after all work that it gave to the thread."""
        return self.thread.submit(self._leave)

    def _leave(self) -> None:
        with _LOCK:
            self.users -= 1
            if self.users > 0:
                return
            del _DATABASES[self.file, self.writes]
        try:
            if self._opened is not None:
                _close(*self._opened)
            if self.seal is not None:
                self.seal.wipe()
        finally:
            self.thread.shutdown(wait=False)


_LOCK: Final = threading.Lock()
_DATABASES: Final[WeakValueDictionary[tuple[_File, bool], _Database]] = WeakValueDictionary()
"""The files that this process has open. A Store that is dropped without `close` takes its entry along."""
# A child forked while another thread is in here would find the lock held for ever.
os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


def _join(asked: tuple[_File, bool]) -> _Database:
    """Return the open file or a new one. The caller counts as a user and must call `leave`."""
    file, writes = asked
    with _LOCK:
        for mode in (True, False):
            inherited = _DATABASES.get((file, mode))
            if inherited is not None:
                inherited.require_own_process()
        database = _DATABASES.get(asked)
        if database is None:
            database = _DATABASES[asked] = _Database(file, writes=writes)
        database.users += 1
        return database


def _file_at(path: Path, *, writes: bool) -> tuple[_File, bool]:
    """Return the identity of the file; make it if it is missing and not read-only."""
    real = Path(os.path.realpath(path))
    if not writes and not real.is_file():
        raise StoreError(f"state store {path}: there is none yet", call="open")
    try:
        if writes:
            make_folder(real.parent, parents=True)
            # Not open(): another thread may open the file through SQLite before this descriptor is closed.
            with suppress(FileExistsError):
                make_empty(real)
        found = real.stat()
    except OSError as error:
        raise StoreError(f"state store {path}: {error.strerror}", call="open") from None
    return _File(real, found.st_dev, found.st_ino), writes


def _open(path: Path) -> tuple[Engine, Connection]:
    # Not "rwc": SQLite would make a file that was just removed with other permissions.
    engine = _engine(path, "rw")
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return _connected(engine, path, _migrate)


def _open_to_read(path: Path) -> tuple[Engine, Connection]:
    return _connected(_engine(path, "ro"), path, _require_known)


def _engine(path: Path, mode: str) -> Engine:
    url = URL.create("sqlite", database=f"file:{quote(os.fsencode(path))}", query={"mode": mode, "uri": "true"})
    return create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})


def _connected(engine: Engine, path: Path, check: Callable[[Connection, Path], None]) -> tuple[Engine, Connection]:
    """Return a connection whose first transaction is `check`; close it if that raises."""
    connection = None
    try:
        connection = engine.connect()
        with connection.begin():
            check(connection, path)
    except SQLAlchemyError as error:
        _close(engine, connection)
        raise StoreError(f"state store {path}: {_reason(error)}") from None
    except BaseException:
        _close(engine, connection)
        raise
    return engine, connection


def _require_known(connection: Connection, path: Path) -> None:
    if set(connection.execute(select(VERSION.c.version)).scalars()) != {each.number for each in MIGRATIONS}:
        raise StoreError(f"state store {path}: another version of hsmcore has written it")


def _prepare(connection: Any, _record: Any) -> None:
    # The driver would begin transactions by itself, late and without the write lock.
    connection.isolation_level = None
    _use_wal(connection)
    for pragma in ("synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to the WAL. SQLite waits for another process's write lock when a transaction begins, but not here."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # The low byte is the kind of error, the others its details.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            return


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(connection: Connection, path: Path) -> None:
    if not inspect(connection).has_table(VERSION.name):
        VERSION.create(connection)
    done = set(connection.execute(select(VERSION.c.version)).scalars())
    newest = MIGRATIONS[-1].number
    if done and max(done) > newest:
        raise StoreError(
            f"state store {path}: a newer version of hsmcore has written it (schema {max(done)}, known up to {newest})",
            hint="Use that version, or name another stateFile.",
        )
    for migration in MIGRATIONS:
        if migration.number not in done:
            for statement in migration.statements:
                connection.execute(text(statement.replace("{serial}", SERIAL[connection.dialect.name])))
            connection.execute(insert(VERSION).values(version=migration.number, applied_ns=time.time_ns()))


@cache
def _expected_schema() -> Schema:
    """Return the objects that the migrations make."""
    engine = create_engine("sqlite://", poolclass=NullPool)
    with engine.connect() as connection:
        _migrate(connection, Path())
        found = schema_of(connection)
    engine.dispose()
    return found


def _reason(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or type(error).__name__)


def _close(engine: Engine, connection: Connection | None) -> None:
    if connection is not None:
        connection.close()
    engine.dispose()
