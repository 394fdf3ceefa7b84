"""The state store of one host: a file of SQLite in WAL mode with synchronous=FULL.

A committed transaction survives kill -9 and a power cut. Every transaction takes the write lock when it begins, so the
processes on one file take turns, and each sees the results of the one before.

A process has one connection to a file for each mode, whatever the number of Stores: POSIX locks belong to the process,
so a second opener must not be able to undo the first one's. Only SQLite may open the file: closing any descriptor of it
drops all of SQLite's locks in this process, and the next process to finish deletes the WAL that is in use.

Between two checkpoints nothing but the WAL is written to. So the file's size and time after the last one are kept in
its header, and each transaction compares: SQLite itself would not see that another program has written to the file.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects import sqlite as dialects
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from hsmcore.base.ownership import EXPOSED_HINT, exposed, make_empty, make_folder, open_or_make, sync
from hsmcore.state.database import ABSENT_HINT, BUSY_SECONDS, Database, Told, Work, migrate, reason, require_known
from hsmcore.state.errors import StoreBusy, StoreError
from hsmcore.state.exchange import Decide, Question, one_by_one, text_of
from hsmcore.state.schema import PROMISED

T = TypeVar("T")

FILE_HINT: Final = "Check that the state file's folder is writable and has space; name another with stateFile."
GONE_HINT: Final = (
    "Put the file back, and this process goes on; or stop all that use it, see docs/RECOVERY.md, and start again."
)
OWNER_HINT: Final = "All files beside the state file must belong to the key manager's user: chown them."
_DIALECT: Final = dialects.dialect(paramstyle="named")
_RETRY_SECONDS: Final = 0.01
_CHECKPOINT_EVERY: Final = 256
"""Transactions of a process. Each writes some pages of 4 KiB; SQLite's own default is 1,000 pages."""
_UNDER_WAY: Final = 0
"""The application_id while a checkpoint changes the file, and of a file that no hsmcore has closed."""
_KEPT: Final = f"{PROMISED} OR EXISTS (SELECT 1 FROM audit_mark) OR EXISTS (SELECT 1 FROM key_binding)"  # noqa: S608  # our own
"""Whether a store may not be removed: the audit log may go on after it, too."""
_RING: Final = "SELECT public_key FROM key_version WHERE public_key <> ''"
_SUCCESSOR: Final = """SELECT key_id FROM key_version WHERE state = 'active'
    AND EXISTS (SELECT 1 FROM key_version WHERE public_key = ? AND state <> 'active')"""
_DOMAIN: Final = "SELECT public_key, domain, forms FROM key_domain WHERE public_key = ?"
_STATISTICS: Final = ("sqlite_stat1", "sqlite_stat4")


@dataclass(frozen=True, slots=True)
class _File:
    """The identity of a file: a file that replaces it is another one."""

    path: Path
    device: int
    inode: int


