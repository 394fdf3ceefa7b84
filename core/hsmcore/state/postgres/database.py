"""The state store of a fleet: a schema of a PostgreSQL database, which several hosts write.

Semantics are those of the file. A transaction locks one row before all else; a host that stops while it holds the lock
loses it after a second. Each transaction sets what it needs for itself, so that a pooler may hand every one to another
connection (PgBouncer in transaction mode): no prepared statements, no session's state.

A server that may lose what it confirmed is refused, at each connection and in each transaction: what the others have
bound must not be forgotten. When the confirmation itself is lost, whether a transaction is durable is unknown:
StoreUnknown.

Read next: state/postgres/link.py, one connection; state/postgres/url.py, what a URL may say; state/postgres/roles.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, closing, suppress
from functools import partial
from pathlib import Path
from traceback import clear_frames
from typing import Any, Final, TypeVar
from weakref import WeakSet

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from hsmcore.state.copies import fill, portions_of, rows_in
from hsmcore.state.database import (
    ABSENT_HINT,
    BUSY_SECONDS,
    Database,
    Told,
    Work,
    counted,
    migrate,
    require_known,
)
from hsmcore.state.errors import StoreAway, StoreError, StoreNotGenuine, StoreUnknown
from hsmcore.state.exchange import Answers, Asking, Change, Decide, Question, Relying
from hsmcore.state.postgres import rights
from hsmcore.state.postgres.ask import Asker, Vouched, fell
from hsmcore.state.postgres.binding import Binding, same_rows, same_server, vouched
from hsmcore.state.postgres.certificate import Certified, explained
from hsmcore.state.postgres.link import (
    FAILING_OVER,
    MORE,
    STANDBY,
    CommitLost,
    Facts,
    Link,
    Patient,
    beginning,
    failure,
    take_turn,
)
from hsmcore.state.postgres.place import DatabaseServer, refuse_others, schema_name
from hsmcore.state.postgres.roles import RolesSeen, fence, row_role
from hsmcore.state.postgres.schema import TEMPORARY, Objects, foreign_of, marks_of, objects_of, rare_of
from hsmcore.state.postgres.url import resolved
from hsmcore.state.schema import METADATA
from hsmcore.state.seal import EARLIER, Seal, SealSecret
from hsmcore.state.seal_guard import is_quick
from hsmcore.state.sealed_rows import HOT

T = TypeVar("T")

ROLE_SECONDS: Final = 2.0
"""The least time that a role is held without being renewed."""
_SEARCH: Final = text("SELECT set_config('search_path', :path, true)")
_TEMPORARY: Final = text("SELECT pg_my_temp_schema()::regnamespace::text")
_ABOUT: Final = text("""SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class
    WHERE relnamespace = to_regnamespace(:schema) AND relkind = 'r'""")
_GROUP: Final = 1000
_LEAST_SECONDS: Final = 1.0
"""The least time for a bind's answer."""
_HURRY_SECONDS: Final = 2.0
_COPY_IDLE_MS: Final = 60_000
_MIGRATING: Final = 0x68736D636F7265
"""The lock of those that make or migrate tables; it ends with the transaction."""


class _Rare(Exception):
    """A transaction under a seal needs more than two messages."""


