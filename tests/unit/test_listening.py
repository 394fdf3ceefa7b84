"""Which connections the console closes for others, and how many descriptors are left to the signer."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import h11
import pytest
import uvicorn
from uvicorn.server import ServerState

from hsmcore.base.listening.connections import FEW, Connection, ConnectionLimit, spare_descriptors
from hsmcore.base.listening.http import FREE_PIECES, MAX_HEAD_LINES, PIECE_BYTES, LimitedProtocol, LimitedReader


class Client(Connection):
    """One that closes when `close` is called, as a transport does a turn after it was told to."""

    def __init__(self, gate: ConnectionLimit) -> None:
        super().__init__(gate, self.told)
        self.gone = False

    def told(self) -> None:
        self.gone = True

    def close(self) -> None:
        self.leave()


def entered(gate: ConnectionLimit, count: int) -> list[Client]:
    clients = [Client(gate) for _ in range(count)]
    for client in clients:
        gate.enter(client)
    return clients


def test_the_longest_idle_connection_is_closed_first() -> None:
    gate = ConnectionLimit(3)
    first, second, third = entered(gate, 3)
    first.busy()
    first.idle()
    entered(gate, 1)
    assert [client.gone for client in (first, second, third)] == [False, True, False]
    second.close()
    third.busy()
    entered(gate, 1)
    assert first.gone
    assert not third.gone


def test_a_new_connection_is_closed_when_all_others_are_busy() -> None:
    gate = ConnectionLimit(3)
    for client in entered(gate, 3):
        client.busy()
    [late] = entered(gate, 1)
    assert late.gone


def test_no_more_connections_are_accepted_while_many_are_closing() -> None:
    gate = ConnectionLimit(16)
    clients = entered(gate, 16)
    newer: list[Client] = []
    while not gate.crowded:
        newer += entered(gate, 1)
    assert len(newer) <= 8
    assert sum(client.gone for client in clients) == len(newer)
    for client in clients:
        client.close()
    assert not gate.crowded


@contextmanager
def files(count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        yield


@contextmanager
def limit(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_few_places_remain_when_descriptors_are_short() -> None:
    with limit(1024):
        with files(spare_descriptors() + 20):
            gate = ConnectionLimit()
            for client in entered(gate, 4):
                client.busy()
            gate = rested(gate)
            clients = entered(gate, 3 * FEW)
            assert sum(not client.gone for client in clients) == FEW
        gate = rested(gate)
        assert not any(client.gone for client in entered(gate, 3 * FEW))


def rested(gate: ConnectionLimit) -> ConnectionLimit:
    """Once it looks at the descriptors again."""
    gate._looked -= 1
    return gate


HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def read(*data: bytes, answered: bool = False) -> int:
    """How many bytes of a body come out of these. Raises RemoteProtocolError."""
    reader, count = LimitedReader(), 0
    for each in data:
        reader.receive_data(each)
        while (event := reader.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            count += len(event.data) if isinstance(event, h11.Data) else 0
            if isinstance(event, h11.EndOfMessage) and answered:
                reader.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                reader.send(h11.EndOfMessage())
                reader.start_next_cycle()
    return count


def test_a_head_of_many_lines_is_refused_before_it_is_read() -> None:
    fields = b"a:\r\n" * (MAX_HEAD_LINES - 3)
    assert read(HEAD + b"Content-Length: 999\r\n" + fields + b"\r\n" + b"\n" * 999) == 999
    for head in (HEAD + fields + 3 * b"a:\r\n" + b"\r\n", HEAD + 3999 * b"a:\r\n"):
        for data in ((head,), (head[:200], head[200:]), (HEAD + b"\r\n" + head,)):
            with pytest.raises(h11.RemoteProtocolError, match="too many lines"):
                read(*data, answered=True)


def test_a_body_in_crumbs_is_refused() -> None:
    def body(count: int, size: int) -> bytes:
        return (b"%x\r\n%s\r\n" % (size, b"a" * size)) * count

    assert read(CHUNKED + body(FREE_PIECES, 1) + b"0\r\n\r\n", CHUNKED + body(FREE_PIECES, 1), answered=True) > 0
    assert read(CHUNKED + body(1000, PIECE_BYTES)) == 1000 * PIECE_BYTES
    assert read(CHUNKED + body(1, 99 * PIECE_BYTES) + body(99, 1)) == 99 * PIECE_BYTES + 99
    with pytest.raises(h11.RemoteProtocolError, match="too small"):
        read(CHUNKED + body(2 * FREE_PIECES, 1))


class Wire(asyncio.Transport):
    """The other end of a connection, which takes everything."""

    def write(self, data: Any) -> None:
        del data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


async def spoken(app: Any, place: Client) -> LimitedProtocol:
    """A connection with the application."""
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    protocol = LimitedProtocol(place, config, ServerState(), lambda _peer, _why: None)
    protocol.connection_made(Wire())
    place.give_way = place.told
    return protocol


def test_more_bytes_of_a_client_whose_request_waits_do_not_keep_its_place() -> None:
    async def run() -> None:
        gate, waits = ConnectionLimit(1), asyncio.Event()

        async def app(scope: Any, _receive: Any, _send: Any) -> None:
            scope["state"]["connection"].idle()
            waits.set()
            await asyncio.Event().wait()

        [place] = entered(gate, 1)
        protocol = await spoken(app, place)
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await waits.wait()
        protocol.data_received(b"GET / HTTP/1.1\r\n")
        entered(gate, 1)
        assert place.gone

    asyncio.run(run())


@pytest.mark.parametrize("early", [False, True], ids=["before its answer", "after its answer"])
def test_a_body_that_is_not_valid_fails_nothing(early: bool) -> None:
    async def run() -> None:
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            try:
                await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
            except Exception as error:  # noqa: BLE001  # the test's result
                ended.set_result(error)
            else:
                ended.set_result(None)

        protocol = await spoken(app, entered(ConnectionLimit(1), 1)[0])
        protocol.data_received(CHUNKED)
        if early:
            await ended
        protocol.data_received(b"no chunk\r\n")
        assert await ended is None

    asyncio.run(run())