class FileDatabase(Database):
    """A file. Made if it is missing and `makes` is set. Raises StoreError."""

    def __init__(self, path: Path, *, writes: bool, makes: bool) -> None:
        super().__init__(f"state store {path}", writes=writes)
        self._file = _file_at(path, makes=makes)
        self._opened: tuple[Engine, Connection] | None = None
        self._beside: dict[str, tuple[int, int]] = {}
        """Inode and size of the files of SQLite beside it: while one has them open, they are not made anew or cut."""
        self._print, self._overwritten = _UNDER_WAY, ""
        self._until_checkpoint = _CHECKPOINT_EVERY

    @property
    def key(self) -> _File:
        return self._file

    def connect(self) -> None:
        if self._opened is None:
            self._opened = (_open if self.writes else _open_to_read)(self._file.path)
            if self.writes:
                event.listen(self._opened[1], "before_execute", self.before_execute)
                self._settle(self._opened[1], checkpoint=False)

    def foreign(self, connection: Connection) -> str:
        found, made = _schema_of(connection), _made()
        ours = {table for _, _, table, _ in made}
        for kind, name, table, _ in found - made:
            harmless = kind in ("table", "index") and table not in ours and name not in ours
            if not harmless and not (kind == "table" and name in _STATISTICS):
                return f"{kind} {name}"
        missing = next(iter(made - found), None)
        return "" if missing is None else f"the lack of {missing[0]} {missing[1]}"

    def transact_unchecked(self, work: Work[T], *, turn: bool = True) -> T:
        del turn  # the write lock is taken at any rate
        assert self._opened is not None  # noqa: S101  # for the type checker
        connection = self._opened[1]
        self.require_in_place()
        with connection.begin():
            if self.writes:
                self._compare(connection)
            result = work(connection)
        self.require_in_place()  # else what was written may be in a file that no start will find
        self._until_checkpoint -= 1
        if self.writes and self._until_checkpoint <= 0:
            self._settle(connection, checkpoint=True)
        return result

    def exchange(self, questions: Sequence[Question], decide: Decide[T], *, lenient: bool, turn: bool = True) -> T:
        return self.transact(one_by_one(questions, decide, self._execute), lenient=lenient, turn=turn)

    def _execute(
        self, connection: Connection, statement: Any, values: Sequence[Mapping[str, Any]]
    ) -> tuple[Sequence[Sequence[Any]], int]:
        """Execute, past SQLAlchemy, which takes longer for that than SQLite."""
        self.before_execute(connection, statement)
        text, fixed = text_of(_DIALECT, statement, tuple(values[0]))
        driver: Any = connection.connection.driver_connection
        try:
            if len(values) > 1:
                return [], driver.executemany(text, [{**fixed, **row} for row in values]).rowcount
            cursor = driver.execute(text, {**fixed, **values[0]})
            return cursor.fetchall(), cursor.rowcount
        except sqlite3.Error as error:
            raise StoreError(f"{self.shown}: {error}", hint=FILE_HINT) from None

    def require_in_place(self) -> None:
        # A file that was deleted or replaced takes transactions as before, and is gone with the process.
        found = self._found()
        if (found.st_dev, found.st_ino) != (self._file.device, self._file.inode):
            self._refuse("another file is in its place")
        if self._overwritten:
            self._refuse(self._overwritten)
        for end in ("-wal", "-shm") if self.writes else ():
            beside = self._found(end)
            inode, size = self._beside.setdefault(end, (beside.st_ino, 0))
            if beside.st_ino != inode or beside.st_size < size:
                self._refuse(f"another program has changed {self._file.path.name}{end}")
            self._beside[end] = (inode, max(size, beside.st_size))
        self.problems.note("file", "", GONE_HINT)

    def _found(self, end: str = "") -> os.stat_result:
        try:
            return os.stat(f"{self._file.path}{end}")  # noqa: PTH116  # each transaction does it
        except OSError as error:
            self._refuse(f"its file is gone: {error.strerror}")

    def _refuse(self, problem: str) -> NoReturn:
        self.problems.note("file", problem, GONE_HINT)
        raise StoreError(f"{self.shown}: {problem}", call="stat", hint=GONE_HINT)

    def _compare(self, connection: Connection) -> None:
        """Raise StoreError if another program has written to the file. In a transaction, so that no checkpoint begins
        or ends meanwhile."""
        now = _print_of(self._found())
        if now == self._print:
            return
        written = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        if written not in (_UNDER_WAY, now):
            self._overwritten = "another program has written to it"
            self._refuse(self._overwritten)
        self._print = written

    def _settle(self, connection: Connection, *, checkpoint: bool) -> None:
        """Have the header say what the file is now; `checkpoint`: first, move the WAL's pages to it. Does nothing while
        another process does it."""
        self._until_checkpoint = _CHECKPOINT_EVERY
        driver: Any = connection.connection.driver_connection
        # An error is none of the transaction's, which is committed: the next one tries again.
        with suppress(OSError, sqlite3.Error), _locked(self._file.path.parent):
            if checkpoint:
                driver.execute(f"PRAGMA application_id = {_UNDER_WAY}")
                driver.execute("PRAGMA wal_checkpoint").fetchall()
            self._print = _print_of(self._file.path.stat())
            driver.execute(f"PRAGMA application_id = {self._print}")

    def copy_to(self, path: Path, told: Told | None) -> None:
        del told  # a file is copied within seconds
        assert self._opened is not None  # noqa: S101  # for the type checker
        driver: Any = self._opened[1].connection.driver_connection
        with closing(sqlite3.connect(path)) as target:
            driver.backup(target)  # in one step, so no writer can come between
            target.execute("PRAGMA journal_mode = DELETE")  # one file

    def disconnect(self) -> None:
        if self._opened is not None:
            _close(*self._opened)

    @asynccontextmanager
    async def exclusively(self, role: str) -> AsyncIterator[None]:
        # The same lock, whatever path a Store was opened by.
        lock = Path(f"{self._file.path}.{role}.lock")
        try:
            descriptor = open_or_make(lock)
        except OSError as error:
            raise StoreError(f"{self.shown}: {error.filename}: {error.strerror}", hint=OWNER_HINT) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreBusy(f"{self.shown}: another process has the role {role!r}") from None
            yield
        finally:
            os.close(descriptor)


