"""A TCP connection's way between two processes: as long as a network's, and it can be cut, held in one direction or
both, delayed, and made to lose bytes.

What is held is not lost: as in a partition of a network, it arrives when the partition ends. A connection that is made
meanwhile is taken and gets no answer. What is lost never arrives: as behind a firewall that has forgotten a connection,
both ends stay open and nothing more comes, also when others pass again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

_CHUNK = 65536
_UNDER_WAY = 64
"""Chunks of one direction that are on their way at the same time."""
_Queue = asyncio.Queue[tuple[float, bytes]]


class Proxy:
    """Listens at a free port of the loopback and passes on to the port that `target` returns for each connection; None:
    nothing listens there. Belongs to one event loop. `round_trip`, `jitter`: seconds that each chunk is on its way
    there and back together, and up to how many more in each direction."""

    def __init__(self, target: Callable[[], int | None], round_trip: float = 0.0, jitter: float = 0.0) -> None:
        self.target, self.round_trip, self.jitter = target, round_trip, jitter
        self.port = 0
        self.delay = 0.0
        """Seconds that each chunk waits besides, in both directions."""
        self.reply_limit: int | None = None
        """Bytes of replies that still pass before the connection which they belong to is cut. None: all."""
        self.cuts = self.silenced = 0
        """Ends of connections that were cut; directions of connections that have lost something."""
        self._open = {True: asyncio.Event(), False: asyncio.Event()}
        self._loses: set[bool] = set()
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

    def lose(self, *, requests: bool = True, replies: bool = True) -> None:
        """Lose what comes in a direction, or in both. A connection of which something was lost stays silent in that
        direction for ever: TCP gives nobody what lies behind a gap."""
        self._loses |= {direction for direction, lost in ((True, requests), (False, replies)) if lost}

    @property
    def silent(self) -> bool:
        """Whether bytes are lost now in both directions."""
        return len(self._loses) == 2

    @silent.setter
    def silent(self, on: bool) -> None:
        self._loses = {True, False} if on else set()

    def heal(self) -> None:
        """Let everything pass, at once and whole, but for connections of which something was lost."""
        self.delay, self.reply_limit = 0.0, None
        self._loses.clear()
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
            await asyncio.sleep(self.round_trip)
            await self._open[True].wait()
            port = self.target()
            if port is None:
                return
            answers, theirs = await asyncio.open_connection("127.0.0.1", port)
            self._writers.add(theirs)
            async with asyncio.TaskGroup() as group:
                for source, sink, requests in ((reader, theirs, True), (answers, writer, False)):
                    way: _Queue = asyncio.Queue(_UNDER_WAY)
                    group.create_task(self._take(source, way))
                    group.create_task(self._give(sink, way, requests=requests))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # one of the two has gone, and the other is told below
        finally:
            for end in filter(None, (writer, theirs)):
                self._writers.discard(end)
                end.transport.abort()
            self._tasks.discard(task)

    async def _take(self, reader: asyncio.StreamReader, way: _Queue) -> None:
        """Note when each chunk arrives. The last one is empty: the end."""
        loop, last, data = asyncio.get_running_loop(), 0.0, b"-"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            late = self.round_trip / 2 + self.delay + self.jitter * random.random()
            last = max(last, loop.time() + late)
            await way.put((last, data))

    async def _give(self, writer: asyncio.StreamWriter, way: _Queue, *, requests: bool) -> None:
        loop, silent = asyncio.get_running_loop(), False
        while True:
            due, data = await way.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await self._open[requests].wait()
            if requests in self._loses and not silent:
                silent = True
                self.silenced += 1
            if silent:  # the end is lost too: the other side waits until it gives up by itself
                if data:
                    continue
                return
            if not data:
                raise ConnectionResetError  # ends the other direction too
            if not requests and self.reply_limit is not None:
                if self.reply_limit < len(data):
                    writer.write(data[: self.reply_limit])
                    self.reply_limit = None
                    self.cuts += 1
                    with suppress(OSError):
                        await writer.drain()
                    raise ConnectionResetError
                self.reply_limit -= len(data)
            writer.write(data)
            await writer.drain()
