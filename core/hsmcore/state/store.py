"""The store: one small database for state that must survive a crash.

A transaction is durable when `run` returns. Transactions take turns, those of other processes too, and each sees the
results of the one before. A role that one process at a time may have is taken with `exclusively`.

The database is a file of one host (state/sqlite.py) or what the hosts of a fleet share (state/postgres/database.py).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import orjson
from sqlalchemy import Connection, Select
from sqlalchemy.exc import SQLAlchemyError

from hsmcore.base.extras import install
from hsmcore.base.waiting import shielded, whole
from hsmcore.state.database import BUSY_SECONDS, Database, Told, join, now_ns, reason
from hsmcore.state.errors import StoreBusy, StoreError, StoreNotGenuine
from hsmcore.state.exchange import Answers, Asking, Change, Decide, Question, Relying, Reply, answered
from hsmcore.state.postgres.roles import fence
from hsmcore.state.seal import Listener, SealSecret, SealStatus, derive
from hsmcore.state.sqlite import FILE_HINT, OWNER_HINT, FileDatabase

if TYPE_CHECKING:
    from hsmcore.state.postgres.place import DatabaseServer
    from hsmcore.state.register import Keeper

    Place = str | os.PathLike[str] | DatabaseServer
    """A file's path, or a fleet."""

__all__ = [
    "BUSY_SECONDS",
    "OWNER_HINT",
    "Store",
    "Tables",
    "now_ns",
]

T = TypeVar("T")

_LEAST_PAUSE: Final = 0.01


