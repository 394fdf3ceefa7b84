"""Vault's face of a gateway for tests: key managers behind HTTPS on a free port, and clients for it."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message
from tests.support.authority import Authority, Issued
from tests.support.web import Reply

import hsmcore
from hsmcore.base.listening.rates import AddressBuckets
from hsmcore.config.loading import load_each
from hsmcore.gateway.front.core import Core, KnownClients
from hsmcore.gateway.front.pumps import Pumps
from hsmcore.gateway.front.reports import FrontReports
from hsmcore.gateway.fronts import state_of
from hsmcore.gateway.gateway import RunningGateway, running, settings_of
from hsmcore.gateway.tls import Tls
from hsmcore.gateway.vault.face import Face

TOKEN = secrets.token_hex(20)
"""Of the client "app" where a test names no clients of its own."""


def b64(data: bytes) -> str:
    """Base64 as text."""
    return base64.b64encode(data).decode()


@dataclass
class Site:
    """A face that listens. `where`: host and port."""

    where: tuple[str, int]
    served: RunningGateway
    authority: Authority

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"https://{self.where[0]}:{self.where[1]}"

    @property
    def manager(self) -> hsmcore.KeyManager:
        """The only key manager, or the first."""
        return next(iter(self.served.managers.values()))

    def trusting(self, issued: Issued | None = None) -> ssl.SSLContext:
        """A client's context. `issued`: its certificate."""
        context = ssl.create_default_context(cafile=self.authority.file)
        if issued is not None:
            context.load_cert_chain(issued.certificate, issued.key)
        return context

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = TOKEN,
        headers: Mapping[str, str] | None = None,
        issued: Issued | None = None,
    ) -> Reply:
        """One request on a connection of its own. Blocks. `body`: bytes, or what becomes JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        link = http.client.HTTPSConnection(*self.where, timeout=20, context=self.trusting(issued))
        try:
            link.request(method, path, data, {**({"X-Vault-Token": token} if token else {}), **(headers or {})})
            answer = link.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            link.close()

    async def asked(self, method: str, path: str, body: object = None, **options: Any) -> Reply:
        """The same from a coroutine."""
        return await asyncio.to_thread(self.ask, method, path, body, **options)

    async def data(self, method: str, path: str, body: object = None, **options: Any) -> Any:
        """The `data` of a good answer."""
        reply = await self.asked(method, path, body, **options)
        assert reply.status == 200, reply.body
        return reply.json()["data"]

    async def refused(self, status: int, method: str, path: str, body: object = None, **options: Any) -> str:
        """The text of a refusal in Vault's form."""
        reply = await self.asked(method, path, body, **options)
        assert reply.status == status, (reply.status, reply.body)
        assert reply.headers["content-type"] == "application/json"
        [text] = reply.json()["errors"]
        assert reply.json() == {"errors": [text]}
        return str(text)


def gateway(authority: Authority, clients: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """The block `gateway` of a configuration, with a certificate for 127.0.0.1."""
    issued = authority.issue("gateway", ips=["127.0.0.1"])
    return {
        "listen": ["https:127.0.0.1:0"],
        "tls": {"certificateFile": issued.certificate, "keyFile": issued.key, "clientCaFile": authority.file},
        "clients": clients or {"app": {"token": TOKEN, "keys": ["default"]}},
        **more,
    }


@asynccontextmanager
async def site(
    config: dict[str, Any], folder: Path, clients: Mapping[str, Any] | None = None, **more: Any
) -> AsyncIterator[Site]:
    """A face in front of the key managers of a configuration. `more`: of its block `gateway`."""
    authority = Authority(folder)
    document = {**config["sequencer"], "gateway": gateway(authority, clients, **more)}
    configs = load_each(document)
    async with running(configs, settings_of(configs)) as served:
        [address] = served.addresses
        face, host, *port = address.split(":")
        yield Site((host, int(port[0]) if face == "https" else 0), served, authority)


class NearCore(Core):
    """What a front knows, in the process of the key managers: for tests that look into a face, or change it."""

    def __init__(self, served: RunningGateway) -> None:
        line, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(FrontReports(line))
        self._line, self._server = line, served.server
        told = served.server.desk.directory.told()
        self.clients = KnownClients(1, json.loads(json.dumps(told)))
        self.state = state_of(served.managers)
        assert served.settings.tls is not None
        self.tls = Tls(served.settings.tls, wire=False)

    def connection(self, face: str, client: str, peer: str, _number: int = 0) -> socket.socket:
        own, theirs = socket.socketpair()
        own.setblocking(False)
        self._server.admit(theirs, self._server.desk.directory.clients[client], peer, vault=face == "vault")
        return own

    def told(self) -> list[Any]:
        """What the process with the keys would have heard."""
        found = []
        self._far.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                found.append(json.loads(self._far.recv(1 << 16)))
        return found

    def close(self) -> None:
        self._line.close()
        self._far.close()


@contextmanager
def near(served: RunningGateway) -> Iterator[NearCore]:
    """Such a front's knowledge."""
    core = NearCore(served)
    try:
        yield core
    finally:
        core.close()


@asynccontextmanager
async def near_site(
    config: dict[str, Any],
    folder: Path,
    clients: Mapping[str, Any] | None = None,
    handshakes: AddressBuckets | None = None,
    **more: Any,
) -> AsyncIterator[tuple[Site, NearCore]]:
    """As `site`, with Vault's face in this process, so that a test can change its limits."""
    async with site(config, folder, clients, listen=[f"unix:{folder}/sign.sock"], **more) as vault:
        with near(vault.served) as core, socket.create_server(("127.0.0.1", 0)) as bound:
            core.handshakes = handshakes or core.handshakes
            face = Face(core, [bound], core.tls, drain_seconds=10)
            await face.start()
            vault.where = bound.getsockname()
            try:
                yield vault, core
            finally:
                await face.close()


@asynccontextmanager
async def near_pumps(served: RunningGateway, handshakes: AddressBuckets) -> AsyncIterator[tuple[int, NearCore]]:
    """hsmcore-wire over TLS with a front's part in this process, so that a test can change its limits: the port."""
    with near(served) as core, socket.create_server(("127.0.0.1", 0)) as bound:
        settings = served.settings.tls
        assert settings is not None
        core.handshakes = handshakes
        pumps = Pumps(core, [bound], Tls(settings, wire=True))
        try:
            yield bound.getsockname()[1], core
        finally:
            await pumps.close()


async def called(app: ASGIApp, path: str, body: bytes) -> tuple[int, Any]:
    """POST to the application without a server, as the client "app". Returns the status and what the body says."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "https",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "state": {}, "client": None,
        "headers": [(b"x-vault-token", TOKEN.encode())],
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])
