"""A TCP connection's way between two processes, which can be cut, held in one direction or both, delayed, and silenced.

What is held is not lost: as in a partition of a network, it arrives when the partition ends. A connection that is made
meanwhile is taken and gets no answer. What is silenced loses its bytes for good and stays open, as with a firewall that
has forgotten it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

_CHUNK = 65536


class Proxy:
    """Listens at a free port of the loopback and passes on to the port that `target` returns for each connection; None:
    nothing listens there. Belongs to one event loop."""

    def __init__(self, target: Callable[[], int | None]) -> None:
        self.target = target
        self.port = 0
        self.delay = 0.0
        """Seconds that each chunk waits, in both directions."""
        self.reply_limit: int | None = None
        """Bytes of replies that still pass before the connection which they belong to is cut. None: all."""
        self.silent = False
        """Whether bytes are lost now. A connection that has lost some passes none any more."""
        self.cuts = 0
        self._open = {True: asyncio.Event(), False: asyncio.Event()}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.heal()

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut everything and end."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()

    def hold(self, *, requests: bool = True, replies: bool = True) -> None:
        """Let nothing pass in a direction, or in both."""
        for direction, held in ((True, requests), (False, replies)):
            if held:
                self._open[direction].clear()

    def heal(self) -> None:
        """Let everything pass, at once and whole."""
        self.delay, self.reply_limit = 0.0, None
        for direction in self._open.values():
            direction.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()
            self.cuts += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        theirs: asyncio.StreamWriter | None = None
        try:
            await self._open[True].wait()
            port = self.target()
            if port is None:
                return
            answers, theirs = await asyncio.open_connection("127.0.0.1", port)
            self._writers.add(theirs)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, theirs, requests=True))
                group.create_task(self._pass(answers, writer, requests=False))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # one of the two has gone, and the other is told below
        finally:
            for end in filter(None, (writer, theirs)):
                self._writers.discard(end)
                end.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, requests: bool) -> None:
        lost = False
        while data := await reader.read(_CHUNK):
            lost = lost or self.silent
            if lost:
                continue
            await self._open[requests].wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            if not requests and self.reply_limit is not None:
                if self.reply_limit < len(data):
                    writer.write(data[: self.reply_limit])
                    self.reply_limit = None
                    self.cuts += 1
                    with suppress(OSError):
                        await writer.drain()
                    break
                self.reply_limit -= len(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # ends the other direction too
