"""A dedicated connection on which an event loop asks a server, without a thread: a whole transaction goes there and
back in one message, so its changes carry their own conditions. For the lease of a fleet, which waits for nothing else.

A message that is not answered in time leaves the connection of no more use: it is closed, and the next call dials. Some
firewalls and load balancers forget a connection and stay silent; the answer to a renewal is worth nothing by then.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from traceback import clear_frames
from typing import Any, Final, Protocol

import orjson
import psycopg
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.waiting import wait_async

from hsmcore.base.scope import Scope
from hsmcore.state.database import reason
from hsmcore.state.errors import StoreChanged, StoreError, StoreNotGenuine, StoreUnknown
from hsmcore.state.exchange import CHANGED, Asking, Change, Question, Reply, still
from hsmcore.state.postgres.link import AFTERWARDS, FACTS_AT, MORE, RELEASED, SYSTEM, Facts, Warned, failure
from hsmcore.state.postgres.text import asked, asked_in, rows_of, saying, saying_then, written
from hsmcore.state.seal import Seal
from hsmcore.state.seal_guard import is_quick

Found = tuple[Any, ...]
Driver = psycopg.AsyncConnection[Any]
_LOOK_SECONDS: Final = 0.1
_STILL: Final = b"AND NOT pg_is_in_recovery() AND pg_postmaster_start_time() = '%b'"
_DIALS: Final = 4
"""Dials that may be under way at a time."""


class Asker(Warned):
    """Belongs to one event loop. `dial` connects; `begin`: link.beginning; `judge` refuses a server that may lose what
    it confirms; `waits`: as for Link. `dial_seconds`: the longest time that dialling may take."""

    def __init__(
        self,
        schema: str,
        dial: Callable[[], Coroutine[Any, Any, Driver]],
        begin: Sequence[bytes],
        judge: Callable[[Facts], None],
        *,
        waits: bool,
        dial_seconds: float,
    ) -> None:
        self._schema, self._dial, self._begin, self._judge, self._waits = schema, dial, begin, judge, waits
        self._dial_seconds, self._dialled_at = dial_seconds, math.inf
        self._driver: Driver | None = None
        self._system = ""
        """Of the server that is connected."""
        self._incarnation, self._started = "", b""
        self._server: tuple[object, ...] = ()
        """What tells it from others, and from itself after it began again."""
        self._one, self._scope = asyncio.Lock(), Scope()
        self.lost: Callable[[], object] = lambda: None
        """Called when an answer is late: other connections to the server may be as silent."""
        self.answered: Callable[[float], object] = lambda _at: None
        """Called after each answer with the moment, by the monotonic clock, at which its connection was dialled."""

    async def ask(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        """As Asking. StoreUnknown also if the server warns that what it confirmed may not be durable."""
        async with self._one:
            used, begun = self._driver is not None, time.monotonic()
            try:
                try:
                    return await self._told(work, seconds)
                except psycopg.OperationalError:
                    if not used or self._has_failed:
                        raise
                    # The server was started again, or closed the connection, while nothing was under way.
                    await self._drop()
                    return (await self._told(work, seconds))._replace(again=True)
            except psycopg.Error as error:
                if self._has_failed:
                    await self._roll_back()
                    raise _refusal(error, work) from None
                await self._drop()
                raise StoreUnknown(f"the server did not answer: {reason(error)}") from None
            except TimeoutError as error:
                await self._drop()
                self.lost()
                late = f"{time.monotonic() - begun:.2f} s, where an answer counts for {seconds:.3g} s"
                raise StoreUnknown(
                    f"the server did not answer: {str(error) or late}; the connection is dialled again"
                ) from None
            except BaseException:
                await self._drop()
                raise

    @property
    def _has_failed(self) -> bool:
        """Whether a statement before COMMIT has failed: nothing was written, and the connection is good."""
        return self._driver is not None and self._driver.pgconn.transaction_status == TransactionStatus.INERROR

    async def _roll_back(self) -> None:
        """End the failed transaction, which is one message: to dial is several."""
        assert self._driver is not None  # noqa: S101  # for the type checker
        server = self._driver.pgconn
        try:
            async with asyncio.timeout(self._dial_seconds):
                await wait_async(saying(server, b"ROLLBACK"), server.socket, _LOOK_SECONDS)
        except BaseException as error:
            await self._drop()
            if not isinstance(error, psycopg.Error | TimeoutError):
                raise

    async def still(self, question: Question, incarnation: str, seconds: float) -> bool:
        """As Asking, in one statement, which itself says whether the server is still the one that answered last, and no
        standby: all that a transaction begins with would cost more than the question. False also without an answer."""
        async with self._one:
            driver = self._driver
            if driver is None or not self._system or incarnation != self._incarnation:
                return False
            text = b" ".join([asked_in(driver.pgconn, question, self._schema), _STILL % self._started])
            try:
                async with asyncio.timeout(seconds):
                    results = await wait_async(saying(driver.pgconn, text), driver.pgconn.socket, _LOOK_SECONDS)
                return bool(results[0].ntuples)
            except (psycopg.Error, TimeoutError):
                await self._drop()
                return False
            except BaseException:
                await self._drop()
                raise

    async def _told(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        driver = self._driver
        if driver is None:
            driver = await self._dialled()
            self._system = ""
        server, self.warned = driver.pgconn, ""
        begin = [*self._begin, *([] if self._system else [SYSTEM])]
        texts = [(one, asked(server, [one]) if isinstance(one, Question) else written(server, [one])) for one in work]
        said = [*begin, *(text for _, some in texts for text in some), b"COMMIT"]
        steps = saying_then(server, said, AFTERWARDS) if self._waits else saying(server, b"; ".join(said))
        async with asyncio.timeout(seconds):
            # Not the connection's own wait, which on a cancellation asks the server to end its work, and waits for it.
            results = await wait_async(steps, server.socket, _LOOK_SECONDS)
        self.answered(self._dialled_at)
        return self._read(results, texts, len(begin))

    def _read(self, results: list[PGresult], texts: Sequence[tuple[object, list[bytes]]], at: int) -> Reply:
        [first] = rows_of(results[FACTS_AT])
        facts = Facts.of([first])
        if not self._system:
            self._system, self._server = str(rows_of(results[at - 1])[0][0]), (facts.started, facts.timeline)
        elif self._server != (facts.started, facts.timeline):
            raise psycopg.OperationalError("a pooler has put another server in its place")
        if self.warned:
            raise StoreUnknown(f"COMMIT was confirmed with a warning: {self.warned}")
        self._judge(facts)
        if self._waits and not facts.lasts(rows_of(results[-1])):
            raise StoreUnknown(RELEASED)
        answers = []
        for one, some in texts:
            if isinstance(one, Question):
                answers.append(rows_of(results[at]))
            at += len(some)
        self._incarnation = f"{self._system} {facts.timeline} {facts.started}"
        self._started = str(facts.started).encode()
        return Reply(answers, (self._system, facts.timeline), self._incarnation, found=first[-1 - MORE : -1])

    async def _dialled(self) -> Driver:
        """Dial, and once more while that has no answer: what was sent while bytes were lost is answered by none."""
        dials: set[asyncio.Task[Driver]] = set()
        self._dialled_at = time.monotonic()
        try:
            async with asyncio.timeout(self._dial_seconds):
                done: set[asyncio.Task[Driver]] = set()
                while not done:
                    dials.add(self._scope.start(self._dial()))
                    done, _ = await asyncio.wait(
                        dials, timeout=self._dial_seconds / _DIALS, return_when=asyncio.FIRST_COMPLETED
                    )
                driver = done.pop().result()
        except (psycopg.Error, TimeoutError) as error:
            clear_frames(error.__traceback__)  # a connection that was given up stays open as long as one of them lives
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"no connection within {self._dial_seconds:g} s, half of fleet.ttlMs") from None
            raise
        finally:
            for dial in dials:
                dial.add_done_callback(self._given_up)
                dial.cancel()
        driver.add_notice_handler(self.noticed)
        self._driver = driver
        return driver

    def _given_up(self, dial: asyncio.Task[Driver]) -> None:
        """A dial has ended of which nothing is wanted, unless it is the one that is used."""
        if dial.cancelled():
            return
        if (error := dial.exception()) is not None:
            clear_frames(error.__traceback__)
        elif dial.result() is not self._driver:
            dial.result().pgconn.finish()

    async def _drop(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            await driver.close()

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        async with self._one:
            await self._drop()
        await self._scope.close()


def _refusal(error: psycopg.Error, work: Sequence[Question | Change]) -> StoreError:
    """Return what a statement's error says of a message, of which nothing was done."""
    if not isinstance(error, psycopg.errors.DivisionByZero):
        return failure(error, "the fleet's database")
    if any(one.required for one in work):
        return StoreChanged(CHANGED)
    return StoreError("the state store is sealed", hint="Give this process the stateSecret too.")


