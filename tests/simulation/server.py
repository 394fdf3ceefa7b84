"""The server of a fleet's database: PostgreSQL, as the hosts of a world see it.

It answers two messages for a transaction, as the real one does: the first begins it, locks and reads, the second writes
and commits. In between the rows that were locked stay locked, and others are read and written by other hosts. Rows are
in one SQLite in memory, which has what is committed.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, create_engine, event, literal_column, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import StaticPool
from sqlalchemy.sql.dml import UpdateBase
from tests.simulation.clock import SECOND
from tests.simulation.fleet_network import Network
from tests.simulation.hosts import HostsLoop, Process

from hsmcore.fleet import rows
from hsmcore.state import positions
from hsmcore.state.database import BUSY_SECONDS, NOW, migrate
from hsmcore.state.exchange import Change, Question
from hsmcore.state.postgres.link import IDLE_MS
from hsmcore.state.schema import FLEET

_IDLE_NS: Final = IDLE_MS * 1_000_000
_BUSY_NS: Final = int(BUSY_SECONDS * SECOND)
servers: list[Server] = []
"""That of the world that runs."""
SHARED, CHANGED, ALONE = 0, 1, 2
"""How strongly a row is locked: FOR KEY SHARE, by an update, FOR UPDATE. Two that make ALONE or more exclude each
other."""
SAME_SERVER: Final = select(literal_column("1")).where(
    literal_column("hsmcore_timeline()") == bindparam("timeline"),
    literal_column("hsmcore_started()") == bindparam("started"),
)
"""Finds a row on the server that was known."""
Job = Generator[Any, None, Any]
"""What the server does for a message: it yields the locks that it waits for, and returns the answer."""


class Lost(Exception):
    """The connection is of no more use."""


class Refused(Exception):
    """The server has taken a transaction back: another one's lock."""


class Unmet(Exception):
    """A change or a question that is required has met no row, or a row is there that is to be added."""


class Warned(Exception):
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
        self.open, self.silent = True, False
        """`silent`: bytes were lost on the way, and nothing passes any more."""
        self.turn: int = 0
        """Counts transactions: 0 while none is open."""
        self.job: Job | None = None
        self.reply: Callable[[Any], object] = lambda _answer: None
        self.idle_ns, self.watched = 0, False
        """Since when it waits for the host, and whether that is looked at."""


class _Lock:
    """A row. Those that want it get it in the order in which they came."""

    def __init__(self) -> None:
        self.holders: dict[Session, int] = {}
        """The strength with which each has it."""
        self.queue: deque[tuple[Session, int]] = deque()

    def is_free(self, session: Session, strength: int) -> bool:
        return all(one is session or strength + other < ALONE for one, other in self.holders.items())


