"""The server's process: it speaks with clients, and holds no key manager, PIN or token. What it shows it asks the
process that started it for (site.py)."""

from __future__ import annotations

import asyncio
import io
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hsmcore.audit.layout import Layout
from hsmcore.base.listening.http import HttpServer
from hsmcore.base.scope import Scope
from hsmcore.errors import HsmError
from hsmcore.members.control.answers import respond
from hsmcore.members.control.wire import unpack
from hsmcore.serve.access import Access, HeldTokens
from hsmcore.serve.app import Console
from hsmcore.serve.monitor import Monitor
from hsmcore.serve.questions import Questions
from hsmcore.serve.witness import LogWitness
from hsmcore.tlog.note import VerifierKey


@dataclass(frozen=True, slots=True)
class SiteWitness:
    """A configuration's MonitoringWitness."""

    folder: str
    name: str
    logs: Sequence[str]

    def made(self) -> LogWitness:
        """Return the witness. Raises as LogWitness, NoteError."""
        return LogWitness(Path(self.folder), self.name, [VerifierKey.parse(log) for log in self.logs])


@dataclass(frozen=True, slots=True)
class SiteOpening:
    """What the server needs to begin. `socket`: the descriptor of a bound one. `nudge`: see Questions.heed. `hosts`:
    see Console. `log`: the audit log's file. `beside`: see Source."""

    socket: int
    nudge: int
    certificate: str | None
    private_key: str | None
    tokens: HeldTokens
    hosts: Sequence[str] | None
    log: str | None
    beside: bool
    version: str
    witness: SiteWitness | None
    public: str | None
    """The folder of the public logs."""


class ConsoleServer:
    """The server, in the event loop that makes it. `ends`: see Questions."""

    def __init__(self, ends: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._scope = Scope()
        self.questions = Questions(ends)
        self.console: Console
        self.monitor: Monitor

    def work(self, call: str, arguments: Any, _secrets: list[bytearray]) -> Any:
        """Begin, or exchange answers for questions. For the thread that reads the requests. Raises HsmError."""
        if call == "begin":
            return asyncio.run_coroutine_threadsafe(self._begin(unpack(SiteOpening, arguments)), self._loop).result()
        if not self._scope.is_open:
            raise HsmError("it serves no more", status="SYSTEM")
        return self.questions.exchange(**arguments)

    async def _begin(self, opening: SiteOpening) -> None:
        layout = None if opening.log is None else Layout(opening.log)
        self.monitor = Monitor(self.questions, opening.version, layout, beside=opening.beside)
        hosts = None if opening.hosts is None else frozenset(opening.hosts)
        witness = None if opening.witness is None else opening.witness.made()
        self.console = Console(self.monitor, Access(opening.tokens), hosts, witness, opening.public)
        tls, ready = tls_of(opening.certificate, opening.private_key), asyncio.Event()
        self._server = HttpServer(self.console.app(), [socket.socket(fileno=opening.socket)], tls, ready.set)
        self.questions.heed(opening.nudge)
        self.monitor.begin()
        serving = self._scope.start(self._server.serve())
        serving.add_done_callback(lambda _: ready.set())
        await ready.wait()
        if serving.done():
            serving.result()

    async def close(self) -> None:
        """End: pending answers are sent, streams end."""
        if self._scope.is_open:
            self.questions.end()
            self.monitor.feed.end()
            self._server.end()
            await self._scope.finish()
            await self.monitor.close()
        await self.questions.scope.close()


def tls_of(certificate: str | None, private_key: str | None) -> Callable[[], ssl.SSLContext] | None:
    """Return what gives the context of a connection. Raises OSError, ssl.SSLError."""
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A passphrase would be asked for at the terminal; there is none to ask.
    context.load_cert_chain(certificate, private_key, password=lambda: "")
    return lambda: context


def serve(requests: io.FileIO, answers: IO[bytes]) -> None:
    """Run the server for the process that `requests` come from."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a service manager sends them to all: the other process closes this one
    asyncio.run(_serve(requests, answers))


async def _serve(requests: io.FileIO, answers: IO[bytes]) -> None:
    server = ConsoleServer(requests.fileno())
    try:
        await asyncio.to_thread(respond, requests, answers, server.work)
    finally:
        await server.close()
