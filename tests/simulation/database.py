"""The database of a fleet: a server that the hosts of a world share, and `ServerDatabase` over it, in Python.

The seam is `hsmcore.state.postgres.database.ServerDatabase`: what Store, roles and the strict check ask of it. A server
answers two messages for a transaction, as the real one does: the first begins it, locks and reads, the second writes
and commits. In between the rows that were locked stay locked, and others are read and written by other hosts.

Rows are in one SQLite in memory, which has what is committed. A network stands between, host by host (network.py).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from inspect import isgenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import StaticPool
from sqlalchemy.sql.dml import UpdateBase
from tests.simulation.clock import SECOND
from tests.simulation.hosts import HOST, HostsLoop, Process
from tests.simulation.network import Network

from hsmcore.errors import HsmError
from hsmcore.fleet import rows
from hsmcore.state import database as base
from hsmcore.state import positions
from hsmcore.state.database import BUSY_SECONDS, NOW, Database, migrate
from hsmcore.state.errors import RowInvalid, StoreError, StoreUnknown
from hsmcore.state.exchange import AGAIN, CHANGED, Asking, Change, Question
from hsmcore.state.postgres.database import HINT, ROLE_SECONDS, schema_name
from hsmcore.state.postgres.link import ANSWER_SECONDS, IDLE_MS
from hsmcore.state.postgres.roles import RolesSeen, row_role
from hsmcore.state.schema import FLEET

ANSWER_NS: Final = int(ANSWER_SECONDS * SECOND)
UNHEARD_NS: Final = 10 * SECOND
"""After which the kernel gives up a connection whose bytes no one confirms: tcp_user_timeout of url.py."""
_DIAL_NS: Final = 5 * SECOND
_IDLE_NS: Final = IDLE_MS * 1_000_000
_BUSY_NS: Final = int(BUSY_SECONDS * SECOND)
servers: list[Server] = []
"""That of the world that runs."""
Job = Generator[Any, None, Any]
"""What the server does for a message: it yields the locks that it waits for, and returns the answer."""


class Lost(Exception):
    """The connection is of no more use."""


class _Blocked(Exception):
    """A statement waits for a lock."""

    def __init__(self, shared: bool) -> None:
        self.shared = shared


class _Refused(Exception):
    """The server has taken a transaction back: another one's lock, or a row that is there."""


class _Unmet(Exception):
    """A change that is required has changed no row."""


class _Warned(Exception):
    """COMMIT was confirmed with a warning."""


class Bound(NamedTuple):
    """A position that a commit has bound, in the order of commits."""

    at_ns: int
    domain: str
    position: int
    digest: str
    holder: str


class Claimed(NamedTuple):
    """An epoch that a commit has given to a process."""

    at_ns: int
    epoch: int
    holder: str
    host: str


class Session:
    """One connection, as the server has it."""

    def __init__(self, process: Process, timeline: int, started: int) -> None:
        self.process, self.timeline, self.started = process, timeline, started
        self.open = True
        self.turn: int = 0
        """Counts transactions: 0 while none is open."""
        self.job: Job | None = None
        self.reply: Callable[[Any], object] = lambda _answer: None
        self.idle_ns, self.watched = 0, False
        """Since when it waits for the host, and whether that is looked at."""


class _Lock:
    """A row. Those that want it get it in the order in which they came."""

    def __init__(self) -> None:
        self.holders: dict[Session, bool] = {}
        """Whether each shares it."""
        self.queue: deque[tuple[Session, bool]] = deque()

    def is_free(self, session: Session, shared: bool) -> bool:
        return all(one is session or (shared and is_shared) for one, is_shared in self.holders.items())