class _Memory:
    """The rows, for one world after the other. To compile statements is most of a process's first world."""

    def __init__(self) -> None:
        # No file: nothing of it is on a simulated disk.
        self.raw = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, factory=sqlite3.Connection
        )
        self.raw.create_function("hsmcore_now", 0, lambda: servers[0].wall_ns)
        self.raw.create_function("hsmcore_timeline", 0, lambda: servers[0].timeline)
        self.raw.create_function("hsmcore_started", 0, lambda: servers[0].started)
        self._engine = create_engine("sqlite://", creator=lambda: self.raw, poolclass=StaticPool)
        event.listen(self._engine, "before_execute", self._look)
        event.listen(self._engine, "before_cursor_execute", self._note, retval=True)
        event.listen(self._engine, "begin", lambda _connection: self.raw.execute("BEGIN"))
        self.connection = self._engine.connect()
        self._locks: Callable[[int], object] | None = None
        self._writes: list[tuple[str, Any, bool]] = []
        self._compiled: dict[Any, tuple[str, list[str], Mapping[str, Any]]] = {}
        with self.connection.begin():
            migrate(self.connection, "a world's store")
        self.empty = self.raw.serialize()

    def _look(self, _connection: Connection, statement: Any, *_: Any) -> None:
        if self._locks is not None and (strength := lock_of(statement)) is not None:
            self._locks(strength)

    def _note(self, _on: Any, _cursor: Any, statement: str, values: Any, context: Any, many: bool) -> Any:
        if context is not None and (context.isinsert or context.isupdate or context.isdelete):
            self._writes.append((statement, values, many))
        return statement.replace(_PG_NOW, "hsmcore_now()"), values

    def tried(
        self, work: Callable[[Connection], Any], locks: Callable[[int], object]
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


@lru_cache(256)
def lock_of(statement: Any) -> int | None:
    """How strongly a statement locks the row of the epoch; None: it leaves it."""
    if isinstance(statement, UpdateBase):
        return CHANGED if statement.table is FLEET else None
    asked = getattr(statement, "_for_update_arg", None)
    if asked is None or FLEET not in statement.columns_clause_froms:
        return None
    return SHARED if asked.read else ALONE


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

    def copy_renews(self, process: str) -> bool:
        """A copy of a process, which has its memory and its name, renews its epoch. Returns whether it held one."""
        said = "UPDATE fleet SET renewals = renewals + 1, renewed_by = 'a copy' WHERE holder = ? AND released = 0"
        return self._memory.raw.execute(said, [process]).rowcount > 0

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
        except (Refused, Unmet, Warned) as refused:
            if not isinstance(refused, Warned):
                self.end(session)
            self._answer(session, refused)
        else:
            name, strength = wanted
            lock = self.locks[name]
            lock.queue.append((session, strength))
            if name != "standby":
                self.loop.happens_to(None, _BUSY_NS, partial(self._too_long, session, job, lock))
            self._grant(lock)

    def _too_long(self, session: Session, job: Job, lock: _Lock) -> None:
        if session.job is job and self._waits_for(session, lock):  # and not for another transaction by now
            self._step(session, job, Refused("canceling statement due to lock timeout"))

    def _waits_for(self, session: Session, lock: _Lock) -> bool:
        if not lock.queue:
            return False
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
            session, strength = lock.queue.popleft()
            lock.holders[session] = max(strength, lock.holders.get(session, SHARED))
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
            yield from self.lock(session, "turn", ALONE)
        answers = []
        for question in questions:
            strength = lock_of(question.statement)
            if strength is not None:
                yield from self.lock(session, "fleet", strength)
            answers.append(self._memory.ask(question))
        return answers

    def lock(self, session: Session, name: str, strength: int) -> Job:
        if self.locks[name].holders.get(session, -1) < strength:
            yield name, strength
        return None

    def told(self, session: Session, work: Sequence[Question | Change]) -> Job:
        """A whole transaction in one message. Returns the answers to the questions."""
        session.turn = 1
        return (yield from self.commit(session, work))

    def commit(
        self,
        session: Session,
        changes: Sequence[Question | Change],
        written: Sequence[tuple[str, Any, bool]] = (),
    ) -> Job:
        if not session.turn:
            raise Refused("no transaction is open")
        for change in changes:
            if (strength := lock_of(change.statement)) is not None:
                yield from self.lock(session, "fleet", strength)
        warned = None
        if self.locks["standby"].holders:
            try:
                yield from self.lock(session, "standby", SHARED)
            except Warned as error:
                warned = error
        answers = self._write(changes, written)
        self.end(session)
        if session.process.host in self.mute:
            self.mute.discard(session.process.host)
            self.tell("database", f"has committed, and {session.process.name} does not hear of it")
            session.reply = lambda _answer: None
        if warned is not None:
            raise warned
        return answers

    def _note(self, changes: Sequence[Question | Change], answers: Sequence[list[tuple[Any, ...]]]) -> None:
        now = self.clock.ns
        asked = iter(answers)
        for change in changes:
            answer = next(asked) if isinstance(change, Question) else []
            if change.statement is positions.BIND:
                assert isinstance(change, Change)
                self.bound += [Bound(now, *(row[name] for name in Bound._fields[1:])) for row in change.values]
            elif change.statement is rows._CLAIM and answer:
                self.claimed.append(Claimed(now, *answer[0]))
                self.on_claim(self.claimed[-1])

    def _write(
        self, changes: Sequence[Question | Change], written: Sequence[tuple[str, Any, bool]]
    ) -> list[list[tuple[Any, ...]]]:
        raw, answers = self._memory.raw, list[list[tuple[Any, ...]]]()
        if not changes and not written:
            return answers
        raw.execute("BEGIN")
        try:
            for change in changes:
                if isinstance(change, Question):
                    answers.append(self._memory.ask(change))
                    if change.required and not answers[-1]:
                        raise Unmet  # noqa: TRY301
                elif self._memory.change(change) == 0 and change.required:
                    raise Unmet  # noqa: TRY301  # what was written is taken back below
            for sql, values, many in written:
                (raw.executemany if many else raw.execute)(sql, values)
        except sqlite3.IntegrityError:
            raw.execute("ROLLBACK")
            raise Unmet from None
        except BaseException:
            raw.execute("ROLLBACK")
            raise
        raw.execute("COMMIT")
        self._note(changes, answers)
        return answers

    def roll_back(self, session: Session) -> Job:
        self.end(session)
        return None
        yield

    # ---- what becomes of it ----------------------------------------------------------------------------------------

    def waits(self, silent: bool) -> None:
        """Whether the synchronous standby does not answer: commits wait."""
        lock = self.locks["standby"]
        if silent:
            lock.holders[self._silent] = ALONE
        else:
            lock.holders.pop(self._silent, None)
            self._grant(lock)

    def cancel(self) -> None:
        """The commits that wait now are let go: what they wrote is there, and the standby has not got it."""
        lock = self.locks["standby"]
        queue, lock.queue = lock.queue, deque()
        for session, _ in queue:
            assert session.job is not None
            self._step(session, session.job, Warned("canceling wait for synchronous replication due to user request"))

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
