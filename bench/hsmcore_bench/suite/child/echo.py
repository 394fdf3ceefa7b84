"""What a way to another process and back costs by itself: bytes that come back as they are, from an event loop to
another one by a Unix socket.

`python -m hsmcore_bench.suite.child.echo DESCRIPTOR` is the other end.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from subprocess import Popen
from typing import Any

from hsmcore.members.control.process import python
from hsmcore_bench.harness.parent import die_with_parent
from hsmcore_bench.suite.child.protocol import Job, check_message
from hsmcore_bench.suite.child.tasks import event_loop, loop_name, saturate


class _Asking(asyncio.Protocol):
    """One message after the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._answer: asyncio.Future[None] | None = None
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left == 0 and self._answer is not None:
            self._answer.set_result(None)

    async def ask(self, message: bytes) -> None:
        self._answer, self._left = self._loop.create_future(), len(message)
        self._transport.write(message)
        await self._answer


class _Answering(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: Any = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost.set_result(None)


class Echoing:
    """One caller. Nothing is signed."""

    def __init__(self, job: Job) -> None:
        self._message = check_message(job.message_bytes)
        self._stack = ExitStack()
        own, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self._other = Popen(python("-m", __name__, str(number)), pass_fds=[number])
        self._stack.callback(self._other.wait)
        self._runner = self._stack.enter_context(asyncio.Runner(loop_factory=event_loop()))
        self._ask = self._runner.run(self._connected(own))

    async def _connected(self, own: socket.socket) -> Any:
        transport, asking = await asyncio.get_running_loop().create_unix_connection(_Asking, sock=own)
        self._stack.callback(transport.abort)
        await asking.ask(self._message)  # the other end is there
        return asking.ask

    def describe(self) -> Mapping[str, Any]:
        return {"loop": loop_name()}

    def run(self, seconds: float) -> Mapping[str, Any]:
        return self._runner.run(saturate(self._ask, [[self._message]], seconds))

    def close(self) -> None:
        self._stack.close()


async def _answer(number: int) -> None:
    other = socket.socket(fileno=number)
    _, answering = await asyncio.get_running_loop().create_unix_connection(_Answering, sock=other)
    await answering.lost


if __name__ == "__main__":
    die_with_parent()
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        runner.run(_answer(int(sys.argv[1])))