class _Memory:
    """The rows, for one world after the other. To compile statements is most of a process's first world."""

    def __init__(self) -> None:
        self.raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self.raw.create_function("hsmcore_now", 0, lambda: servers[0].wall_ns)
        self._engine = create_engine("sqlite://", creator=lambda: self.raw, poolclass=StaticPool)
        event.listen(self._engine, "before_execute", self._look)
        event.listen(self._engine, "before_cursor_execute", self._note, retval=True)
        event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        self.connection = self._engine.connect()
        self._locks: Callable[[bool], object] | None = None
        self._writes: list[tuple[str, Any, bool]] = []
        self._compiled: dict[Any, tuple[str, list[str], Mapping[str, Any]]] = {}
        with self.connection.begin():
            migrate(self.connection, "a world's store")
        self.empty = self.raw.serialize()

    def _look(self, _connection: Connection, statement: Any, *_: Any) -> None:
        if self._locks is not None and (shared := lock_of(statement)) is not None:
            self._locks(shared)

    def _note(self, _on: Any, _cursor: Any, statement: str, values: Any, context: Any, many: bool) -> Any:
        if context is not None and (context.isinsert or context.isupdate or context.isdelete):
            self._writes.append((statement, values, many))
        return statement.replace(_PG_NOW, "hsmcore_now()"), values

    def tried(
        self, work: Callable[[Connection], Any], locks: Callable[[bool], object]
    ) -> tuple[Any, list[tuple[str, Any, bool]]]:
        """Do work, and take it back. Returns its result and what it wrote."""
        self._writes, self._locks = [], locks
        try:
            with self.connection.begin() as transaction:
                result = work(self.connection)
                transaction.rollback()
        finally:
            self._locks = None
        return result, self._writes

    def ask(self, question: Question) -> list[tuple[Any, ...]]:
        sql, names, fixed = self._text(question.statement, None)
        if "POSTCOMPILE" in sql:
            return [tuple(row) for row in self.connection.execute(question.statement, question.values)]
        values = {**fixed, **question.values}
        return self.raw.execute(sql, [values[name] for name in names]).fetchall()

    def change(self, change: Change) -> int:
        """Returns the number of rows."""
        sql, names, fixed = self._text(change.statement, tuple(change.values[0]))
        count = 0
        for given in change.values:
            values = {**fixed, **given}
            count += self.raw.execute(sql, [values[name] for name in names]).rowcount
        return count

    def _text(self, statement: Any, keys: tuple[str, ...] | None) -> tuple[str, list[str], Mapping[str, Any]]:
        found = self._compiled.get((statement, keys))
        if found is None:
            made = statement.compile(dialect=_DIALECT, column_keys=keys)
            sql = str(made).replace(_PG_NOW, "hsmcore_now()")
            found = self._compiled[statement, keys] = sql, list(made.positiontup or ()), made.params
        return found


_PG_NOW: Final = str(NOW)
_DIALECT: Final = sqlite.dialect(paramstyle="qmark")  # type: ignore[no-untyped-call]
_made: list[_Memory] = []


def memory() -> _Memory:
    if not _made:
        _made.append(_Memory())
    return _made[0]


def lock_of(statement: Any) -> bool | None:
    """Whether a statement shares the row of the epoch (True), has it alone (False), or leaves it (None)."""
    if isinstance(statement, UpdateBase):
        return False if statement.table is FLEET else None
    asked = getattr(statement, "_for_update_arg", None)
    if asked is None or FLEET not in statement.columns_clause_froms:
        return None
    return bool(asked.read)


