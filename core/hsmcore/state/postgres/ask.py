"""A dedicated connection on which an event loop asks a server, without a thread: a whole transaction goes there and
back in one message, so its changes carry their own conditions. For the lease of a fleet, which waits for nothing else.

A message that is not answered in time leaves the connection of no more use: it is closed, and the next call dials. Some
firewalls and load balancers forget a connection and stay silent; the answer to a renewal is worth nothing by then.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from traceback import clear_frames
from typing import Any, Final

import psycopg
from psycopg.pq.abc import PGresult
from psycopg.waiting import wait_async

from hsmcore.state.database import reason
from hsmcore.state.errors import StoreError, StoreUnknown
from hsmcore.state.exchange import Change, Question, Reply
from hsmcore.state.postgres.link import AFTERWARDS, FACTS_AT, RELEASED, SYSTEM, Facts, Warned
from hsmcore.state.postgres.text import asked, rows_of, saying, saying_then, written

Driver = psycopg.AsyncConnection[Any]
_LOOK_SECONDS: Final = 0.1


class Asker(Warned):
    """Belongs to one event loop. `dial` connects; `begin`: link.beginning; `judge` refuses a server that may lose what
    it confirms; `waits`: as for Link. `dial_seconds`: the longest time that dialling may take. `answered`: called after
    each answer with the moment, by the monotonic clock, at which its connection was dialled."""

    def __init__(
        self,
        dial: Callable[[], Awaitable[Driver]],
        begin: Sequence[bytes],
        judge: Callable[[Facts], None],
        *,
        waits: bool,
        dial_seconds: float,
        answered: Callable[[float], object],
    ) -> None:
        self._dial, self._begin, self._judge, self._waits = dial, begin, judge, waits
        self._dial_seconds, self._answered, self._dialled_at = dial_seconds, answered, math.inf
        self._driver: Driver | None = None
        self._system = ""
        """Of the server that is connected."""
        self._server: tuple[object, ...] = ()
        """What tells it from others, and from itself after it began again."""
        self._one = asyncio.Lock()

    async def ask(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        """As Asking. StoreUnknown also if the server warns that what it confirmed may not be durable."""
        async with self._one:
            try:
                used = self._driver is not None
                try:
                    return await self._told(work, seconds)
                except psycopg.OperationalError:
                    if not used:
                        raise
                    # The server was started again, or closed the connection, while nothing was under way.
                    await self._drop()
                    return (await self._told(work, seconds))._replace(again=True)
            except psycopg.errors.DivisionByZero:
                await self._drop()
                raise StoreError("the state store is sealed", hint="Give this process the stateSecret too.") from None
            except (psycopg.Error, TimeoutError) as error:
                await self._drop()
                raise StoreUnknown(f"the server did not answer: {reason(error)}") from None
            except BaseException:
                await self._drop()
                raise

    async def _told(self, work: Sequence[Question | Change], seconds: float) -> Reply:
        driver = self._driver
        if driver is None:
            driver = self._driver = await self._dialled()
            self._system = ""
        server, self.warned = driver.pgconn, ""
        begin = [*self._begin, *([] if self._system else [SYSTEM])]
        texts = [(one, asked(server, [one]) if isinstance(one, Question) else written(server, [one])) for one in work]
        said = [*begin, *(text for _, some in texts for text in some), b"COMMIT"]
        steps = saying_then(server, said, AFTERWARDS) if self._waits else saying(server, b"; ".join(said))
        async with asyncio.timeout(seconds):
            # Not the connection's own wait, which on a cancellation asks the server to end its work, and waits for it.
            results = await wait_async(steps, server.socket, _LOOK_SECONDS)
        self._answered(self._dialled_at)
        return self._read(results, texts, len(begin))

    def _read(self, results: list[PGresult], texts: Sequence[tuple[object, list[bytes]]], at: int) -> Reply:
        facts = Facts.of(rows_of(results[FACTS_AT]))
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
        return Reply(answers, (self._system, facts.timeline), f"{self._system} {facts.timeline} {facts.started}")

    async def _dialled(self) -> Driver:
        self._dialled_at = time.monotonic()
        try:
            async with asyncio.timeout(self._dial_seconds):
                driver = await self._dial()
        except (psycopg.Error, TimeoutError) as error:
            clear_frames(error.__traceback__)  # a connection that was given up stays open as long as one of them lives
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"no connection within {self._dial_seconds:g} s, half of fleet.ttlMs") from None
            raise
        driver.add_notice_handler(self.noticed)
        return driver

    async def _drop(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            await driver.close()

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        async with self._one:
            await self._drop()
