"""A front's process: begins with what the one that started it says (fronts.py), obeys its orders, and ends with it."""

from __future__ import annotations

import asyncio
import io
import signal
import socket
import ssl
from typing import IO, TYPE_CHECKING, Any, Final

import orjson
import uvloop

from hsmcore.base.scope import Scope
from hsmcore.errors import HsmError
from hsmcore.gateway.front.core import Core, KnownClients
from hsmcore.gateway.front.pumps import Pumps
from hsmcore.gateway.front.reports import TICK_SECONDS, FrontReports
from hsmcore.gateway.tls import Tls, TlsFiles

if TYPE_CHECKING:
    from hsmcore.gateway.vault.face import Face

CONFINED: Final = True
"""For members.control.started."""
_MOST_BYTES: Final = 1 << 26
"""Of an order: the list of 100,000 clients has some 30 MB."""


class FrontServer:
    """What a front serves. Belongs to one event loop."""

    def __init__(self, opening: dict[str, Any]) -> None:
        """`opening`: as fronts.FrontProcess gives it."""
        self._opening = opening
        self._reports = FrontReports(socket.socket(fileno=opening["reports"]))
        self._core = Core(self._reports)
        self._scope = Scope()
        self._tls: Tls | None = None
        self._pumps: Pumps | None = None
        self._face: Face | None = None

    async def begin(self) -> None:
        """Listen from now on. Raises HsmError, OSError."""
        files = TlsFiles(**self._opening["tls"])
        wire, listening = self._opening["face"] == "tls", [socket.socket(fileno=fd) for fd in self._opening["sockets"]]
        tls = self._tls = Tls(files, wire=wire)
        if wire:
            self._pumps = Pumps(self._core, listening, tls)
        else:
            from hsmcore.gateway.vault.face import Face  # it needs packages that the other face does not

            self._face = Face(self._core, listening, tls, self._opening["drainSeconds"])
            await self._face.start()
        self._scope.every(TICK_SECONDS, self._tick, "counts were not reported")
        self._reports.tell("ready")

    async def _tick(self) -> None:
        self._reports.tick()
        if self._pumps is not None:
            self._pumps.tick()

    def failed(self, error: Exception) -> None:
        """Say why it cannot begin."""
        self._reports.tell("failed", str(error)[:1000])

    def obey(self, order: str, said: Any) -> None:
        """Do what the process with the keys says."""
        if order == "clients":
            self._core.clients = KnownClients(*said)
            if self._tls is not None:
                self._tls.reread()
            if self._pumps is not None:
                self._pumps.reread()
            self._reports.tell("followed", self._core.clients.generation)
        elif order == "state":
            self._core.state = said
        elif order == "drain":
            self._scope.start(self._drain(), failed="a front did not drain")

    async def _drain(self) -> None:
        if self._pumps is not None:
            await self._pumps.stop_listening()
        if self._face is not None:
            await self._face.close()
        self._reports.tick()
        self._reports.tell("drained")

    async def close(self) -> None:
        """End."""
        if self._face is not None:
            await self._face.close(at_once=True)
        if self._pumps is not None:
            await self._pumps.close()
        await self._scope.close()


def serve(requests: io.FileIO, _answers: IO[bytes]) -> None:
    """Run a front for the process whose orders come from `requests`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # a service manager sends them to all: the other process ends this one
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(requests))


async def _serve(requests: io.FileIO) -> None:
    orders = asyncio.StreamReader(limit=_MOST_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), requests)
    front = FrontServer(orjson.loads(await orders.readline()))
    try:
        for _ in range(2):  # who the clients are, and how the keys are: before the first of them comes
            front.obey(*orjson.loads(await orders.readline()))
        await front.begin()
    except (HsmError, OSError, ssl.SSLError) as error:
        front.failed(error)
    while line := await orders.readline():
        front.obey(*orjson.loads(line))
    await front.close()