class Server:
    """PostgreSQL, as a fleet sees it."""

    def __init__(self, loop: HostsLoop, network: Network) -> None:
        self.loop, self.network = loop, network
        self.chance, self.clock = loop.chance, loop.clock
        self.timeline = self.started = 1
        self.up = True
        self.wall_ahead = 0
        """Nanoseconds by which its clock is ahead of the hosts'."""
        self.sessions: dict[Session, None] = {}
        self.locks = {"turn": _Lock(), "fleet": _Lock(), "standby": _Lock()}
        """The row that transactions take turns with, that of the epoch; and the standby, for which commits wait."""
        self._silent = Session(Process("standby", 0), 0, 0)
        self.bound: list[Bound] = []
        self.claimed: list[Claimed] = []
        self.tell: Callable[[str, str], None] = lambda _who, _what: None
        self.on_claim: Callable[[Claimed], object] = lambda _claim: None
        self.mute: set[str] = set()
        """The hosts to which the next confirmation of a COMMIT does not come."""
        self._standby = self._memory.empty
        self._memory.raw.deserialize(self._standby)

    @property
    def _memory(self) -> _Memory:
        return memory()

    @property
    def wall_ns(self) -> int:
        return self.clock.wall + self.wall_ahead

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What is committed, for the law."""
        return self._memory.raw.execute(sql).fetchall()

    @property
    def holder(self) -> tuple[int, str, str]:
        """Epoch, process and host by the row; "" where no process holds it."""
        [row] = self.rows("SELECT epoch, holder, host, released FROM fleet") or [(0, "", "", 1)]
        return (row[0], "", "") if row[3] else row[:3]

    # ---- connections -----------------------------------------------------------------------------------------------

    def connect(self, process: Process) -> Session:
        session = Session(process, self.timeline, self.started)
        self.sessions[session] = None
        process.ends.append(partial(self.network.carry, process.host, "requests", None, partial(self.drop, session)))
        return session

    def drop(self, session: Session) -> None:
        """The connection is at its end: a transaction that is open is taken back."""
        if session.open:
            session.open = False
            self.sessions.pop(session, None)
            self.end(session)
            session.reply(Lost("the connection was lost"))

    def receive(self, session: Session, job: Callable[[], Job], reply: Callable[[Any], object]) -> None:
        """A message has come."""
        if not session.open:
            reply(Lost("the connection was lost"))
            return
        session.job, session.reply = job(), reply
        self._step(session, session.job)

    def _step(self, session: Session, job: Job, error: Exception | None = None) -> None:
        if session.job is not job:
            return  # the connection is at its end
        try:
            wanted = next(job) if error is None else job.throw(error)
        except StopIteration as end:
            self._answer(session, end.value)
        except (_Refused, _Unmet, _Warned) as refused:
            if not isinstance(refused, _Warned):
                self.end(session)
            self._answer(session, refused)
        else:
            name, shared = wanted
            lock = self.locks[name]
            lock.queue.append((session, shared))
            busy = partial(self._step, session, job, _Refused("canceling statement due to lock timeout"))
            if name != "standby":
                self.loop.happens_to(None, _BUSY_NS, lambda: self._waits_for(session, lock) and busy())
            self._grant(lock)

    def _waits_for(self, session: Session, lock: _Lock) -> bool:
        found = any(one is session for one, _ in lock.queue)
        lock.queue = deque(one for one in lock.queue if one[0] is not session)
        return found

    def _answer(self, session: Session, answer: Any) -> None:
        reply, session.reply, session.job = session.reply, lambda _answer: None, None
        session.idle_ns = self.clock.ns
        if session.turn and not session.watched:
            session.watched = True
            self.loop.happens_to(None, _IDLE_NS, partial(self._watch, session))
        reply(answer)

    def _watch(self, session: Session) -> None:
        """Look whether a transaction is idle for too long. One event for many messages."""
        idle = self.clock.ns - session.idle_ns
        session.watched = False
        if not session.open or not session.turn:
            return
        if session.job is None and idle >= _IDLE_NS:
            self.tell("database", f"ends a transaction of {session.process.name} that is idle")
            self.drop(session)
            return
        session.watched = True
        rest = _IDLE_NS if session.job is not None else _IDLE_NS - idle
        self.loop.happens_to(None, rest, partial(self._watch, session))

    def _grant(self, lock: _Lock) -> None:
        while lock.queue and lock.is_free(*lock.queue[0]):
            session, shared = lock.queue.popleft()
            lock.holders[session] = shared and lock.holders.get(session, True)
            assert session.job is not None
            self.loop.happens_to(None, 1000, partial(self._step, session, session.job))

    def end(self, session: Session) -> None:
        """Its transaction is over: it has no lock any more."""
        session.job, session.turn = None, 0
        for lock in self.locks.values():
            lock.holders.pop(session, None)
            self._waits_for(session, lock)
            self._grant(lock)

    # ---- messages --------------------------------------------------------------------------------------------------

    def begin(self, session: Session, questions: Sequence[Question], turn: bool) -> Job:
        session.turn = 1
        if turn:
            yield from self.lock(session, "turn", shared=False)
        answers = []
        for question in questions:
            shared = lock_of(question.statement)
            if shared is not None:
                yield from self.lock(session, "fleet", shared=shared)
            answers.append(self._memory.ask(question))
        return answers

    def lock(self, session: Session, name: str, *, shared: bool) -> Job:
        if session not in self.locks[name].holders or (self.locks[name].holders[session] and not shared):
            yield name, shared
        return None

    def commit(self, session: Session, changes: Sequence[Change], written: Sequence[tuple[str, Any, bool]] = ()) -> Job:
        if not session.turn:
            raise _Refused("no transaction is open")
        if any(lock_of(change.statement) is not None for change in changes):
            yield from self.lock(session, "fleet", shared=False)
        warned = None
        if self.locks["standby"].holders:
            try:
                yield from self.lock(session, "standby", shared=True)
            except _Warned as error:
                warned = error
        self._write(changes, written)
        self._note(changes)
        self.end(session)
        if session.process.host in self.mute:
            self.mute.discard(session.process.host)
            self.tell("database", f"has committed, and {session.process.name} does not hear of it")
            session.reply = lambda _answer: None
        if warned is not None:
            raise warned
        return None

    def _note(self, changes: Sequence[Change]) -> None:
        now = self.clock.ns
        for change in changes:
            if change.statement is positions.BIND:
                self.bound += [Bound(now, *(row[name] for name in Bound._fields[1:])) for row in change.values]
            elif change.statement is rows._CLAIM:
                claims = [Claimed(now, row["epoch"], row["holder"], row["host"]) for row in change.values]
                self.claimed += claims
                self.on_claim(claims[0])

    def _write(self, changes: Sequence[Change], written: Sequence[tuple[str, Any, bool]]) -> None:
        raw = self._memory.raw
        if not changes and not written:
            return
        raw.execute("BEGIN")
        try:
            for change in changes:
                if self._memory.change(change) == 0 and change.required:
                    raise _Unmet  # noqa: TRY301  # what was written is taken back below
            for sql, values, many in written:
                (raw.executemany if many else raw.execute)(sql, values)
        except sqlite3.IntegrityError as error:
            raw.execute("ROLLBACK")
            raise _Refused(str(error)) from None
        except BaseException:
            raw.execute("ROLLBACK")
            raise
        raw.execute("COMMIT")

    def roll_back(self, session: Session) -> Job:
        self.end(session)
        return None
        yield

    # ---- what becomes of it ----------------------------------------------------------------------------------------

    def waits(self, silent: bool) -> None:
        """Whether the synchronous standby does not answer: commits wait."""
        lock = self.locks["standby"]
        if silent:
            lock.holders[self._silent] = False
        else:
            lock.holders.pop(self._silent, None)
            self._grant(lock)

    def cancel(self) -> None:
        """The commits that wait now are let go: what they wrote is there, and the standby has not got it."""
        lock = self.locks["standby"]
        queue, lock.queue = lock.queue, deque()
        for session, _ in queue:
            assert session.job is not None
            self._step(session, session.job, _Warned("canceling wait for synchronous replication due to user request"))

    def lags(self) -> None:
        """The standby that will take its place gets nothing any more."""
        self._standby = self._memory.raw.serialize()

    def stops(self) -> None:
        """It dies."""
        self.up = False
        for session in [*self.sessions]:
            self.drop(session)

    def starts(self, *, promoted: bool = False, lost: bool = False) -> None:
        """It runs again. `promoted`: another one, under the next timeline. `lost`: one that has only what there was
        when `lags` was called."""
        self.up, self.started = True, self.started + 1
        self.timeline += promoted
        if lost:
            self._memory.raw.deserialize(self._standby)


# ---- a host's side -------------------------------------------------------------------------------------------------


class _Message(NamedTuple):
    """What a thread sends and waits for. `session`: None to connect."""

    session: Session | None
    job: Callable[[], Job] | None
    patience_ns: int = ANSWER_NS


Steps = Generator[_Message, Any, Any]


class LinkThread(Executor):
    """The thread of a store: each call of it may wait for the server, in steps, and the next begins behind it."""

    def __init__(self, server: Server, process: Process) -> None:
        self._server, self._process = server, process
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running: tuple[Future[Any], Steps] | None = None
        self._number = 0
        self._until_ns, self._watched = 0, False
        self._sent_on: Session | None = None
        """Of the message that is under way: until when its answer is waited for, and on which connection."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        self._waiting.append((answer, partial(fn, *args, **kwargs)))
        if servers:
            self._server.loop.happens_to(self._process, self._server.chance.time.randrange(60_000), self._begin)
        else:
            self._begin()
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        del wait, cancel_futures

    def _begin(self) -> None:
        while self._running is None and self._waiting:
            answer, work = self._waiting.popleft()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                with _no_loop():
                    result = work()
            except BaseException as error:  # noqa: BLE001  # it is its caller's
                answer.set_exception(error)
                continue
            if not isgenerator(result):
                answer.set_result(result)
                continue
            self._running = answer, result
            self._go_on(None)

    def _go_on(self, told: Any) -> None:
        assert self._running is not None
        answer, steps = self._running
        try:
            with _no_loop():
                message = steps.throw(told) if isinstance(told, Exception) else steps.send(told)
        except StopIteration as end:
            self._running = None
            answer.set_result(end.value)
        except BaseException as error:  # noqa: BLE001  # it is its caller's
            self._running = None
            answer.set_exception(error)
        else:
            self._send(message)
            return
        self._begin()

    def _send(self, message: _Message) -> None:
        self._number += 1
        number, server, host = self._number, self._server, self._process.host

        def reply(answer: Any) -> None:
            server.network.carry(host, "replies", self._process, partial(self._heard, number, answer))

        def come() -> None:
            if message.session is None:
                reply(server.connect(self._process) if server.up else Lost("the server does not take connections"))
            else:
                assert message.job is not None
                server.receive(message.session, message.job, reply)

        server.network.carry(host, "requests", None, come)
        patience = min(message.patience_ns, UNHEARD_NS) if server.network.holds_up(host) else message.patience_ns
        self._until_ns, self._sent_on = server.clock.ns + patience, message.session
        if not self._watched or patience < ANSWER_NS:
            self._watched = True
            server.loop.happens_to(self._process, patience, self._watch)

    def _watch(self) -> None:
        """Look whether an answer is late. One event for many messages."""
        self._watched = False
        if self._running is None:
            return
        rest = self._until_ns - self._server.clock.ns
        if rest > 0:
            self._watched = True
            self._server.loop.happens_to(self._process, rest, self._watch)
            return
        if self._sent_on is not None:
            drop = partial(self._server.drop, self._sent_on)
            self._server.network.carry(self._process.host, "requests", None, drop)
        self._heard(self._number, Lost("the server does not answer"))

    def _heard(self, number: int, answer: Any) -> None:
        if number == self._number and self._running is not None:
            self._number += 1
            self._go_on(answer)


