"""Gateways for tests of their clients: the real one in a process, one that lies and breaks, and a wire that is cut."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Self

from tests.support.wire import signed
from tests.support.zygote import CLI, Forked

from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import CLIENT_TYPES, Frame, Splitter, Type, frame


def document_of(config: Mapping[str, Any], address: str, **gateway: Any) -> dict[str, Any]:
    """A configuration with a gateway whose one client, "test", is this user."""
    client = {"uid": [os.getuid()], "keys": ["default"], "inFlight": 1024, "manages": True}
    inner = dict(config.get("sequencer", config))
    return inner | {"gateway": {"listen": [address], "clients": {"test": client}} | gateway}


class GatewayProcess:
    """`hsmcore gateway` in a process of its own."""

    def __init__(self, folder: Path, document: Mapping[str, Any]) -> None:
        self._file = folder / "gateway.json"
        self._file.write_text(json.dumps(document))
        self._process: subprocess.Popen[bytes] | None = None
        self.addresses: list[str] = []
        self.tokens: list[str] = []

    async def start(self) -> None:
        """Start, and wait until it listens."""
        command = [CLI, "gateway", "--config", str(self._file), "--json"]
        process = await asyncio.to_thread(Forked, command, stdout=subprocess.PIPE)
        self._process = process
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, f"the gateway ended with {process.wait()}"
        shown = json.loads(line)
        self.addresses, self.tokens = shown["addresses"], shown["pkcs11"]

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end. Returns the exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        code = await asyncio.to_thread(process.wait)
        assert process.stdout is not None
        process.stdout.close()
        return code

    async def kill(self) -> None:
        """kill -9."""
        await self.end(signal.SIGKILL)


@asynccontextmanager
async def gateway(folder: Path, config: Mapping[str, Any], **settings: Any) -> AsyncIterator[GatewayProcess]:
    """A gateway on a Unix socket in this folder."""
    served = GatewayProcess(folder, document_of(config, f"unix:{folder}/sign.sock", **settings))
    await served.start()
    try:
        yield served
    finally:
        await served.end()


class Cutter:
    """Between client and gateway: passes bytes on, and cuts each connection after a random number of them."""

    def __init__(self, chance: Random, to: str, most: int) -> None:
        self._chance, self._to, self._most = chance, to, most
        self.cutting = True
        self.cuts = 0
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.Task[None]] = set()

    async def listen(self, path: str) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def close(self) -> None:
        """Cut everything."""
        assert self._server is not None
        self._server.close()
        for task in self._ends:
            task.cancel()
        await asyncio.gather(*self._ends, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._ends.add(task)
        try:
            await self._between(reader, writer)
        except asyncio.CancelledError:
            return  # by `close`; asyncio would complain of it
        finally:
            writer.transport.abort()
            self._ends.discard(task)

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self._to)
        except OSError:
            return
        sides = [self._pass(reader, far_writer), self._pass(far_reader, writer)]
        tasks = [asyncio.ensure_future(side) for side in sides]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            far_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._chance.randrange(1, self._most)
        while data := await reader.read(1 << 16):
            if self.cutting and len(data) >= left:
                self.cuts += 1
                writer.write(data[:left])
                await writer.drain()
                return
            left -= len(data)
            writer.write(data)
            await writer.drain()


class Staller(Cutter):
    """Passes bytes on, but not those of a connection on which a word has come, until `released`: then it is cut."""

    def __init__(self, to: str, word: bytes) -> None:
        super().__init__(Random(0), to, 2)
        self._word = word
        self.stalled, self.released = asyncio.Event(), asyncio.Event()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self._word in data and not self.released.is_set():
                self.stalled.set()
                await self.released.wait()
                return
            writer.write(data)
            await writer.drain()


PUBLIC_KEY = bytes(range(32))


class FakeGateway:
    """Speaks the protocol on a Unix socket and does what a test asks for. "Signs" with a hash."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.credits = 64
        self.message_bytes = 1000
        self.batch = 8
        self.slots = ("default",)
        self.public_keys = [PUBLIC_KEY]
        self.kinds = wire.ALL_KINDS
        self.instance = os.urandom(16)
        self.frames: list[Frame] = []
        """Everything that was received."""
        self.answer: Callable[[FakeGateway, FakeConnection, Frame], None] = honest
        self.connections: list[FakeConnection] = []
        self.accepted = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: FakeConnection(self), self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await self._server.wait_closed()
        await asyncio.gather(*(connection.ended for connection in list(self.connections)))

    def keys(self) -> tuple[wire.Key, ...]:
        """Its keys: the last one signs."""
        last = len(self.public_keys)
        return tuple(
            wire.Key(0, number, number == last, "ed25519", f"{number:02x}", public_key, self.kinds)
            for number, public_key in enumerate(self.public_keys, 1)
        )

    def rotate(self) -> None:
        """Sign with a new key, and tell."""
        self.public_keys.append(os.urandom(32))
        for connection in self.connections:
            connection.transport.write(wire.keys(self.keys()))

    def received(self, kind: Type) -> list[Frame]:
        """The frames of a type."""
        return [one for one in self.frames if one.type is kind]


class FakeConnection(asyncio.Protocol):
    """A connection to it."""

    transport: asyncio.Transport

    def __init__(self, served: FakeGateway) -> None:
        self._served, self._splitter = served, Splitter(CLIENT_TYPES)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._served.accepted += 1
        self._served.connections.append(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._served.connections.remove(self)
        self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        for one in self._splitter.feed(data):
            self._served.frames.append(one)
            if one.type is Type.HELLO:
                self.welcome()
            elif one.type is not Type.ACK:
                self._served.answer(self._served, self, one)

    def welcome(self) -> None:
        """Say what there is."""
        own = self._served
        limits = own.credits, own.message_bytes, own.batch, 120_000
        self.transport.write(wire.welcome(wire.Welcome(own.instance, *limits, "test", own.slots, own.keys())))


def fake_signature(public_key: bytes, message: bytes) -> bytes:
    """What it makes."""
    return hashlib.sha512(public_key + message).digest()


def honest(served: FakeGateway, connection: FakeConnection, one: Frame) -> None:
    """Answer at once."""
    current = served.public_keys[-1]
    version = len(served.public_keys)
    if one.type is Type.SIGN:
        signature = fake_signature(current, wire.read_sign(one).message)
        answer = signed(one.request, signature, version, "primary")
    elif one.type is Type.SIGN_MANY:
        made = [fake_signature(current, message) for message in wire.read_sign_many(one.body).messages]
        answer = wire.signed_many(one.request, version, made)
    elif one.type is Type.PING:
        answer = frame(Type.PONG, one.request, one.body)
    else:
        return
    connection.transport.write(answer)
