"""A dedicated connection on which an event loop asks a server, without a thread: one question in a transaction, which
goes there and back in one message. For what is asked so often that turns of threads would cost more than the answer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from hsmcore.state.database import reason
from hsmcore.state.errors import StoreUnknown
from hsmcore.state.exchange import Question
from hsmcore.state.postgres.link import AFTERWARDS, ANSWER_SECONDS, FACTS_AT, RELEASED, Facts, Patient
from hsmcore.state.postgres.text import asked, rows_of


class Asker:
    """Belongs to one event loop. `dial` connects, in a thread; `begin`: link.beginning; `judge` refuses a server
    that may lose what it confirms; `waits`: as for Link, which costs a second message."""

    def __init__(
        self, dial: Callable[[], Patient], begin: bytes, judge: Callable[[Facts], None], *, waits: bool
    ) -> None:
        self._dial, self._begin, self._judge, self._waits = dial, begin, judge, waits
        self._driver: Patient | None = None
        self._socket = -1
        """The driver's, under a number that stays ours when the driver closes its own."""
        self._one = asyncio.Lock()

    async def ask(self, question: Question) -> list[tuple[Any, ...]]:
        """Return the rows of the answer, once its transaction is committed. Raises StoreError; StoreUnknown if there is
        no answer, or the server warns that it may not be durable: the next call connects again."""
        async with self._one:
            try:
                try:
                    results = await self._answered(question, again=self._driver is not None)
                except psycopg.OperationalError:
                    if self._driver is not None:
                        raise
                    # The server was started again, or closed the connection, while nothing was under way.
                    results = await self._answered(question, again=False)
                after = rows_of((await self._told(AFTERWARDS))[0]) if self._waits else []
            except (psycopg.Error, TimeoutError) as error:
                self._drop()
                raise StoreUnknown(f"the server did not answer a question: {reason(error)}") from None
            except BaseException:
                self._drop()
                raise
            if self._driver is not None and self._driver.warned:
                raise StoreUnknown(f"COMMIT was confirmed with a warning: {self._driver.warned}")
            facts = Facts.of(rows_of(results[FACTS_AT]))
            self._judge(facts)
            if self._waits and not facts.lasts(after):
                raise StoreUnknown(RELEASED)
            return rows_of(results[-2])

    async def _answered(self, question: Question, *, again: bool) -> list[PGresult]:
        """Send the question, and drop a connection that was used before (`again`) and turns out to be lost."""
        driver = self._driver
        if driver is None:
            driver = self._driver = await asyncio.to_thread(self._dial)
            self._socket = os.dup(driver.pgconn.socket)
        driver.warned = ""
        try:
            return await self._told(self._begin + asked(driver, [question]) + b"; COMMIT")
        except psycopg.OperationalError:
            if again:
                self._drop()
            raise

    async def _told(self, text: bytes) -> list[PGresult]:
        assert self._driver is not None  # noqa: S101  # for the type checker
        async with asyncio.timeout(ANSWER_SECONDS):
            return await _said(self._driver, self._socket, text)

    def _drop(self) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        async with self._one:
            self._drop()


async def _said(driver: Patient, socket: int, text: bytes) -> list[PGresult]:
    """Send a message and return its results. Raises psycopg.Error; the connection is of no more use then. Waits in no
    call: the answer to the message before is there, so that the kernel takes this one whole."""
    loop, server = asyncio.get_running_loop(), driver.pgconn
    done: asyncio.Future[None] = loop.create_future()
    results: list[PGresult] = []

    def readable() -> None:
        if done.done():
            return
        try:
            # Twice: the second call finds the error behind the data that the first one has read. uvloop does not call
            # again for a socket that has failed.
            server.consume_input()
            server.consume_input()
            while not server.is_busy():
                result = server.get_result()
                if result is None:
                    done.set_result(None)
                    return
                if result.status == ExecStatus.FATAL_ERROR:
                    raise psycopg.errors.error_from_result(result)
                results.append(result)
        except psycopg.Error as error:
            done.set_exception(error)

    server.send_query(text)
    readable()  # where sending has shown that the connection is lost, and has read all that there was
    loop.add_reader(socket, readable)
    try:
        await done
    finally:
        loop.remove_reader(socket)
    if not results:
        raise psycopg.OperationalError("the connection was lost")
    return results
