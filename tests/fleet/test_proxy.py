"""The ways of the campaign: what is lost, and what is only late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.fleet.proxy import Proxy

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def way() -> AsyncIterator[tuple[Proxy, list[bytes]]]:
    """A way to a server that says what it hears, and all that it has heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64):
            heard.append(data)
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy(lambda: server.sockets[0].getsockname()[1], 0.002, 0.002)
    await proxy.start()
    try:
        yield proxy, heard
    finally:
        await proxy.close()
        server.close()


async def say(stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], text: bytes) -> bytes:
    """Say something and wait for the echo."""
    stream[1].write(text)
    return await stream[0].readexactly(len(text))


async def test_a_connection_that_has_lost_something_stays_silent_and_another_one_does_not():
    async with way() as (proxy, heard):
        first = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await say(first, b"a") == b"a"
        proxy.lose()
        first[1].write(b"b")
        while not proxy.silenced:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        proxy.heal()
        first[1].write(b"c")
        second = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await say(second, b"d") == b"d"
        assert heard == [b"a", b"d"]
        assert not first[0].at_eof()


async def test_one_direction_alone_is_lost():
    async with way() as (proxy, heard):
        stream = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await say(stream, b"a") == b"a"
        proxy.lose(requests=False)
        stream[1].write(b"b")
        while not proxy.silenced:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert heard == [b"a", b"b"]


async def test_what_is_held_arrives_later_and_whole():
    async with way() as (proxy, heard):
        stream = await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.hold(replies=False)
        stream[1].write(b"a")
        await stream[1].drain()
        assert heard == []
        proxy.heal()
        assert await stream[0].readexactly(1) == b"a"