def install(copy: Path, path: Path, *, replace: bool) -> Path | None:
    """Put a copy, a file in the folder of `path`, in the place of a store. Returns where the former one is kept;
    None: there was none. Raises StoreBusy if a process uses the store, StoreError if there is one and `replace` is
    not set."""
    real = Path(os.path.realpath(path))
    aside = None
    try:
        sync(copy)
        if os.path.lexists(real):
            if not replace:
                raise StoreError(f"state store {path}: there is one", hint="It is kept beside the other: --replace.")
            _require_unused(real)
            moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            aside = real.with_name(f"{real.name}.before-{moment}-{secrets.token_hex(3)}")
            os.link(real, aside)
        for end in ("-wal", "-shm"):  # of a store that no process could close: they would be taken for the copy's
            with suppress(FileNotFoundError):
                Path(f"{real}{end}").rename(f"{aside or real}{end}.before")
        copy.replace(real)
        sync(real.parent)
    except OSError as error:
        raise StoreError(f"state store {path}: {error.strerror}", call="rename", hint=FILE_HINT) from None
    return aside


def _require_unused(path: Path) -> None:
    """Raise StoreBusy if a process has the store open: only the last one can leave the WAL. Then all is in the file."""
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreBusy(f"state store {path}: a process uses it", hint="Stop its key managers.") from None
        except sqlite3.DatabaseError:
            return  # it is damaged, which is why it is replaced


def discard(path: Path) -> None:
    """Remove a store that no process uses and that keeps nothing. A process that has just begun to open it gets a
    StoreError with its first transaction. Raises StoreBusy if one uses it, or if it keeps something."""
    real = Path(os.path.realpath(path))
    if not real.exists():
        return
    try:
        _require_unused(real)
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(real))}?mode=rw", uri=True, timeout=0)) as connection:
            connection.isolation_level = None
            connection.execute("BEGIN EXCLUSIVE")
            if connection.execute(_KEPT).fetchone()[0]:
                raise StoreBusy(f"state store {path}: it keeps something")
            real.unlink()
    except (OSError, sqlite3.Error) as error:
        raise StoreBusy(f"state store {path}: {error}") from None


def number_of(path: Path) -> int:
    """Return the id of a store's file; 0: it has none, or is not a store."""
    return int(str(_looked_up(path, "PRAGMA user_version") or 0))


def successor_in(path: Path, public_key: bytes) -> str:
    """Return the id of the key that signs in the place of another one, by the key ring in a store's file; "": the ring
    does not say so, or it is not a store. The seal is not looked at."""
    return str(_looked_up(path, _SUCCESSOR, public_key.hex()) or "")


def domain_in(path: Path, public_key: bytes) -> list[Sequence[object]]:
    """Return the row of a key in a store's file, for domains.read; none: it has none, or is not a store. The seal is
    not looked at."""
    found = _row_of(path, _DOMAIN, public_key.hex())
    return [] if found is None else [found]


def _looked_up(path: Path, query: str, *values: str) -> object:
    found = _row_of(path, query, *values)
    return None if found is None else found[0]


def _row_of(path: Path, query: str, *values: str) -> Sequence[object] | None:
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro", uri=True)) as on:
        found: Sequence[object] | None = on.execute(query, values).fetchone()
        return found
    return None