@contextmanager
def _no_loop() -> Iterator[None]:
    """As in a thread: no loop runs there."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


class _Link:
    """One connection, as a host has it."""

    def __init__(self, server: Server, process: Process) -> None:
        self.server, self.process = server, process
        self.session: Session | None = None

    def begun(self, questions: Sequence[Question], turn: bool) -> Steps:
        """Begin a transaction. A connection that was used before may be lost: then on another one."""
        fresh = False
        while True:
            if self.session is None:
                fresh = True
                self.session = yield _Message(None, None, _DIAL_NS)
            session = self.session
            try:
                answers = yield self.message(partial(self.server.begin, session, questions, turn))
            except Lost:
                self.session = None
                if fresh:
                    raise
            else:
                return session, answers

    def message(self, job: Callable[[], Job]) -> _Message:
        assert self.session is not None
        return _Message(self.session, job)

    def undo(self) -> Steps:
        assert self.session is not None
        try:
            yield self.message(partial(self.server.roll_back, self.session))
        except Lost:
            self.session = None

    def close(self) -> None:
        session, self.session = self.session, None
        if session is not None and servers:
            self.server.network.carry(self.process.host, "requests", None, partial(self.server.drop, session))


class ServerDatabase(Database):
    """As the class of this name in state/postgres/database.py."""

    witnessed = True

    def __init__(self, place: Any, *, writes: bool) -> None:
        super().__init__(f"state store of fleet {place.name}", writes=writes)
        process = HOST.get()
        assert process is not None
        self.process, self.server, self.place = process, servers[0], place
        self.thread: Any = LinkThread(self.server, process)
        self._link = _Link(self.server, process)
        self._facts = ("", "", 0)
        self._roles_seen = RolesSeen(self.shown)

    @property
    def key(self) -> tuple[str, Process, bool]:
        return schema_name(self.place.name, self.place.manager), self.process, self.writes

    @property
    def identity(self) -> tuple[str, str]:
        return self._facts[0], self._facts[1]

    @property
    def incarnation(self) -> str:
        system, timeline, started = self._facts
        return f"{system} {timeline} {started}" if started else ""

    def open(self, key: bytearray | None = None) -> Any:
        assert key is None, "a simulated store has no seal"
        return self._translated(self._opened())

    def _opened(self) -> Steps:
        if self._link.session is None:
            yield from self._begun([], turn=False)
            yield from self._link.undo()

    def connect(self) -> None:
        raise NotImplementedError

    def foreign(self, connection: Connection) -> str:
        del connection
        return ""

    def copy_to(self, path: Path) -> None:
        raise NotImplementedError

    def disconnect(self) -> None:
        self._link.close()

    def exclusively(self, role: str) -> AbstractAsyncContextManager[None]:
        return row_role(self, role, max(ROLE_SECONDS, self.place.ttl_ms / 1e3), self._roles_seen)

    def asking(self) -> Asking:
        return Asker(self.server, self.process)

    def _begun(self, questions: Sequence[Question], turn: bool) -> Steps:
        session, answers = yield from self._link.begun(questions, turn)
        facts = "7000000000000000001", f"{session.timeline:08X}", session.started
        if facts != self._facts:
            self._facts = facts
            for listener in tuple(self.listeners):
                listener()
        return session, answers

    def exchange(self, questions: Sequence[Question], decide: Any, *, lenient: bool, turn: bool = True) -> Any:
        del lenient
        return self._translated(self._exchanged(questions, decide, turn))

    def _exchanged(self, questions: Sequence[Question], decide: Any, turn: bool) -> Steps:
        session, answers = yield from self._begun(questions, turn)
        try:
            result, changes = decide(answers)
        except BaseException:
            yield from self._link.undo()
            raise
        yield from self._committed(partial(self.server.commit, session, changes))
        return result

    def transact(self, work: Any, *, lenient: bool, turn: bool = True) -> Any:
        del lenient
        return self._translated(self._transacted(work, turn))

    def transact_unchecked(self, work: Any, *, turn: bool = True) -> Any:
        return self._translated(self._transacted(work, turn))

    def _transacted(self, work: Any, turn: bool) -> Steps:
        session, _ = yield from self._begun([], turn)

        def locks(shared: bool) -> None:
            held = self.server.locks["fleet"].holders
            if session not in held or (held[session] and not shared):
                raise _Blocked(shared)

        while True:
            if not session.open:
                self._link.session = None
                raise Lost("the connection was lost")
            try:
                result, written = memory().tried(work, locks)
                break
            except _Blocked as blocked:
                yield self._link.message(partial(self.server.lock, session, "fleet", shared=blocked.shared))
            except BaseException as error:
                yield from self._link.undo()
                if isinstance(error, (TypeError, ValueError, KeyError, OverflowError)) and not isinstance(
                    error, HsmError
                ):
                    raise RowInvalid(f"{self.shown}: a row is not as hsmcore writes it") from None
                raise
        yield from self._committed(partial(self.server.commit, session, (), written))
        return result

    def _committed(self, job: Callable[[], Job]) -> Steps:
        try:
            yield self._link.message(job)
        except Lost as error:
            self._link.session = None
            raise StoreUnknown(f"{self.shown}: the connection failed in COMMIT: {error}") from None

    def _translated(self, steps: Steps) -> Steps:
        try:
            return (yield from steps)
        except _Warned as error:
            raise StoreUnknown(f"{self.shown}: COMMIT was confirmed with a warning: {error}") from None
        except _Unmet:
            raise StoreError(CHANGED, hint=AGAIN) from None
        except (Lost, _Refused) as error:
            if isinstance(error, Lost):
                self._link.session = None
            raise StoreError(f"{self.shown}: {error}", hint=HINT) from None


class Asker:
    """As the class of this name in state/postgres/ask.py."""

    def __init__(self, server: Server, process: Process) -> None:
        self._thread, self._link = LinkThread(server, process), _Link(server, process)
        self._one = asyncio.Lock()

    async def ask(self, question: Question) -> Sequence[Sequence[Any]]:
        async with self._one:
            try:
                found: Sequence[Sequence[Any]] = await asyncio.wrap_future(self._thread.submit(self._asked, question))
            except BaseException:
                self._link.close()
                raise
            return found

    def _asked(self, question: Question) -> Steps:
        link = self._link
        try:
            for again in (link.session is not None, False):
                if link.session is None:
                    link.session = yield _Message(None, None, _DIAL_NS)
                try:
                    return (yield link.message(partial(self._answered, link.server, link.session, question)))
                except Lost:
                    link.session = None
                    if not again:
                        raise
        except (Lost, _Refused, _Warned) as error:
            link.close()
            raise StoreUnknown(f"the server did not answer a question: {error}") from None

    @staticmethod
    def _answered(server: Server, session: Session, question: Question) -> Job:
        [answer] = yield from server.begin(session, [question], turn=False)
        yield from server.commit(session, ())
        return answer

    async def close(self) -> None:
        async with self._one:
            self._link.close()


def install() -> None:
    """Once in a process, behind the clock's."""
    from hsmcore.state.postgres import database

    database.ServerDatabase = ServerDatabase  # type: ignore[misc,assignment]
    real = base.time

    def wall() -> int:
        return servers[0].wall_ns if servers and memory().connection.in_transaction() else real.time_ns()

    base.time = SimpleNamespace(time=real.time, time_ns=wall)  # type: ignore[assignment]
