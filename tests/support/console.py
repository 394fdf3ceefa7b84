"""A signer with its console, in a thread of its own: two SoftHSM members with one key, failover, rotation, audit. And a
console's server in the process of the test, which may then reach into it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import orjson
import pytest
from tests.support.levels import SAME, Site
from tests.support.softhsm import Token

import hsmcore
import hsmcore.serve
from hsmcore.serve.attach import settings_of
from hsmcore.serve.child import ConsoleServer
from hsmcore.serve.source import ManagerSource

T = TypeVar("T")


class _Here:
    """In the place of Child: the same calls and the same JSON, and the server in a thread of this process."""

    def __init__(self, _environment: Mapping[str, str], *, main: str, descriptors: Sequence[int]) -> None:
        assert main == ConsoleServer.__module__
        assert len(descriptors) == 2
        self._ends = os.pipe()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="console's server")
        self._thread.start()
        self.server = self._run(self._made())

    async def _made(self) -> ConsoleServer:
        return ConsoleServer(self._ends[0])

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, name: str, arguments: Any, read: Callable[[Any], T], _seconds: float) -> T:
        asked = orjson.loads(orjson.dumps(arguments))
        if name == "begin":
            asked["socket"] = os.dup(asked["socket"])  # as a child has a descriptor of its own
        return read(orjson.loads(orjson.dumps(self.server.work(name, asked, []))))

    def close(self) -> None:
        self._run(self.server.close())
        self._run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for each in self._ends:
            os.close(each)


def in_server(server: ConsoleServer, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Do `work(monitor)` in the server's event loop."""
    return asyncio.run_coroutine_threadsafe(work(server.monitor), server.monitor.loop).result(300)


def served_here(monkeypatch: pytest.MonkeyPatch) -> list[ConsoleServer]:
    """Have consoles run their servers in this process. Returns a list that each of them comes into."""
    servers: list[ConsoleServer] = []

    def start(*arguments: Any, **options: Any) -> _Here:
        made = _Here(*arguments, **options)
        servers.append(made.server)
        return made

    monkeypatch.setattr("hsmcore.serve.site.Child", start)
    return servers


class Scene:
    """Starts when it is entered. `site`: to fail and revive members by number."""

    def __init__(
        self, folder: Path, fresh_token: Callable[..., Token], *, callers: int = 2, pause: float = 0.01, **rules: Any
    ) -> None:
        self.folder, self._callers, self._pause = folder, callers, pause
        self.operator, self.viewer = secrets.token_hex(32), secrets.token_hex(32)
        for name in ("operator", "viewer"):
            (folder / name).write_text(getattr(self, name))
            (folder / name).chmod(0o600)
        self.site = Site(folder, fresh_token, SAME, SAME)
        failover = {"emergencyModeEnabled": True, "primaryRetryIntervalMs": 200, **rules.pop("failover", {})}
        self.config = self.site.config(
            failover=failover,
            **{
                "auditLogFile": str(folder / "audit.log"),
                "audit": {"checkpointEverySeconds": 1, "origin": "example.com/sequencer-1"},
                "keyRotation": {"intervalDays": 30},
                "monitoring": {"listen": "127.0.0.1:0", "operatorToken": {"file": str(folder / "operator")}},
                **rules,
            },
        )
        self.manager = hsmcore.create_key_manager(self.config)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="scene")
        self._error: BaseException | None = None
        self.loop: asyncio.AbstractEventLoop
        self.served: hsmcore.serve.Site

    @property
    def address(self) -> str:
        """Of the console."""
        return self.served.address

    @property
    def log(self) -> Path:
        """The audit log's newest lines."""
        return self.folder / "audit.log"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def run(self, work: Coroutine[Any, Any, T], seconds: float = 30.0) -> T:
        """Do something in the signer's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def end_server(self) -> None:
        """The signer signs on."""
        self.served.close()

    def begin_server(self) -> None:
        """At the same address as before."""
        settings = settings_of(self.manager.config, self.address.removeprefix("http://"))
        self.served = hsmcore.serve.Site(ManagerSource(self.manager, self.loop), settings, "0")
        self.served.start()

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # raised in the test's own thread
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self.manager, hsmcore.serve.attached(self.manager) as self.served:
            callers = [asyncio.ensure_future(self._caller(number)) for number in range(self._callers)]
            self._ready.set()
            await self._stop.wait()
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            await asyncio.to_thread(self.served.close)

    async def _caller(self, number: int) -> None:
        count = 0
        while True:
            count += 1
            with contextlib.suppress(hsmcore.HsmError):
                await self.manager.sign(f"caller {number} message {count}".encode(), 5.0)
            await asyncio.sleep(self._pause)
