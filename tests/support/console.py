"""A signer with its console, in a thread of its own: two SoftHSM members with one key, failover, rotation, audit."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.support.levels import SAME, Site
from tests.support.softhsm import Token

import hsmcore
import hsmcore.serve
from hsmcore.serve.attach import settings_of
from hsmcore.serve.source import ManagerSource

T = TypeVar("T")


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

    def in_server(self, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Do `work(monitor)` in the server's event loop."""
        found = self.served.monitor
        assert found is not None
        return asyncio.run_coroutine_threadsafe(work(found), found.loop).result(300)

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
