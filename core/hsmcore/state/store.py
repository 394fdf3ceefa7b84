"""The store: one small database for what must survive a crash.

SQLite in WAL mode with synchronous=FULL: what has been committed survives kill -9 and a power cut. Every transaction
takes the write lock when it begins, so several processes on one file are served one after the other and each sees what
the one before left. What only one process may do at all takes `exclusively`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from hsmcore.errors import HsmError, SystemFailure
from hsmcore.ownership import make_empty, make_folder, open_or_make
from hsmcore.state.schema import MIGRATIONS, SERIAL, VERSION

T = TypeVar("T")

BUSY_SECONDS: Final = 10.0
"""How long a transaction waits for another process's."""


OWNER_HINT: Final = "All files beside the state file must belong to the key manager's user: chown them."


class StoreError(SystemFailure):
    """The state store cannot be opened, read or written. Nothing that depends on it is done."""

    default_hint = "Check that the state file's folder is writable and has space; name another with stateFile."


class StoreBusy(HsmError):
    """Another process does what only one may do at a time."""

    default_status = "BUSY"
    default_hint = "Let the other process end it, or stop that process."


class Store:
    """One database. All work runs in one thread of its own; any task of any loop may use it.

    `run` is for the classes that know what the tables mean: Emergency, History, Desired.
    """

    def __init__(self, path: Path, thread: ThreadPoolExecutor, engine: Engine, connection: Connection) -> None:
        self.path = path
        self._thread = thread
        self._engine = engine
        self._connection = connection
        self._closed = False

    @classmethod
    async def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the database, making it (mode 0600) and its folder (0700) if need be, and bring its tables up to date.
        Raises StoreError, also for a store that a newer version has written."""
        return await cls._opened(Path(path), _open, "hsmcore-state")

    @classmethod
    async def open_to_read(cls, path: str | os.PathLike[str]) -> Self:
        """Open a database that others write: nothing is made or changed, and nobody waits for whoever reads. Raises
        StoreError, also where there is none."""
        return await cls._opened(Path(path), _open_to_read, "hsmcore-state-read")

    @classmethod
    async def _opened(cls, path: Path, opener: Callable[[Path], tuple[Engine, Connection]], name: str) -> Self:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        opening = asyncio.get_running_loop().run_in_executor(thread, opener, path)
        try:
            engine, connection = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda done: _undo(thread, done))
            raise
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(path, thread, engine, connection)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in one transaction. It is durable when this returns. Raises StoreError.

        Cancelling the caller doesn't stop a transaction that has begun."""
        if self._closed:
            raise StoreError(f"state store {self.path}: it is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def _transact(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._connection.begin():
                return work(self._connection)
        except SQLAlchemyError as error:
            raise StoreError(f"state store {self.path}: {_reason(error)}") from None

    @asynccontextmanager
    async def exclusively(self, role: str) -> AsyncIterator[None]:
        """Hold a role that one process at a time may have, such as "rotation". Raises StoreBusy at once if another
        process, or another task of this one, has it. It ends with the process, however that ends."""
        try:
            descriptor = open_or_make(Path(f"{self.path}.{role}.lock"))
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
        """Close it. Doing it twice is no error."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, _close, self._engine, self._connection)
        self._thread.shutdown(wait=False)


def _open(path: Path) -> tuple[Engine, Connection]:
    try:
        make_folder(path.parent, parents=True)
        with suppress(FileExistsError):
            make_empty(path)
    except OSError as error:
        raise StoreError(f"state store {path}: {error.strerror}", call="open") from None
    url = URL.create("sqlite", database=str(path))
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return _connected(engine, path, _migrate)


def _open_to_read(path: Path) -> tuple[Engine, Connection]:
    if not path.is_file():
        raise StoreError(f"state store {path}: there is none yet", call="open")
    url = URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query={"mode": "ro", "uri": "true"})
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})
    return _connected(engine, path, _require_known)


def _connected(engine: Engine, path: Path, check: Callable[[Connection, Path], None]) -> tuple[Engine, Connection]:
    """A connection whose first transaction is `check`; nothing is left open if it raises."""
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
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


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


def _reason(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or type(error).__name__)


def _close(engine: Engine, connection: Connection | None) -> None:
    if connection is not None:
        connection.close()
    engine.dispose()


def _undo(thread: ThreadPoolExecutor, opening: asyncio.Future[tuple[Engine, Connection]]) -> None:
    """An opening whose caller was cancelled has ended: close what it opened."""
    if not opening.cancelled() and opening.exception() is None:
        thread.submit(_close, *opening.result())
    thread.shutdown(wait=False)