def number_in(connection: Connection) -> int:
    """As number_of, in a transaction."""
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())


def set_number(connection: Connection, number: int) -> None:
    """Have the store take the place of the one with that id, in a transaction; 0: it keeps its own."""
    if number:
        connection.exec_driver_sql(f"PRAGMA user_version = {number:d}")


def is_promised(connection: Connection) -> bool:
    """Return whether the store keeps a promise for a key."""
    return bool(connection.exec_driver_sql(PROMISED).scalar())


def ring_in(connection: Connection) -> frozenset[bytes]:
    """Return the public keys of the key ring."""
    # Not by tables, which the seal would check: a forged row makes an entry too many at most.
    found = set[bytes]()
    for text in connection.exec_driver_sql(_RING).scalars():
        with suppress(ValueError, TypeError):
            found.add(bytes.fromhex(text))
    return frozenset(found)


def _file_at(path: Path, *, makes: bool) -> _File:
    """Return the identity of the file; make it if it is missing and `makes` is set."""
    real = Path(os.path.realpath(path))
    if not makes and not real.is_file():
        raise StoreError(f"state store {path}: there is none yet", call="open", hint=ABSENT_HINT)
    try:
        if makes:
            make_folder(real.parent, parents=True)
            if problem := exposed(real.parent):
                raise StoreError(f"state store {path}: {problem}", call="open", hint=EXPOSED_HINT)
            # Not open(): another thread may open the file through SQLite before this descriptor is closed.
            with suppress(FileExistsError):
                make_empty(real)
        found = real.stat()
    except OSError as error:
        raise StoreError(f"state store {path}: {error.strerror}", call="open", hint=FILE_HINT) from None
    return _File(real, found.st_dev, found.st_ino)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Raises OSError, also if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _print_of(found: os.stat_result) -> int:
    """Return a number of 31 bits, not 0, for the size and the time of a file's last change."""
    return zlib.crc32(b"%d %d" % (found.st_size, found.st_mtime_ns)) & 0x7FFF_FFFF or 1


def _open(path: Path) -> tuple[Engine, Connection]:
    # Not "rwc": SQLite would make a file that was just removed with other permissions.
    engine = _engine(path, "rw")
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return _connected(engine, path, migrate)


def _open_to_read(path: Path) -> tuple[Engine, Connection]:
    return _connected(_engine(path, "ro"), path, require_known)


def _engine(path: Path, mode: str) -> Engine:
    url = URL.create("sqlite", database=f"file:{quote(os.fsencode(path))}", query={"mode": mode, "uri": "true"})
    return create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_SECONDS})


def _connected(engine: Engine, path: Path, check: Callable[[Connection, str], None]) -> tuple[Engine, Connection]:
    """Return a connection whose first transaction is `check`; close it if that raises."""
    connection = None
    try:
        connection = engine.connect()
        with connection.begin():
            check(connection, f"state store {path}")
    except SQLAlchemyError as error:
        _close(engine, connection)
        raise StoreError(f"state store {path}: {reason(error)}", hint=FILE_HINT) from None
    except BaseException:
        _close(engine, connection)
        raise
    return engine, connection


def _prepare(connection: Any, _record: Any) -> None:
    # The driver would begin transactions implicitly, late and without the write lock.
    connection.isolation_level = None
    _use_wal(connection)
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "wal_autocheckpoint = 0"):
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


def _schema_of(connection: Connection) -> frozenset[tuple[str, str, str, str]]:
    """Return kind, name, table and SQL of each object of the database."""
    rows = connection.exec_driver_sql("SELECT type, name, tbl_name, sql FROM sqlite_master")
    return frozenset((kind, name, table, " ".join(str(sql or "").split())) for kind, name, table, sql in rows)


@cache
def _made() -> frozenset[tuple[str, str, str, str]]:
    """Return the objects that the migrations make."""
    engine = create_engine("sqlite://", poolclass=NullPool)
    with engine.connect() as connection:
        migrate(connection, "")
        found = _schema_of(connection)
    engine.dispose()
    return found


def _close(engine: Engine, connection: Connection | None) -> None:
    if connection is not None:
        connection.close()
    engine.dispose()
