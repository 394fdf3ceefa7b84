"""Requests that go on after a first attempt that failed, and requests whose callers leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from hsmcore._native import Digest, freeze, verify
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError, InvalidMessageType
from hsmcore.failover.breaker import WITHHELD
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.levels import Levels
from hsmcore.failover.policy import Attempts
from hsmcore.failover.request import Request


class Resumed:
    """Belongs to the event loop of a router, whose `bind`, `_failed` and `_route` it is given."""

    def __init__(
        self,
        levels: Levels[Endpoint],
        bind: Callable[[Iterable[bytes | Digest], bytes], None],
        failed: Callable[[Endpoint, bytes, HsmError, Request], None],
        route: Callable[[Request], Coroutine[Any, Any, Receipt]],
    ) -> None:
        self._levels, self._bind, self._failed, self._route = levels, bind, failed, route
        self._going_on: dict[asyncio.Future[Any], asyncio.Task[Receipt]] = {}
        """By the future that the caller has."""

    def fall_back(
        self,
        asked: asyncio.Future[Any] | None,
        endpoint: Endpoint,
        index: int,
        deadline: int,
        message: bytes | Digest,
        error: HsmError,
        extra: bytes | None,
        only: bytes | None,
        begun: int,
    ) -> asyncio.Future[Any]:
        """Go on with a request, and give `asked` its answer: see Routes."""
        key = endpoint.version_at(index).public_key
        request = Request(message, deadline, allow_other_key=False, extra=extra, attempts=Attempts(only=only))
        request.begun = begun or request.begun
        loop = asyncio.get_running_loop()
        if asked is None:
            self._failed(endpoint, key, error, request)
            answer, work = loop.create_future(), self._route(request)
        else:
            if isinstance(error, WITHHELD):
                self._bind((message,), key)
            answer, work = asked, self._go_on(endpoint, key, error, request)
        task = self._going_on[answer] = loop.create_task(work)
        task.add_done_callback(partial(self._fell_back, answer, (message, key, error), bool(begun)))
        return answer

    async def _go_on(self, endpoint: Endpoint, key: bytes, error: HsmError, request: Request) -> Receipt:
        """Judge the failure, an iteration of the loop after it: by then the member knows what its call has left."""
        self._failed(endpoint, key, error, request)
        return await self._route(request)

    def _fell_back(
        self,
        answer: asyncio.Future[Any],
        first: tuple[bytes | Digest, bytes, HsmError],
        with_receipt: bool,
        task: asyncio.Task[Receipt],
    ) -> None:
        del self._going_on[answer]
        message, key, failed = first
        if task.cancelled():
            if failed.maybe_signed:  # its caller may have left before it was judged
                self._bind((message,), key)
            answer.cancel()
        elif (error := task.exception()) is not None:
            if not answer.done():
                answer.set_exception(error)
        elif answer.done():  # its caller has left in this iteration of the loop
            self._bind((message,), task.result().public_key)
        else:
            answer.set_result(task.result() if with_receipt else task.result().signature)

    def abandon(self, asked: Any, message: Any) -> None:
        """The caller of `asked` has left: no other key may sign the message, unless nobody has begun with it."""
        task = asked if isinstance(asked, asyncio.Task) else self._going_on.get(asked)
        if task is not None:
            task.cancel()  # it binds the message itself
            return
        for endpoint in self._levels.members:
            found = endpoint.asked_for(asked)
            if found is not None:
                index, message = found
                if endpoint.abandon(asked):
                    self._bind((message,), endpoint.version_at(index).public_key)
                return
        if asyncio.isfuture(asked) and asked.done() and not asked.cancelled() and asked.exception() is None:
            with suppress(InvalidMessageType):  # a buffer that was released since
                self._bind_answered(asked.result(), freeze(message))

    def _bind_answered(self, result: bytes | Receipt, message: bytes | Digest) -> None:
        """The answer was there when its caller left."""
        if isinstance(result, Receipt):
            self._bind((message,), result.public_key)
            return
        # A signature does not say who made it, for the few whose caller leaves now: it tells.
        keys = {version.public_key: version for one in self._levels.members for version in one.versions.values()}
        for version in keys.values():
            if verify(version.algorithm, version.public_key, message, result):
                self._bind((message,), version.public_key)

    async def idle(self) -> None:
        """Wait for the requests that go on after a failure."""
        while self._going_on:
            await asyncio.wait(self._going_on.values())
