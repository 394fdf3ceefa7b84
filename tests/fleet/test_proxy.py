"""The ways of the campaign: what is lost, and what is only late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.fleet.proxy import Proxy


class Way:
    """A way to a server that says what it hears, and all that it has heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be the server."""
        self.writers.append(writer)
        while data := await reader.read(64):
            self.heard.append(data)
            writer.write(data)

    async def dial(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection."""
        made = await asyncio.open_connection("127.0.0.1", port)
        self.writers.append(made[1])
        return made


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Proxy, Way]]:
    """Such a way, with a proxy on it."""
    way = Way()
    server = await asyncio.start_server(way.serve, "127.0.0.1", 0)
    proxy = Proxy(lambda: server.sockets[0].getsockname()[1], 0.002, 0.002)
    await proxy.start()
    try:
        yield proxy, way
    finally:
        await proxy.close()
        server.close()
        for writer in way.writers:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def say(stream: Any, text: bytes) -> bytes:
    """Say something and wait for the echo."""
    stream[1].write(text)
    found: bytes = await stream[0].readexactly(len(text))
    return found


async def lost(proxy: Proxy) -> None:
    """Wait until something was lost."""
    while not proxy.silenced:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_a_connection_that_has_lost_something_stays_silent_and_another_one_does_not():
    async with opened() as (proxy, way):
        first = await way.dial(proxy.port)
        assert await say(first, b"a") == b"a"
        proxy.lose()
        first[1].write(b"b")
        await lost(proxy)
        proxy.heal()
        first[1].write(b"c")
        assert await say(await way.dial(proxy.port), b"d") == b"d"
        assert way.heard == [b"a", b"d"]
        assert not first[0].at_eof()


async def test_one_direction_alone_is_lost():
    async with opened() as (proxy, way):
        stream = await way.dial(proxy.port)
        assert await say(stream, b"a") == b"a"
        proxy.lose(requests=False)
        stream[1].write(b"b")
        await lost(proxy)
        assert way.heard == [b"a", b"b"]


async def test_what_is_held_arrives_later_and_whole():
    async with opened() as (proxy, way):
        stream = await way.dial(proxy.port)
        proxy.hold(replies=False)
        stream[1].write(b"a")
        await stream[1].drain()
        assert way.heard == []
        proxy.heal()
        assert await stream[0].readexactly(1) == b"a"
