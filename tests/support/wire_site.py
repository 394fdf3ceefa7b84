"""A gateway's wire face for tests: key managers behind a Unix socket, and peers that send what they like."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Any

from tests.support.wire import Signed, read_signed

import hsmcore
from hsmcore.config.loading import load_each
from hsmcore.gateway.gateway import RunningGateway, running, settings_of
from hsmcore.gateway.server import GatewayServer
from hsmcore.gateway.wire import batched
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import GATEWAY_TYPES, Frame, Splitter, Type, frame

ME = {"app": {"uid": [os.getuid()], "keys": ["default"]}}
"""This process as the only client."""


def sign(number: int, message: bytes, *, again: bool = False, slot: int = 0, **fields: Any) -> bytes:
    """A SIGN. `fields`: of wire.Sign."""
    asked = {"kind": "", "timeout_ms": 0, "position": None, "version": 0, **fields}
    return wire.sign(number, wire.Sign(message=message, **asked), again=again, slot=slot)


def many(number: int, *messages: bytes, **fields: Any) -> bytes:
    """A SIGN_MANY."""
    asked = {"kind": "", "timeout_ms": 0, "version": 0, **fields}
    return wire.sign_many(number, wire.SignMany(messages=list(messages), **asked))


def one_of(number: int, message: bytes, *, again: bool = False, slot: int = 0, **fields: Any) -> bytes:
    """A SIGN_BATCHED. `fields`: of batched.SignBatched."""
    asked = {"kind": "", "timeout_ms": 0, **fields}
    return batched.sign_batched(number, batched.SignBatched(message=message, **asked), again=again, slot=slot)


class Peer:
    """One end of a connection. It checks nothing that it sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._splitter = Splitter(GATEWAY_TYPES)
        self._frames: list[Frame] = []
        self.welcome: wire.Welcome | None = None

    async def hello(self, nonce: bytes | None = None) -> wire.Welcome:
        """Say HELLO, and take WELCOME."""
        self.send(wire.hello(nonce or os.urandom(16), "a test"))
        found = await self.next()
        assert found.type is Type.WELCOME, found
        self.welcome = wire.read_welcome(found.body)
        return self.welcome

    def send(self, *data: bytes) -> None:
        """Send bytes."""
        self.writer.write(b"".join(data))

    async def next(self) -> Frame:
        """The next frame. Raises EOFError at the end."""
        while not self._frames:
            data = await self.reader.read(65_536)
            if not data:
                raise EOFError
            self._frames += self._splitter.feed(data)
        return self._frames.pop(0)

    async def ask(self, data: bytes) -> Frame:
        """Send a request, and return the next frame that does not tell of the keys."""
        self.send(data)
        while (found := await self.next()).type is Type.KEYS:
            pass
        return found

    async def signed(self, data: bytes) -> Signed:
        """Send a SIGN, and return its signature."""
        found = await self.ask(data)
        assert found.type is Type.SIGNED, wire.read_error(found.body)
        return read_signed(found.body)

    async def refused(self, data: bytes) -> wire.Refusal:
        """Send a request, and return its error."""
        found = await self.ask(data)
        assert found.type is Type.ERROR, found
        return wire.read_error(found.body)

    async def ends(self) -> bytes:
        """Read to the end; returns what came."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            return


@dataclass
class Site:
    """A gateway that listens."""

    path: str
    served: RunningGateway
    addresses: list[str]

    @property
    def server(self) -> GatewayServer:
        """Its face."""
        return self.served.server

    @property
    def manager(self) -> hsmcore.KeyManager:
        """The only key manager, or the first."""
        return next(iter(self.served.managers.values()))

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Peer]:
        """A connection that has said nothing."""
        peer = Peer(*await asyncio.open_unix_connection(self.path))
        try:
            yield peer
        finally:
            await peer.close()

    @asynccontextmanager
    async def peer(self, nonce: bytes | None = None) -> AsyncIterator[Peer]:
        """A connection after HELLO."""
        async with self.connection() as peer:
            await peer.hello(nonce)
            yield peer

    @asynccontextmanager
    async def over_tls(self, context: SSLContext) -> AsyncIterator[Peer]:
        """A connection over TLS that has said nothing."""
        [where] = [one for one in self.addresses if one.startswith("tls:")]
        peer = Peer(*await asyncio.open_connection("127.0.0.1", int(where.rsplit(":", 1)[1]), ssl=context))
        try:
            yield peer
        finally:
            await peer.close()


def document(config: Mapping[str, Any], folder: Path, clients: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """A configuration with the block `gateway`, which listens at sign.sock in the folder."""
    rules = config.get("sequencer", config)
    return {**rules, "gateway": {"listen": [f"unix:{folder}/sign.sock"], "clients": clients or ME, **more}}


@asynccontextmanager
async def site(
    config: Mapping[str, Any], folder: Path, clients: Mapping[str, Any] | None = None, **more: Any
) -> AsyncIterator[Site]:
    """A gateway in front of the key managers of a configuration. `more`: of its block `gateway`."""
    configs = load_each(document(config, folder, clients, **more))
    async with running(configs, settings_of(configs)) as served:
        yield Site(f"{folder}/sign.sock", served, served.addresses)


def refusals(log: Path) -> list[dict[str, Any]]:
    """What the gateway refused, as the audit log has it."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [one for one in records if one["operation"] == "gateway-refused"]


def bad_frames() -> dict[str, bytes]:
    """What breaks the protocol after HELLO, by what it is."""
    head = struct.Struct("<IBBHQ")
    return {
        "garbage": os.urandom(4) + b"\xff" * 60,
        "an unknown type": head.pack(12, 77, 0, 0, 1),
        "a type of the gateway": head.pack(12, Type.SIGNED, 0, 0, 1),
        "an unknown flag": head.pack(12 + 17 + 1, Type.SIGN, 0x80, 0, 1) + bytes(18),
        "a frame that is too long": head.pack((1 << 20) + 1, Type.SIGN, 0, 0, 1),
        "a frame that is too short": head.pack(11, Type.PING, 0, 0, 1),
        "fields behind the body": frame(Type.CANCEL, 1, b"x"),
        "a request without a number": sign(0, b"m"),
        "a second HELLO": wire.hello(bytes(16), "again"),
    }
