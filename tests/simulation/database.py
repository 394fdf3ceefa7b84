"""`ServerDatabase` over a simulated server (server.py), in Python: what Store, roles and the strict check ask of the
class of this name in hsmcore.state.postgres.database. A network stands between (network.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager
from functools import partial
from inspect import isgenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, select
from tests.simulation.clock import SECOND
from tests.simulation.hosts import HOST, Process
from tests.simulation.server import SAME_SERVER, Job, Lost, Refused, Server, Session, Unmet, Warned, memory, servers
from tests.simulation.threads import no_loop

from hsmcore.errors import HsmError
from hsmcore.state import database as base
from hsmcore.state.database import Database
from hsmcore.state.errors import RowInvalid, StoreAway, StoreChanged, StoreNotGenuine, StoreUnknown
from hsmcore.state.exchange import CHANGED, Asking, Change, Question, Relying, Reply, one_by_one, still
from hsmcore.state.postgres.binding import Binding
from hsmcore.state.postgres.database import ROLE_SECONDS
from hsmcore.state.postgres.database import ServerDatabase as RealDatabase
from hsmcore.state.postgres.link import ANSWER_SECONDS, HINT, IDLE_MS
from hsmcore.state.postgres.place import schema_name
from hsmcore.state.postgres.roles import RolesSeen, row_role
from hsmcore.state.schema import METADATA
from hsmcore.state.seal import Seal
from hsmcore.state.seal_guard import SealGuard, is_quick
from hsmcore.state.sealed_rows import HOT

ANSWER_NS: Final = int(ANSWER_SECONDS * SECOND)
UNHEARD_NS: Final = 10 * SECOND
"""After which the kernel gives up a connection whose bytes no one confirms: tcp_user_timeout of url.py."""
_DIAL_NS: Final = 5 * SECOND
SYSTEM: Final = "7000000000000000001"
NO_ANSWER: Final = ("the server does not answer",)


class Blocked(Exception):
    """A statement waits for a lock."""

    def __init__(self, strength: int) -> None:
        self.strength = strength


class _Message(NamedTuple):
    """What a thread sends and waits for. `session`: None to connect."""

    session: Session | None
    job: Callable[[], Job] | None
    patience_ns: int = ANSWER_NS
    hastens: bool = False
    """Whether it is given up earlier while the server confirms others."""


Steps = Generator[_Message, Any, Any]


class LinkThread(Executor):
    """The thread of a store: each call of it may wait for the server, in steps, and the next begins behind it."""

    def __init__(self, server: Server, process: Process) -> None:
        self._server, self._process = server, process
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running: tuple[Future[Any], Steps] | None = None
        self._number = 0
        self._until_ns, self._watched = 0, False
        self._sent_ns = 0
        self._hastens_ns = ANSWER_NS * 1_000_000
        """When what is under way was sent, if it may be given up earlier."""
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
                with no_loop():
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
            with no_loop():
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
        lost = partial(server.network.loses, host, message.session)

        def reply(answer: Any) -> None:
            if lost():
                return
            server.network.carry(host, "replies", self._process, partial(self._heard, number, answer))

        def come() -> None:
            if message.session is None:
                reply(server.connect(self._process) if server.up else Lost("the server does not take connections"))
            else:
                assert message.job is not None
                server.receive(message.session, message.job, reply)

        if not lost():
            server.network.carry(host, "requests", None, come)
        patience = min(message.patience_ns, UNHEARD_NS) if server.network.holds_up(host) else message.patience_ns
        self._sent_ns = server.clock.ns
        self._until_ns, self._sent_on = self._sent_ns + patience, message.session
        self._hastens_ns = server.clock.ns if message.hastens else ANSWER_NS * 1_000_000
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
        if self._sent_on is not None and not self._sent_on.silent:
            drop = partial(self._server.drop, self._sent_on)
            self._server.network.carry(self._process.host, "requests", None, drop)
        self._heard(self._number, Lost(*NO_ANSWER))

    def outlived(self, quick_ns: int, dialled_ns: int) -> None:
        """The server answers on a connection that was dialled then."""
        if self._running is not None and self._sent_ns < min(dialled_ns, self._server.clock.ns - quick_ns):
            self._until_ns = self._server.clock.ns
            self._watch()

    def hasten(self, quick_ns: int) -> None:
        if self._running is not None and self._server.clock.ns > self._hastens_ns + quick_ns:
            self._until_ns = self._server.clock.ns
            self._watch()

    def _heard(self, number: int, answer: Any) -> None:
        if number == self._number and self._running is not None:
            self._number += 1
            self._go_on(answer)


class _Link:
    """One connection, as a host has it."""

    def __init__(self, server: Server, process: Process, quick_ns: int = ANSWER_NS) -> None:
        self.server, self.process, self.quick_ns = server, process, quick_ns
        """`quick_ns`: how long the beginning of a transaction, and an exchange, may take."""
        self.session: Session | None = None
        self.found: tuple[Any, ...] = ()
        """As Link.found, of a store with a seal."""

    def begun(self, questions: Sequence[Question], turn: bool, rare: bool) -> Steps:
        """Begin a transaction. A connection that was used before may be lost: then on another one."""
        fresh = False
        while True:
            if self.session is None:
                fresh = True
                self.session = yield _Message(None, None, _DIAL_NS)
            session = self.session
            try:
                begin = partial(self.server.begin, session, questions, turn, rare)
                answers = yield self.message(begin, self.quick_ns + (IDLE_MS * 1_000_000 if turn else 0))
            except Lost:
                self.session = None
                if fresh:
                    raise
            else:
                if rare:
                    self.found, *answers = answers
                return session, answers

    def message(self, job: Callable[[], Job], patience_ns: int = ANSWER_NS, *, hastens: bool = False) -> _Message:
        assert self.session is not None
        return _Message(self.session, job, patience_ns, hastens)

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
        self._link = _Link(self.server, process, max(place.ttl_ms * 500_000, SECOND))
        self._facts = ("", "", 0)
        self._bindings: list[Binding] = []
        self._roles_seen = RolesSeen(self.shown)
        self._highs = "{}"
        self.accepted: tuple[Any, ...] = ()

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
        return self._translated(self._opened(key))

    def _opened(self, key: bytearray | None) -> Steps:
        if self._link.session is None:
            yield from self._begun([], turn=False)
            yield from self._link.undo()
        if key is not None and self.seal is None:
            seal = Seal(key, self.foreign, self.problems, witnessed=True)
            if self.writes:
                seal.seen((yield from self._transacted(seal.begin, True)))
            self.seal = seal

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

    def hasten(self) -> None:
        self.thread.hasten(self._link.quick_ns)
        for binding in self._bindings:
            binding.hasten()

    def hurry(self) -> None:
        for binding in self._bindings:
            binding.hasten(hurries=True)

    def _outlived(self, dialled_ns: int) -> None:
        self.thread.outlived(self._link.quick_ns, dialled_ns)

    def asking(self, in_turn: Asking) -> Asking:
        return in_turn if self.seal is not None else self._asker()

    def _asker(self) -> Asker:
        return Asker(self.server, self.process, self.place.ttl_ms * 500_000, self._outlived)

    def binding(self) -> Relying | None:
        """Under a seal, a store of this world is asked first."""
        if self.seal is not None:
            return None
        made = Binding(self._asker(), self._conditions, self._link.quick_ns / SECOND)
        self._bindings.append(made)
        return made

    def _conditions(self) -> list[Question] | None:
        if not self._facts[2]:
            return None
        return [Question(SAME_SERVER, {"timeline": int(self._facts[1], 16), "started": self._facts[2]}, required=True)]

    def _begun(self, questions: Sequence[Question], turn: bool) -> Steps:
        session, answers = yield from self._link.begun(questions, turn, self.seal is not None)
        facts = SYSTEM, f"{session.timeline:08X}", session.started
        if facts != self._facts:
            self._facts = facts
            for listener in tuple(self.listeners):
                listener()
        return session, answers

    def exchange(self, questions: Sequence[Question], decide: Any, *, lenient: bool, turn: bool = True) -> Any:
        if self.seal is None:
            return self._translated(self._exchanged(questions, decide, turn))
        return self._translated(self._under_seal(self.seal, questions, decide, lenient, turn))

    _is_as_checked = RealDatabase._is_as_checked
    notice_loss = RealDatabase.notice_loss

    def _under_seal(self, seal: Seal, questions: Sequence[Question], decide: Any, lenient: bool, turn: bool) -> Steps:
        """As the method of this name in state/postgres/database.py, and what follows where it is not quick."""
        quick = not seal.doubted and all(is_quick(one.statement) for one in questions)
        for is_checked in (False, True) if quick else ():
            session, answers = yield from self._begun(questions, turn)
            if self._is_as_checked(seal, self._link):  # type: ignore[arg-type]  # it has what was found
                try:
                    result, changes = decide(answers)
                except BaseException:
                    yield from self._link.undo()
                    raise
                if all(is_quick(change.statement) for change in changes):
                    yield from self._committed(partial(self.server.commit, session, changes), hastens=True)
                    return result
                yield from self._link.undo()
                break
            yield from self._link.undo()
            if not is_checked:
                try:
                    self.accepted = yield from self._guarded(self._check_rare, lenient=False)
                except StoreNotGenuine:
                    break
        return (yield from self._guarded(one_by_one(questions, decide), lenient=lenient))

    def _check_rare(self, connection: Connection) -> Any:
        for table in HOT:
            connection.execute(select(METADATA.tables[table]).limit(1))
        *row, _, rare = self.server.rare()
        return (*row, rare)

    def _exchanged(self, questions: Sequence[Question], decide: Any, turn: bool) -> Steps:
        session, answers = yield from self._begun(questions, turn)
        try:
            result, changes = decide(answers)
        except BaseException:
            yield from self._link.undo()
            raise
        yield from self._committed(partial(self.server.commit, session, changes), hastens=True)
        return result

    def transact(self, work: Any, *, lenient: bool, turn: bool = True) -> Any:
        steps = self._transacted(work, turn) if self.seal is None else self._guarded(work, lenient=lenient)
        return self._translated(steps)

    def _guarded(self, work: Any, *, lenient: bool) -> Steps:
        """As Database.transact, under the seal."""
        seal = self.seal
        assert seal is not None

        def guarded(connection: Connection) -> tuple[Any, int]:
            guard = memory().guard = SealGuard(connection, seal, lenient=lenient, unsealed=False)
            try:
                return work(connection), guard.end()
            finally:
                memory().guard = None

        result, counter = yield from self._transacted(guarded, True)
        seal.seen(counter)
        return result

    def transact_unchecked(self, work: Any, *, turn: bool = True) -> Any:
        return self._translated(self._transacted(work, turn))

    def _transacted(self, work: Any, turn: bool) -> Steps:
        session, _ = yield from self._begun([], turn)

        def locks(strength: int) -> None:
            if self.server.locks["fleet"].holders.get(session, -1) < strength:
                raise Blocked(strength)

        while True:
            if not session.open:
                self._link.session = None
                raise Lost("the connection was lost")
            try:
                result, written = memory().tried(work, locks)
                break
            except Blocked as blocked:
                yield self._link.message(partial(self.server.lock, session, "fleet", blocked.strength))
            except BaseException as error:
                yield from self._link.undo()
                if isinstance(error, (TypeError, ValueError, KeyError, OverflowError)) and not isinstance(
                    error, HsmError
                ):
                    raise RowInvalid(f"{self.shown}: a row is not as hsmcore writes it") from None
                raise
        yield from self._committed(partial(self.server.commit, session, (), written))
        return result

    def _committed(self, job: Callable[[], Job], *, hastens: bool = False) -> Steps:
        try:
            yield self._link.message(job, hastens=hastens)
        except Lost as error:
            self._link.session = None
            raise StoreUnknown(f"{self.shown}: the connection failed in COMMIT: {error}") from None

    def _translated(self, steps: Steps) -> Steps:
        try:
            return (yield from steps)
        except Warned as error:
            raise StoreUnknown(f"{self.shown}: COMMIT was confirmed with a warning: {error}") from None
        except Unmet:
            raise StoreChanged(CHANGED) from None
        except (Lost, Refused) as error:
            if isinstance(error, Lost):
                self._link.session = None
            raise StoreAway(f"{self.shown}: {error}", hint=HINT) from None


class Asker:
    """As the class of this name in state/postgres/ask.py."""

    def __init__(self, server: Server, process: Process, dial_ns: int, answered: Callable[[int], object]) -> None:
        self._server, self._process, self._dial_ns = server, process, dial_ns
        self._answered, self._dialled_ns = answered, 0
        self._one = asyncio.Lock()
        self._begin()

    def _begin(self) -> None:
        """With another connection: what was under way on the one before has no one who waits for it."""
        self._thread, self._link = LinkThread(self._server, self._process), _Link(self._server, self._process)

    async def ask(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        async with self._one:
            try:
                asked = self._thread.submit(self._asked, work, int(seconds * SECOND))
                told: Reply = await asyncio.wrap_future(asked)
            except BaseException:
                await self._drop()
                raise
            return told

    async def still(self, question: Question, incarnation: str, seconds: float) -> bool:
        return await still(self, question, incarnation, seconds)

    def _asked(self, work: Sequence[Question | Change], patience_ns: int) -> Steps:
        link = self._link
        try:
            used = link.session is not None
            for again in (False, True):
                if link.session is None:
                    self._dialled_ns = self._server.clock.ns
                    link.session = yield _Message(None, None, self._dial_ns)
                session = link.session
                try:
                    answers = yield link.message(partial(self._server.told, session, work), patience_ns)
                except Lost as error:
                    link.session = None
                    if again or not used or error.args == NO_ANSWER:
                        raise
                else:
                    self._answered(self._dialled_ns)
                    timeline = f"{session.timeline:08X}"
                    return Reply(answers, (SYSTEM, timeline), f"{SYSTEM} {timeline} {session.started}", again)
        except Unmet:
            raise StoreChanged(CHANGED) from None
        except (Lost, Refused, Warned) as error:
            raise StoreUnknown(f"the server did not answer a question: {error}") from None

    async def _drop(self) -> None:
        self._link.close()
        self._begin()

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
