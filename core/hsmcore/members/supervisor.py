"""Supervision of a member's workers: quarantine in this process, kill and restart of a host process.

Nothing here blocks the event loop. The native core finds calls that overrun; this file decides what follows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hsmcore.errors import HsmError
from hsmcore.log import get_logger

if TYPE_CHECKING:
    from hsmcore._native import Engine

HOST_PROGRAM = Path(__file__).parents[1] / "_bin" / "hsmcore-host"

SUPERVISE_SECONDS = 0.1
"""Interval of checks, in seconds, while workers are stuck and for WATCH_SECONDS after a deadline has passed."""
WATCH_SECONDS = 2.5
"""Longer than the native core's patience with the calls of any module."""
HEARTBEAT_SECONDS = 0.25
"""Interval of checks of a host process with requests in flight, deadlines or not."""
RESTARTS_AT_ONCE = 5
"""Restarts within WINDOW_SECONDS that begin immediately; each later one waits twice as long as the one before."""
WINDOW_SECONDS = 10.0
START_SECONDS = 0.2
"""What a restart takes beside calls of the module."""
PAUSE_FIRST_SECONDS = 0.05
PAUSE_MAX_SECONDS = 2.0

Blocking = Callable[[Callable[[], str | None]], Awaitable[str | None]]


class Supervisor:
    """Keeps one engine working. Belongs to the event loop.

    `run` runs a blocking call in the member's thread. In this process a stuck worker is replaced while there is room;
    when all workers are stuck, the member is down until one returns. A host process is killed when half of its workers
    are stuck, and restarted whenever it has ended. If it hung, the member is down while the restart takes much longer
    than `patience`, the seconds after which a call counts as hanging.
    """

    def __init__(self, engine: Engine, name: str, sessions: int, run: Blocking, patience: float) -> None:
        self._engine = engine
        self._name = name
        self._sessions = sessions
        self._run = run
        self._patience = patience
        self._hung = False
        self._loop = asyncio.get_running_loop()
        self._supervising: asyncio.TimerHandle | None = None
        self._watch_until = 0.0
        self._stuck = 0
        self._down = False
        self._heartbeat: asyncio.TimerHandle | None = None
        self._watched = -1
        self._restarting: asyncio.Task[None] | None = None
        self._attempts: deque[float] = deque()
        self.restarts = 0
        self.refusal: HsmError | None = None
        """The error of the refused login, after which the host process is not restarted."""
        self.refused: Callable[[HsmError], None] = lambda _error: None
        """Called with that error, in the event loop."""
        self.lost: Callable[[], None] = lambda: None
        """Called in the event loop whenever the host process has ended, before its restart."""

    def begin(self) -> None:
        """Attach the engine to the loop and start watching it."""
        self._engine.attach(self._loop, self._overdue)
        if self._engine.host_fd >= 0:
            self._beat()
        self._watch_host()

    async def end(self) -> None:
        """Stop watching. Cancels a restart and waits for its end."""
        for timer in (self._supervising, self._heartbeat):
            if timer is not None:
                timer.cancel()
        self._supervising = self._heartbeat = None
        self._unwatch_host()
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.gather(self._restarting, return_exceptions=True)

    def _overdue(self) -> None:
        """Handle a request past its deadline. Whether its call hangs may show only later."""
        self._watch_until = self._loop.time() + WATCH_SECONDS
        self._look()

    def _beat(self) -> None:
        """Check a host process with requests in flight: it may be stopped (SIGSTOP) before their first deadline."""
        self._heartbeat = self._loop.call_later(HEARTBEAT_SECONDS, self._beat)
        if self._engine.in_flight and self._supervising is None:
            self._look()

    def _look(self) -> None:
        if self._supervising is not None:
            self._supervising.cancel()
            self._supervising = None
        if self._restarting is not None:
            return
        stuck, healthy = self._engine.supervise()
        if stuck > self._stuck:
            get_logger().warning("calls hang", member=self._name, stuck=stuck, healthy=healthy)
        self._stuck = stuck
        if self._engine.host_pid and stuck * 2 >= self._sessions:
            get_logger().error("host process killed: it hangs", member=self._name, pid=self._engine.host_pid)
            self._hung = True
            self._engine.kill_host()
        else:
            self._set_down(healthy == 0)
        if stuck or self._loop.time() < self._watch_until:
            self._supervising = self._loop.call_later(SUPERVISE_SECONDS, self._look)

    def _set_down(self, down: bool) -> None:
        if down and not self._down:
            get_logger().error("member down: nothing can be signed there for now", member=self._name)
        self._down = down
        self._engine.set_down(down)

    def _watch_host(self) -> None:
        if self._engine.host_fd >= 0:
            self._watched = self._engine.host_fd
            self._loop.add_reader(self._watched, self._host_ended)

    def _unwatch_host(self) -> None:
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            self._watched = -1

    def _host_ended(self) -> None:
        self._unwatch_host()
        replayed = self._engine.recover()
        self.lost()
        get_logger().error("host process ended; starting it again", member=self._name, replayed=replayed)
        self._restarting = self._loop.create_task(self._restart())

    def _pause(self) -> float:
        """Return the seconds that the next restart has to wait."""
        now = self._loop.time()
        while self._attempts and self._attempts[0] < now - WINDOW_SECONDS:
            self._attempts.popleft()
        self._attempts.append(now)
        surplus = len(self._attempts) - RESTARTS_AT_ONCE
        return 0.0 if surplus <= 0 else min(PAUSE_FIRST_SECONDS * 2.0 ** (surplus - 1), PAUSE_MAX_SECONDS)

    async def _restart(self) -> None:
        # The module that hung may hang in its start too. A start after a crash may take its time.
        hanging = self._loop.call_later(self._patience + START_SECONDS, self._set_down, True) if self._hung else None
        try:
            started = await self._start_again()
        finally:
            if hanging is not None:
                hanging.cancel()
        if started:
            self.restarts += 1
            self._restarting = None
            self._hung = False
            self._stuck = 0
            self._set_down(False)
            self._watch_host()

    async def _start_again(self) -> bool:
        """Start the host process until it runs. Returns False if its login was refused."""
        while True:
            pause = self._pause()
            if pause:
                self._set_down(True)
                await asyncio.sleep(pause)
            try:
                missing = await self._run(self._engine.restart_host)
            except HsmError as error:
                # Workers of the failed attempt may have begun requests.
                self._engine.recover()
                get_logger().error("host process does not start", member=self._name, error=str(error))
                if error.error_class == "AUTH_FATAL":
                    self._set_down(True)
                    get_logger().error("member down for good: the login was refused", member=self._name)
                    self.refusal = error.with_traceback(None)
                    self.refused(error)
                    return False
            else:
                if missing is not None:
                    get_logger().error("host process started without a key", member=self._name, error=missing)
                return True