class ChecksSeal(Protocol):
    """A sealed store's database, which checks in its thread: postgres/database.py."""

    seal: Seal | None
    thread: ThreadPoolExecutor
    accepted: Found

    def check_rare(self) -> None: ...
    def notice_loss(self) -> None: ...


class Vouched:
    """Asking, in a store with a seal: an answer counts if what the seal vouches for was read with it as it was checked
    last, or is found so behind it. What writes more than renewals do, and what is not genuine, goes `in_turn`, which
    checks first."""

    def __init__(self, asker: Asker, in_turn: Asking, database: ChecksSeal) -> None:
        self._asker, self._in_turn, self._database = asker, in_turn, database
        self._highs = "{}"
        """The highest positions that this connection has shown: another one's may be later or earlier."""

    async def ask(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        sent = all(is_quick(one.statement) for one in work)
        if sent:
            told = await self._asker.ask(work, seconds)
            if await self._is_vouched_for(told.found):
                return told
        told = await self._in_turn.ask(work, seconds)
        return told._replace(again=told.again or sent)

    async def _is_vouched_for(self, found: Found) -> bool:
        *row, highs, rare = found
        database, run = self._database, asyncio.get_running_loop().run_in_executor
        before, self._highs = self._highs, highs or "{}"
        if fell(before, self._highs):
            await run(database.thread, database.notice_loss)
        if database.accepted != (*row, rare):
            with suppress(StoreNotGenuine):
                await run(database.thread, database.check_rare)
        return database.accepted == (*row, rare) and not (database.seal is None or database.seal.doubted)

    async def still(self, question: Question, incarnation: str, seconds: float) -> bool:
        """As Asking."""
        return await still(self, question, incarnation, seconds)

    async def close(self) -> None:
        """As Asking."""
        await self._asker.close()


def fell(before: str, now: str) -> bool:
    """Return whether the highest position of a domain went back, by what schema.rare_of has found."""
    if before == now:
        return False
    known, found = orjson.loads(before), orjson.loads(now)
    return any(found.get(name, -1) < high for name, high in known.items())