class ServerDatabase(Database):
    """One fleet's schema. `begins`: also in a database that has other fleets'."""

    witnessed = True

    def __init__(self, server: DatabaseServer, *, writes: bool, begins: bool = False) -> None:
        super().__init__(f"state store of fleet {server.name}", writes=writes)
        self._server, self._begins, self._roles_seen = server, begins, RolesSeen(self.shown)
        self.schema = schema_name(server.name, server.manager)
        self._vouching = vouched(self.schema)
        self._quick_seconds = max(server.ttl_ms / 2e3, _LEAST_SECONDS)
        self._engine: Engine | None = None
        self._link: Link | None = None
        self._facts: Facts | None = None
        self._system = ""
        self._prepared = False
        self._certified = Certified()
        self._hurries_until = 0.0
        """Until when no transaction begins, by the monotonic clock."""
        self._made: Objects | None = None
        self._genuine = ""
        """The marks of a schema without foreign objects."""
        self._beginnings = {
            (is_sealed, turn): beginning(self.schema, writes=writes, turn=turn, more=more)
            for is_sealed, more in ((False, ("", "")), (True, rare_of(self.schema)))
            for turn in (True, False)
        }
        """What begins a transaction that has its turn, and one that waits for none."""
        self._highs = "{}"
        self.accepted: tuple[Any, ...] = ()
        """What rare_of has found last when the seal vouched for it, without the highest positions. Replaced, never
        changed; any thread may read it."""
        self._bindings = WeakSet[Binding]()
        self._waits = writes and not server.single_node
        """Whether what is committed must be on a standby."""

    @property
    def key(self) -> tuple[str, SealSecret, bool]:
        return self.schema, self._server.store.url, self._server.single_node

    @property
    def identity(self) -> tuple[str, str]:
        return self._system, "" if self._facts is None else self._facts.timeline

    @property
    def incarnation(self) -> str:
        return "" if self._facts is None else f"{self._system} {self._facts.timeline} {self._facts.started}"

    def certificates(self) -> Mapping[str, float]:
        return {name: at.timestamp() for name, at in self._certified.ends().items()}

    def connect(self) -> None:
        if self._link is None:
            self._translated(self._connect)

    def _connect(self) -> None:
        if self._engine is None:
            self._engine = create_engine(
                "postgresql+psycopg://", creator=self._dial, poolclass=NullPool, use_native_hstore=False
            )
            if self.writes:
                event.listen(self._engine, "before_execute", self.before_execute)
        self._facts = None
        link = self._link = Link(self._engine, waits=self._waits, seconds=self._quick_seconds)
        if not self._prepared:
            # Only once: a server that was put in the place of the first one is not to begin without anything.
            link.begin(beginning(self.schema, writes=self.writes, turn=False, exists=False), self._know)
            link.finish(self._migrate if self.writes else self._find)
            self._prepared = True

    def hurry(self) -> None:
        self._hurries_until = time.monotonic() + _HURRY_SECONDS
        if (link := self._link) is not None:
            link.hurry()
        for binding in self._bindings:
            binding.hasten(hurries=True)

    def hasten(self, *dialled_at: float) -> None:
        if (link := self._link) is not None:
            link.hasten(*dialled_at)
        for binding in self._bindings:
            binding.hasten()

    def _dial(self) -> Patient:
        given = resolved(self._server.store.url, self.shown)
        self.shown = f"state store of fleet {self._server.name} at {given.where}"
        self._certified = Certified.of(given)
        try:
            driver = Patient.connect(autocommit=True, prepare_threshold=None, **given.options())
        except psycopg.Error as error:
            # A connection that psycopg gave up stays open as long as a frame of the error lives. Where answers are
            # slow, unused connections would fill the server's places.
            clear_frames(error.__traceback__)
            raise explained(error, self._certified) from None
        driver.be_patient()
        return driver

    def _judge(self, facts: Facts) -> None:
        for problem in facts.problems(single_node=self._server.single_node):
            kind = StoreAway if problem in FAILING_OVER else StoreError
            raise kind(f"{self.shown}: {problem[0]}", hint=problem[1])

    def _know(self, facts: Facts, link: Link) -> None:
        """Refuse a server that may lose what it confirms; to read, only a standby, which may lag behind. Notes the
        identity of another server."""
        if self.writes:
            self._judge(facts)
        elif facts.standby:
            raise StoreAway(f"{self.shown}: {STANDBY[0]}", hint=STANDBY[1])
        before = self._facts
        is_new = before is None or before.started != facts.started or before.timeline != facts.timeline
        if is_new:
            self._system = link.system()
        self._facts = facts  # only now: what fails before is asked again
        if is_new:
            for listener in tuple(self.listeners):
                listener()

    def _migrate(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATING})")
        refuse_others(connection, self._server, self.shown, begins=self._begins)
        exists = self._exists(connection)
        if exists:
            connection.exec_driver_sql(take_turn(self.schema))
        try:
            if not exists:
                connection.exec_driver_sql(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"')
            migrate(connection, self.shown, self.schema)
        except ProgrammingError as error:
            if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                raise
            what = "an older version of hsmcore has made its tables" if exists else "it has no tables yet"
            raise StoreError(f"{self.shown}: {what}, and this role may not", hint=rights.HINT) from None

    def migrate_for(self, roles: Sequence[str]) -> list[str]:
        """Make the schema or bring it up to date, as its owner, and give these roles the rights of a signer, and those
        that have had them. Returns all of them. Blocks. Raises StoreError."""

        def work(connection: Connection) -> list[str]:
            found = sorted({*roles, *rights.signers(connection, self.schema)})
            rights.give(connection, self.schema, found)
            return found

        try:
            self.connect()
            return self.transact_unchecked(work)
        finally:
            self.disconnect()

    def _find(self, connection: Connection) -> None:
        refuse_others(connection, self._server, self.shown, begins=self._begins)
        if not self._exists(connection):
            raise StoreError(f"{self.shown}: there is none yet", call="open", hint=ABSENT_HINT)
        require_known(connection, self.shown)

    def _exists(self, connection: Connection) -> bool:
        # Not by the search path: a table of this name elsewhere is another one.
        return (
            connection.exec_driver_sql(f"SELECT to_regclass('\"{self.schema}\".schema_version')").scalar() is not None
        )

    def foreign(self, connection: Connection) -> str:
        marks = marks_of(connection, self.schema)
        if marks == self._genuine:
            return ""
        problem = foreign_of(objects_of(connection, self.schema), self._made)
        if not problem:
            self._genuine = marks
        return problem

    def open(self, key: bytearray | None = None) -> None:
        self.connect()
        if key is not None and self.writes and self._made is None:
            self._made = self._translated(lambda: self._begun(turn=False).try_out(self._try_out))
        super().open(key)

    def _try_out(self, connection: Connection) -> Objects:
        """Return what the migrations make in this version of PostgreSQL: of temporary tables, which a signer's role may
        make. The transaction is taken back."""
        connection.execute(_SEARCH, {"path": TEMPORARY})
        migrate(connection, self.shown, TEMPORARY)
        return objects_of(connection, str(connection.execute(_TEMPORARY).scalar_one()))

    def exclusively(self, role: str) -> AbstractAsyncContextManager[None]:
        return row_role(self, role, max(ROLE_SECONDS, self._server.ttl_ms / 1e3), self._roles_seen)

    def is_unsealed(self) -> bool:
        return self._link is not None and self._link.is_unsealed

    def transact_unchecked(self, work: Work[T], *, turn: bool = True) -> T:
        return self._translated(lambda: self._begun(turn).finish(work))

    def exchange(self, questions: Sequence[Question], decide: Decide[T], *, lenient: bool, turn: bool = True) -> T:
        if self.seal is None:
            link = self._translated(lambda: self._begun(turn, questions))
            if link.is_unsealed:
                return self._translated(lambda: link.exchange(decide))
            link.undo()
        elif all(is_quick(one.statement) for one in questions):
            with suppress(_Rare):
                return self._under_seal(self.seal, questions, decide, turn=turn)
        return super().exchange(questions, decide, lenient=lenient, turn=turn)  # it checks before each

    def _under_seal(self, seal: Seal, questions: Sequence[Question], decide: Decide[T], *, turn: bool) -> T:
        """As `exchange`, in two messages, if what the seal vouches for is what it was when that was checked. Raises
        _Rare."""

        def quick(answers: Answers) -> tuple[T, Sequence[Change]]:
            result, changes = decide(answers)
            if not all(is_quick(change.statement) for change in changes):
                raise _Rare
            return result, changes

        if seal.doubted:
            raise _Rare
        for is_checked in (False, True):
            link = self._translated(lambda: self._begun(turn, questions))
            if self._is_as_checked(seal, link):
                return self._translated(partial(link.exchange, quick))
            link.undo()
            if not is_checked:
                try:
                    self.check_rare()
                except StoreNotGenuine:
                    raise _Rare from None  # it may be of no use here
        raise _Rare

    def _is_as_checked(self, seal: Seal, link: Link) -> bool:
        *row, highs, rare = link.found[-MORE:]
        before, self._highs = self._highs, highs or "{}"
        if fell(before, self._highs):  # each transaction of each host looks at them
            self.notice_loss()
        if rare not in self.accepted[-1:] or not seal.accepts(*row):
            return False
        self.accepted = (*row, rare)
        return True

    def notice_loss(self) -> None:
        """Have the hosts answer a loss that the highest positions show. In the thread."""
        self.problems.note("fleet", EARLIER)

    def check_rare(self) -> None:
        """Check what rare_of finds, and accept it, or nothing. In the thread. Raises StoreError."""

        def work(connection: Connection) -> tuple[Any, ...]:
            for table in HOT:
                connection.execute(select(METADATA.tables[table]).limit(1))  # the guard checks its scope
            return () if self._link is None else self._link.found[-MORE:]

        self.accepted = ()
        *row, _, rare = self.transact(work, lenient=False)
        self.accepted = (*row, rare)

    def _lost(self) -> None:
        """The lease's connection has no answers any more: dial this one again, too, instead of waiting for that."""
        if self._link is not None:
            self._link.close()

    def asking(self, in_turn: Asking) -> Asking:
        asker = self._asker(seconds=self._server.ttl_ms / 2e3, more=self.seal is not None)
        asker.lost, asker.answered = lambda: self.thread.submit(self._lost), self.hasten
        return asker if self.seal is None else Vouched(asker, in_turn, self)

    def _asker(self, *, seconds: float, more: bool = False) -> Asker:
        """`more`: what the seal vouches for is read with each answer."""
        sets: dict[str, Any] = {"writes": self.writes, "turn": False, "alone": self.seal is None, "seconds": seconds}
        begin = beginning(self.schema, **sets, more=rare_of(self.schema) if more else ("", ""))
        dial_seconds = self._server.ttl_ms / 2e3
        return Asker(self.schema, self._dialled, begin, self._judge, waits=self._waits, dial_seconds=dial_seconds)

    def binding(self) -> Relying:
        made = Binding(self._asker(seconds=BUSY_SECONDS), self._conditions, self._quick_seconds)
        self._bindings.add(made)
        return made

    def _conditions(self) -> list[Question] | None:
        """Return what a message relies on that asks nothing first; None: it must ask."""
        facts, seal, accepted = self._facts, self.seal, self.accepted
        may = self.is_own_process and not fence(self)[0] and time.monotonic() >= self._hurries_until
        if facts is None or not may:
            return None
        if seal is None:
            return [same_server(facts)]
        newest = seal.newest if accepted else None
        return newest and [same_rows(self._vouching, facts, str(accepted[-1]), *newest)]

    async def _dialled(self) -> psycopg.AsyncConnection[Any]:
        given = await asyncio.to_thread(resolved, self._server.store.url, self.shown)
        return await psycopg.AsyncConnection.connect(autocommit=True, prepare_threshold=None, **given.options())

    def _begun(self, turn: bool, questions: Sequence[Question] | None = None) -> Link:
        link, begin = self._link, self._beginnings[self.seal is not None, turn]
        if time.monotonic() < self._hurries_until:
            raise StoreError(f"{self.shown}: it is being closed")
        if link is not None and link.is_open:
            try:
                link.begin(begin, self._know, questions, turn=turn)
            except psycopg.OperationalError:
                if time.monotonic() < self._hurries_until or link.is_open:
                    raise
                # The server was started again, or closed the connection, while nothing was under way.
            else:
                return link
        self._connect()
        assert self._link is not None  # noqa: S101  # for the type checker
        self._link.begin(begin, self._know, questions, turn=turn)
        return self._link

    def copy_to(self, path: Path, told: Told | None) -> None:
        def work(connection: Connection) -> None:
            assert self._link is not None  # noqa: S101  # for the type checker
            # A portion is written before the server is asked for the next; such a reader blocks no other one.
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {_COPY_IDLE_MS}")
            each = counted(told, connection.execute(_ABOUT, {"schema": self.schema}).scalar_one())
            fill(path, ((table, each(self._link.portions(table, _GROUP))) for table in METADATA.sorted_tables))

        self.transact_unchecked(work)

    def replace_all(self, copy: Path, aside: str, told: Told | None) -> None:
        """Put the rows of a file in the place of all others, in one transaction. The former schema is kept under the
        name `aside`; "": it is empty, and is used. Runs in the thread."""

        def work(connection: Connection) -> None:
            assert self._link is not None  # noqa: S101  # for the type checker
            signers = rights.signers(connection, self.schema)
            if aside:
                connection.exec_driver_sql(f'ALTER SCHEMA "{self.schema}" RENAME TO "{aside}"')
                connection.exec_driver_sql(f'CREATE SCHEMA "{self.schema}"')
                migrate(connection, self.shown, self.schema)
                rights.give(connection, self.schema, signers)
            each = counted(told, rows_in(copy))
            for table in METADATA.sorted_tables:
                connection.exec_driver_sql(f'DELETE FROM "{table.name}"')  # noqa: S608  # our own names
                with closing(each(portions_of(copy, table, _GROUP))) as portions:
                    self._link.put(table, portions)
                if "id" in table.c:
                    place = f"pg_get_serial_sequence('\"{self.schema}\".\"{table.name}\"', 'id')"
                    highest = f'SELECT coalesce(max(id), 0) + 1 FROM "{table.name}"'  # noqa: S608
                    connection.exec_driver_sql(f"SELECT setval({place}, ({highest}), false)")

        self.transact_unchecked(work)

    def disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._engine is not None:
            self._engine.dispose()

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except CommitLost as error:
            raise StoreUnknown(f"{self.shown}: {error}") from None
        except (SQLAlchemyError, psycopg.Error) as error:
            raise failure(error, self.shown) from None