class Store:
    """One database. All Stores of a process on one database share a connection and its thread; tasks of any loop may
    use a Store. Closing one leaves the others open.

    `run` is for the classes that own tables: Emergency, History, Desired, …
    """

    def __init__(self, path: Path | None, database: Database, *, shows: bool = False) -> None:
        self.path = path
        """None: it is not a file."""
        self._database = database
        self._shows = shows
        self._closed = False

    @classmethod
    async def open(
        cls, place: Place, secret: SealSecret | None = None, *, shows: bool = False, makes: bool = True
    ) -> Self:
        """Open the database, make it and its tables if they are missing (a file with mode 0600, its folder 0700), and
        migrate them; without `makes`, a file that is missing is an error. With the configuration's stateSecret, rows
        are sealed (state/seal.py), and `run` raises StoreNotGenuine for others; `shows`: not for reading, since the
        rows are only shown. Raises StoreError, also for a store that a newer version has written, for a database that
        does not keep what it confirms, and in a forked child for one that was open at the fork; SecretUnavailable."""
        key = None if secret is None else await asyncio.to_thread(derive, secret)
        return await cls._opened(place, key, writes=True, shows=shows, makes=makes)

    @classmethod
    async def open_to_read(cls, place: Place, secret: SealSecret | None = None) -> Self:
        """Open a database that other processes write: this one makes and changes nothing, and blocks no writer. Rows
        are read unchecked; `secret`: for `seal_status`. Raises StoreError, also if there is no database."""
        key = None if secret is None else await asyncio.to_thread(derive, secret)
        return await cls._opened(place, key, writes=False, makes=False)

    @classmethod
    async def _opened(
        cls, place: Place, key: bytearray | None, *, writes: bool, makes: bool, shows: bool = False
    ) -> Self:
        path = Path(place) if isinstance(place, (str, os.PathLike)) else None
        database = join(await asyncio.to_thread(_database_at, place, writes=writes, makes=makes))
        try:
            await shielded(asyncio.wrap_future(database.thread.submit(database.open, key)))
        except BaseException:
            database.leave()
            raise
        return cls(path, database, shows=shows)

    @property
    def name(self) -> str:
        """The database's name for people: its path, or its fleet, host and database."""
        return self._database.shown if self.path is None else f"state store {self.path}"

    @property
    def identity(self) -> tuple[str, str]:
        """System and timeline of the server that the connection leads to; "" for a file. Any thread."""
        return self._database.identity

    @property
    def incarnation(self) -> str:
        """Another text for each server, timeline and start of the server: while it is the same, nothing that was
        confirmed is lost. "" for a file. Any thread."""
        return self._database.incarnation

    def certificates(self) -> Mapping[str, float]:
        """As Database.certificates. Any thread. Blocks."""
        return self._database.certificates()

    def on_connect(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called in the store's thread after each connection to another server, or to the same one
        again. Returns how to end that. A file is never connected again."""
        self._database.listeners.append(listener)
        return lambda: self._database.listeners.remove(listener)

    async def run(self, work: Callable[[Connection], T], *, shows: bool = False, turn: bool = True) -> T:
        """Do `work` in one transaction, which is durable when this returns. `shows`: as in `open`. `turn`: whether no
        other transaction runs at the same time; a file, and a store with a seal, always take turns.

        Raises StoreError: nothing was written; StoreUnknown: whether it was is unknown; StoreNotGenuine; RoleLost in a
        role (`exclusively`) that another process has taken. Cancelling the caller does not stop a transaction that has
        begun.
        """
        asked, require = fence(self._database)

        def checked(connection: Connection) -> T:
            require(answered(connection, asked))
            return work(connection)

        turn = turn or bool(asked)  # else the role could be taken between the check and COMMIT
        return await self._run(lambda: self._database.transact(checked, lenient=shows or self._shows, turn=turn))

    async def run_out(self, work: Callable[[Connection], int]) -> int:
        """Do `work`, which removes a portion of rows that mean nothing any more and returns their number, until there
        are none, with a pause as long as each took: another transaction, also of another process, waits for a portion
        at most. Returns the number of rows. May be interrupted. Raises StoreError."""
        count = 0
        while True:
            begun = time.monotonic()
            gone = await self.run(work, turn=False)
            if not gone:
                return count
            count += gone
            await asyncio.sleep(max(_LEAST_PAUSE, time.monotonic() - begun))

    async def exchange(self, questions: Sequence[Question], decide: Decide[T], *, turn: bool = True) -> T:
        """As `run`, for a transaction that asks everything first and then writes: a server is sent two messages.
        `decide` runs in the store's thread."""
        asked, require = fence(self._database)

        def checked(answers: Answers) -> tuple[T, Sequence[Change]]:
            require(answers)
            return decide(answers[len(asked) :])

        turn, every, lenient = turn or bool(asked), [*asked, *questions], self._shows
        return await self._run(lambda: self._database.exchange(every, checked, lenient=lenient, turn=turn))

    def asking(self) -> Asking:
        """Return what asks and changes without waiting for the store's transactions, if the database can do that.
        Close it before the Store."""
        return self._database.asking() or _InTurn(self)

    def binding(self) -> Relying | None:
        """Return what does a transaction that relies on what this process has read, on a connection of its own; None:
        this database is asked first. Close it before the Store."""
        return self._database.binding()

    async def seal_status(self) -> SealStatus | None:
        """Check the whole seal. None: the configuration has no stateSecret. Raises StoreError."""
        seal = self._database.seal
        return None if seal is None else await self._run(lambda: self._database.transact_unchecked(seal.status))

    async def look(self) -> None:
        """Bring `problems` up to date. Cheap if no other process has written. Raises StoreError."""
        seal = self._database.seal
        await self._run(
            self._database.require_in_place if seal is None else lambda: self._database.transact_unchecked(seal.look)
        )

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
        return self._database.problems.by_scope

    def vouch(self, *columns: object) -> str:
        """As Seal.vouch, in `work` of `run`; "" in a store without a seal."""
        return "" if self._database.seal is None else self._database.seal.vouch(*columns)

    def mark(self, *columns: object) -> str:
        """As Seal.mark; "" in a file, whose digest has the columns, and in a store without a seal."""
        seal = self._database.seal if self._database.witnessed else None
        return "" if seal is None else seal.mark(*columns)

    def is_mark(self, *columns: Any) -> bool:
        """As Seal.is_mark, where `mark` returns a MAC."""
        seal = self._database.seal if self._database.witnessed else None
        return seal is None or seal.is_mark(*columns)

    def attest(self, *columns: object) -> str:
        """As Seal.attest; "" in a store without a seal. Any thread."""
        return "" if self._database.seal is None else self._database.seal.attest(*columns)

    def attests(self, mac: object, *columns: object) -> bool:
        """Return whether a MAC is that of `attest`; in a store without a seal, any is. Any thread."""
        made = self.attest(*columns)
        return not made or (isinstance(mac, str) and compare_digest(mac.encode(), made.encode()))

    def require_genuine(self) -> None:
        """Raise StoreNotGenuine if there are problems."""
        for scope, problem in self.problems.items():
            raise StoreNotGenuine(f"the state store is not genuine: {scope}: {problem}")

    async def keep(self, keeper: Keeper) -> Callable[[], None]:
        """Have a keeper compare now, and look at each transaction of this process that writes from now on. Returns how
        to end that. Raises StoreBehind, StoreError."""
        await self._run(lambda: self._database.transact_unchecked(keeper.begin))
        await self._run(lambda: self._database.transact_unchecked(keeper.settle))
        self._database.keepers.append(keeper.look)
        return lambda: self._database.keepers.remove(keeper.look)

    def watch(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` told of each change of `problems`, in the store's thread. Returns how to end that."""
        listeners = self._database.problems.listeners
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise StoreError(f"{self.name}: it is closed")
        self._database.require_own_process()
        return await asyncio.get_running_loop().run_in_executor(self._database.thread, self._translated, work)

    async def copy_to(self, path: Path, told: Told | None = None) -> None:
        """Copy everything, as it is at one moment, into a new file of SQLite. `told`: in the store's thread. A
        cancellation waits until nothing is written any more. Raises StoreError."""
        await whole(self._run(lambda: self._database.copy_to(path, told)))

    async def replace_all(self, copy: Path, aside: str, told: Told | None = None) -> None:
        """Put the rows of a store's file, which is closed, in the place of all others of a server, which are kept in a
        schema named `aside`; "": there are none. `told`: as in `copy_to`. Raises StoreError."""
        await self._run(lambda: self._database.replace_all(copy, aside, told))

    async def foreign(self) -> str:
        """Return an object of the database that is not of hsmcore's making, or "". Raises StoreError."""
        return await self._run(lambda: self._database.transact_unchecked(self._database.foreign))

    async def rows(self, query: Select[Any], *documents: str) -> list[dict[str, Any]]:
        """Return the rows of a query, by column. `documents`: columns with JSON, whose values are returned parsed.
        Raises StoreError."""

        def work(connection: Connection) -> list[dict[str, Any]]:
            # The names are a subclass of str, which orjson refuses as a key.
            found = [{str(name): value for name, value in row.items()} for row in connection.execute(query).mappings()]
            return [row | {name: orjson.loads(row[name]) for name in documents} for row in found]

        return await self.run(work)

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except SQLAlchemyError as error:
            raise StoreError(f"{self.name}: {reason(error)}", hint=FILE_HINT) from None

    @asynccontextmanager
    async def exclusively(self, role: str) -> AsyncIterator[None]:
        """Hold a role that one process at a time may have, such as "rotation". Raises StoreBusy at once if another
        process, or another task of this one, has it. The role ends with the process, however that ends; in a fleet a
        moment later, and one that was stopped for longer has lost it: then `run` raises RoleLost."""
        async with self._database.exclusively(role):
            yield

    def leading(self, role: str) -> Role:
        """Return the role for a service that has it now and then."""
        return Role(self, role)

    def hurry(self) -> None:
        """Give up, for a moment, all work of this process on the database that has no answer: `close` waits for it."""
        self._database.hurry()

    def hasten(self) -> None:
        """The database has confirmed what came from another connection: an exchange that has waited for long has lost
        its own, and is given up."""
        self._database.hasten()

    async def close(self) -> None:
        """Close the Store after all work given to `run` before. The last Store on the database closes the connection.
        Idempotent; does nothing in a forked child."""
        if self._closed:
            return
        self._closed = True
        if self._database.is_own_process:
            await shielded(asyncio.wrap_future(self._database.leave()))


class Role:
    """A role, as `Store.exclusively`, that is taken and left. Used by one task, whose `run` needs it."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._hold = AsyncExitStack()
        self.held = False

    async def take(self) -> bool:
        """Take the role, if it is not held; return whether it was free. Raises StoreError."""
        if not self.held:
            try:
                await self._hold.enter_async_context(self._store.exclusively(self._name))
            except StoreBusy:
                return False
            self.held = True
        return True

    async def leave(self) -> None:
        """Let another process have it. Idempotent."""
        self.held = False
        await self._hold.aclose()


class _InTurn:
    """Asking, for a database with one connection."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def ask(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        del seconds  # who waits for the store's transactions waits as long as they do
        asked = [one if isinstance(one, Question) else Question(one.statement, one.values[0]) for one in work]

        def decide(found: Answers) -> tuple[Reply, Sequence[Change]]:
            answers = [rows for one, rows in zip(work, found, strict=True) if isinstance(one, Question)]
            return Reply(answers, self._store.identity, self._store.incarnation), ()

        return await self._store.exchange(asked, decide, turn=False)

    async def close(self) -> None:
        pass


class Tables:
    """Base class of the classes that own tables."""

    def __init__(self, store: Store) -> None:
        self._store = store


def _database_at(place: Place, *, writes: bool, makes: bool) -> Database:
    if isinstance(place, (str, os.PathLike)):
        return FileDatabase(Path(place), writes=writes, makes=makes)
    try:
        from hsmcore.state.postgres.database import ServerDatabase
    except ImportError:
        raise StoreError("the package psycopg is not installed", hint=f"Run: {install('fleet')}") from None
    return ServerDatabase(place, writes=writes)
