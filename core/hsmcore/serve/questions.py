"""What the server's process asks the process that it shows (answers.py). The questions that wait are the answer to each
call of that process, which brings the answers to earlier ones: so it says how often it is asked."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from hsmcore.base.scope import Scope
from hsmcore.base.waiting import shielded
from hsmcore.serve.source import RECORD_SECONDS, Unanswered

MOST: Final = 32
"""Questions that may wait for answers at a time."""
UNANSWERED_SECONDS: Final = 3.0


class Questions:
    """For the server's event loop, but for `exchange`."""

    def __init__(self, ends: int) -> None:
        """`ends`: a descriptor that hangs up when the other process ends."""
        self.tell: Callable[[Mapping[str, Any]], None] = lambda _event: None
        """Gets each event."""
        self.scope = Scope()
        self._loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(MOST)
        self._number = 0
        self._unasked: list[tuple[int, str, Sequence[Any]]] = []
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._shared: dict[str, asyncio.Task[Any]] = {}
        self._asked = os.eventfd(0, os.EFD_NONBLOCK)
        self.scope.defer(lambda: os.close(self._asked))
        self._poll = select.poll()
        self._poll.register(self._asked, select.POLLIN)
        self._poll.register(ends, 0)  # its end is always reported
        self._woken = [self._asked]

    def heed(self, nudge: int) -> None:
        """Return from `exchange` also when the other process writes to this eventfd."""
        self._poll.register(nudge, select.POLLIN)
        self._woken.append(nudge)

    async def learn(self, name: str, *arguments: Any) -> Any:
        """Return the answer to a question; see Answers. What is being asked is not asked twice. Raises Unanswered."""
        key = f"{name} {arguments}"
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = self.scope.start(self._ask(UNANSWERED_SECONDS, name, *arguments))
            shared.add_done_callback(lambda _: self._shared.pop(key))
        return await shielded(shared)

    async def order(self, name: str, *arguments: Any) -> Any:
        """Have a thing done, and return the answer. Raises Unanswered."""
        return await self._ask(RECORD_SECONDS + UNANSWERED_SECONDS, name, *arguments)

    async def _ask(self, seconds: float, name: str, *arguments: Any) -> Any:
        self._number += 1
        number = self._number
        try:
            async with asyncio.timeout(seconds), self._turns:
                answer = self._waiting[number] = self._loop.create_future()
                self._unasked.append((number, name, arguments))
                os.eventfd_write(self._asked, 1)
                result, problem = await answer
        except TimeoutError:
            result, problem = None, f"the key manager's process has not answered for {seconds:g} s"
        finally:
            self._waiting.pop(number, None)
        if problem:
            raise Unanswered(problem)
        return result

    def exchange(
        self, answers: Sequence[tuple[int, Any, str]], events: Sequence[Mapping[str, Any]], seconds: float
    ) -> list[tuple[int, str, Sequence[Any]]]:
        """Give answers and events; return the questions, within `seconds`. For the thread that reads the requests."""
        self._loop.call_soon_threadsafe(self._take, answers, events)
        self._poll.poll(seconds * 1000)
        for descriptor in self._woken:
            with suppress(BlockingIOError):
                os.eventfd_read(descriptor)
        asked = self._unasked[:MOST]
        del self._unasked[: len(asked)]
        return asked

    def _take(self, answers: Sequence[tuple[int, Any, str]], events: Sequence[Mapping[str, Any]]) -> None:
        for number, *answer in answers:
            future = self._waiting.get(number)
            if future is not None and not future.done():
                future.set_result(answer)
        for event in events:
            self.tell(event)

    def end(self) -> None:
        """Answer what waits: the server ends."""
        self._take([(number, None, "the console ends") for number in self._waiting], ())
