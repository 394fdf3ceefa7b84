"""The server's thread, with its own event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hsmcore.base.listening.certificates import require_readable
from hsmcore.base.listening.http import HttpServer
from hsmcore.base.listening.sockets import hint_for, host_and_port, tcp, unix
from hsmcore.base.log import get_logger, said
from hsmcore.config import Monitoring
from hsmcore.errors import ConfigFault, ConfigurationError, HsmError
from hsmcore.serve.access import Access
from hsmcore.serve.app import Console
from hsmcore.serve.monitor import Monitor
from hsmcore.serve.source import Source


class Site:
    """One server. `start` and `close` block for a moment: not for event loops; see `attached`."""

    def __init__(self, source: Source, settings: Monitoring, version: str) -> None:
        """Fetch tokens and certificate, and bind the address, so that faults show before anything runs. Raises
        ConfigurationError."""
        self._source, self._settings, self._version = source, settings, version
        self._access = Access(settings)
        self._tls = _tls(settings)
        self._socket = _bound(settings)
        self.address = _shown(settings, self._socket)
        """The address: "http://127.0.0.1:9464", or "unix:/path"."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hsmcore-serve", daemon=True)
        self._stop: Callable[[], None] = lambda: None
        self._closed = False
        self._failure: Exception | None = None
        self.monitor: Monitor | None = None
        """The running server's; for its own thread only."""

    def start(self) -> None:
        """Start the thread and return when it listens. Raises HsmError if it cannot."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise HsmError(f"the console's server did not start: {self._failure}", status="SYSTEM") from self._failure

    def close(self) -> None:
        """End: pending answers are sent, streams end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._thread.is_alive():
            self._stop()
            self._thread.join()
        self._socket.close()
        path = self._settings.address.path
        if path:
            with suppress(OSError):
                Path(path).unlink()

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._serve())
        except Exception as error:  # noqa: BLE001  # the thread's last word
            self._failure = error
            get_logger().exception("the console's server ended")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        monitor = self.monitor = Monitor(self._source, self._version)
        console = Console(monitor, self._access, self._settings)
        server = HttpServer(console.app(), [self._socket], self._tls, self._ready.set)

        def stop() -> None:
            monitor.feed.end()
            server.should_exit = True

        self._stop = lambda: _in(loop, stop)
        try:
            monitor.begin()
            await server.serve()
        finally:
            await monitor.close()


def _in(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(work)


def _tls(settings: Monitoring) -> Callable[[], ssl.SSLContext] | None:
    files = settings.tls
    if files is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A passphrase would be asked for at the terminal; there is none to ask.
        require_readable(files.certificate_file, files.key_file)
        context.load_cert_chain(files.certificate_file, files.key_file, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        problem = f"certificate and key cannot be used: {said(error)}"
        raise ConfigurationError.of([ConfigFault(files.where, problem)]) from None
    return lambda: context


def _bound(settings: Monitoring) -> socket.socket:
    address = settings.address
    try:
        return unix(address.path, 0o600) if address.path else tcp(address.host, address.port)
    except OSError as error:
        problem = f"cannot listen at {settings.listen}: {error.strerror or error}"
        fault = ConfigFault(f"{settings.where}.listen", problem)
        raise ConfigurationError.of([fault], hint=hint_for(error)) from None


def _shown(settings: Monitoring, bound: socket.socket) -> str:
    address = settings.address
    if address.path:
        return f"unix:{address.path}"
    scheme = "https" if settings.tls is not None else "http"
    return f"{scheme}://{host_and_port(address.host, bound)}"
