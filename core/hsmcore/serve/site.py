"""The server's process, seen from the one that it shows: start, answers to its questions, and its end."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from hsmcore.base.listening.certificates import require_readable
from hsmcore.base.listening.door import BACKLOG
from hsmcore.base.listening.sockets import hint_for, host_and_port, tcp, unix
from hsmcore.base.log import get_logger, said
from hsmcore.base.scope import Scope
from hsmcore.config import Monitoring
from hsmcore.errors import AuditUnavailable, ConfigFault, ConfigurationError, HsmError
from hsmcore.members.control.process import Child, ChildLost, child_environment
from hsmcore.members.control.wire import pack, unpack
from hsmcore.serve import child as server
from hsmcore.serve.access import Access, HeldTokens
from hsmcore.serve.answers import Answers
from hsmcore.serve.questions import MOST
from hsmcore.serve.source import Source
from hsmcore.tlog.note import NoteError

TURN_SECONDS: Final = 0.05
"""The server is asked for its questions no more often than this, whatever its clients do."""
QUIET_SECONDS: Final = 5.0
"""How long it may wait for a question or a nudge."""
START_SECONDS: Final = 30.0
LOST_SECONDS: Final = 10.0
"""A server that does not answer for so long is killed, and started again."""
PAUSE_SECONDS: Final = 1.0
"""From the end of a server that was not told to end to the start of the next. Clients wait in the socket's queue."""
_MOST_EVENTS: Final = 256
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class Site:
    """One server. `start` and `close` block for a moment: not for event loops; see `attached`."""

    def __init__(self, source: Source, settings: Monitoring, version: str) -> None:
        """Fetch tokens, read the certificate, and bind the address, so that faults show before anything runs. Raises
        ConfigurationError."""
        self._source, self._settings = source, settings
        tokens = HeldTokens.of(settings)
        self._access = Access(tokens)
        _require_tls(settings)
        self._socket = _bound(settings)
        self.address = _shown(settings, self._socket)
        """The address: "http://127.0.0.1:9464", or "unix:/path"."""
        publish = source.config.key_manager.publish
        where, files, log = settings.address, settings.tls, source.config.key_manager.audit_log_file
        witness = _witness(settings)
        self._nudge = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._opening = server.SiteOpening(
            socket=self._socket.fileno(),
            nudge=self._nudge,
            certificate=None if files is None else files.certificate_file,
            private_key=None if files is None else files.key_file,
            tokens=tokens,
            hosts=[*_LOOPBACK, where.host, *settings.hosts] if where.local and not where.path else None,
            log=None if log is None else str(log),
            beside=source.beside,
            version=version,
            witness=witness,
            public=None if publish is None else publish.folder,
        )
        self._environment = child_environment(source.config.secret_variables, frozenset())
        self._events: deque[dict[str, Any]] = deque(maxlen=_MOST_EVENTS)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hsmcore-serve", daemon=True)
        self._stop: Callable[[], object] = lambda: None
        self._wake: Callable[[], object] = lambda: None
        self._closed = False
        self._failure: Exception | None = None

    def start(self) -> None:
        """Start the server's process and return when it listens. Raises HsmError if it cannot."""
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
        os.close(self._nudge)
        path = self._settings.address.path
        if path:
            with suppress(OSError):
                Path(path).unlink()

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._keep())
        except Exception as error:  # noqa: BLE001  # the thread's last word
            self._failure = error
            get_logger().exception("the console's server ended")
        finally:
            self._ready.set()

    async def _keep(self) -> None:
        """Keep a server running."""
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        nudge = partial(os.eventfd_write, self._nudge, 1)
        self._wake = partial(loop.call_soon_threadsafe, nudge)

        def stop() -> None:
            stopping.set()
            nudge()

        self._stop = partial(loop.call_soon_threadsafe, stop)
        answers = Answers(self._source, self._access)
        end = self._source.listen(self._told)
        thread = ThreadPoolExecutor(1, "hsmcore-console")
        try:
            while not stopping.is_set():
                try:
                    await self._converse(answers, stopping, partial(loop.run_in_executor, thread))
                except Exception as error:
                    if not self._ready.is_set():
                        raise
                    get_logger().error("the console's server ended, and is started again", error=str(error))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(PAUSE_SECONDS):
                            await stopping.wait()
        finally:
            end()
            thread.shutdown()
            await answers.close()

    async def _converse(
        self, answers: Answers, stopping: asyncio.Event, in_thread: Callable[..., asyncio.Future[Any]]
    ) -> None:
        """Answer the questions of one server until it ends, or until `stopping` those that were asked before."""
        start = partial(Child, self._environment, main=server.__name__, descriptors=[self._opening.socket, self._nudge])
        child = await in_thread(start)
        pending: set[asyncio.Task[tuple[int, Any, str]]] = set()
        done: set[asyncio.Task[tuple[int, Any, str]]] = set()
        scope = Scope()

        async def answered(number: int, name: str, arguments: list[Any]) -> tuple[int, Any, str]:
            try:
                return number, *await answers.of(name, arguments)
            except Exception:  # noqa: BLE001  # whatever it is: logged here, and nothing of it goes out
                get_logger().exception("a question of the console's server failed", question=name[:20])
                return number, None, "see the log"

        try:
            opening = pack(server.SiteOpening, self._opening)
            await in_thread(child.call, "begin", opening, partial(unpack, type(None)), START_SECONDS)
            self._ready.set()
            while pending or done or not stopping.is_set():
                began = time.monotonic()
                events = [self._events.popleft() for _ in range(len(self._events))]
                told = {"answers": [task.result() for task in done], "events": events}
                told["seconds"] = 0.0 if pending else QUIET_SECONDS
                asked = await in_thread(child.call, "exchange", told, _questions, LOST_SECONDS)
                if len(pending) + len(asked) > MOST:
                    raise ChildLost("it asked too much and was killed")
                if not stopping.is_set():
                    pending |= {scope.start(answered(*question)) for question in asked}
                done = set()
                if pending:
                    done, pending = await asyncio.wait(
                        pending, timeout=TURN_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                await asyncio.sleep(began + TURN_SECONDS - time.monotonic())
        finally:
            await scope.close()
            await in_thread(child.close)

    def _told(self, event: str, details: Mapping[str, Any]) -> None:
        """Keep an event of the key manager for the server. Any thread."""
        shown = {name: value.hex() if isinstance(value, bytes) else value for name, value in details.items()}
        self._events.append({"monotonicNs": time.monotonic_ns(), "kind": event, **_plain(shown)})
        with suppress(RuntimeError):  # the thread's event loop is closed
            self._wake()


def _questions(asked: list[Any]) -> list[tuple[int, str, list[Any]]]:
    return [(int(number), str(name), list(arguments)) for number, name, arguments in asked]


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    """Keep only text, numbers and truth values: the result goes to a page."""
    return {name: value for name, value in details.items() if isinstance(value, str | int | float | bool)}


def _require_tls(settings: Monitoring) -> None:
    files = settings.tls
    if files is None:
        return
    try:
        require_readable(files.certificate_file, files.key_file)
        server.tls_of(files.certificate_file, files.key_file)
    except (OSError, ssl.SSLError) as error:
        problem = f"certificate and key cannot be used: {said(error)}"
        raise ConfigurationError.of([ConfigFault(files.where, problem)]) from None


def _witness(settings: Monitoring) -> server.SiteWitness | None:
    """Raises ConfigurationError here, where it can be said, for a witness that cannot begin."""
    if (wanted := settings.witness) is None:
        return None
    opening = server.SiteWitness(wanted.folder, wanted.name, list(wanted.logs))
    try:
        opening.made()
    except (OSError, NoteError, AuditUnavailable) as error:
        raise ConfigurationError.of([ConfigFault(wanted.where, f"the witness cannot begin: {said(error)}")]) from None
    return opening


def _bound(settings: Monitoring) -> socket.socket:
    address = settings.address
    try:
        bound = unix(address.path, 0o600) if address.path else tcp(address.host, address.port)
        bound.listen(BACKLOG)  # now: until the server runs, another program could take the address
    except OSError as error:
        problem = f"cannot listen at {settings.listen}: {error.strerror or error}"
        fault = ConfigFault(f"{settings.where}.listen", problem)
        raise ConfigurationError.of([fault], hint=hint_for(error)) from None
    return bound


def _shown(settings: Monitoring, bound: socket.socket) -> str:
    address = settings.address
    if address.path:
        return f"unix:{address.path}"
    scheme = "https" if settings.tls is not None else "http"
    return f"{scheme}://{host_and_port(address.host, bound)}"
