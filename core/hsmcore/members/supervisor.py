"""Supervision of a member's workers: quarantine in this process, kill and restart of a host process.

Nothing here blocks the event loop. The native core finds calls that overrun; this file decides what follows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hsmcore.base.log import tell
from hsmcore.base.scope import Scope
from hsmcore.errors import HsmError, LoginError

if TYPE_CHECKING:
    from hsmcore._native import Engine

T = TypeVar("T")

HOST_PROGRAM = Path(__file__).parents[1] / "_bin" / "hsmcore-host"

SUPERVISE_SECONDS = 0.1
"""Interval of checks, in seconds, while workers are stuck and for WATCH_SECONDS after a deadline has passed."""
WATCH_SECONDS = 2.5
"""Longer than the native core's patience with the calls of any module."""
HEARTBEAT_SECONDS = 0.25
"""Interval of checks of workers with requests in flight, deadlines or not."""
QUIET_BEATS = 8
"""After so many of them in a row without a request, the interval is QUIET_SECONDS."""
QUIET_SECONDS = 1.0
RESTARTS_AT_ONCE = 5
"""Restarts within WINDOW_SECONDS that begin immediately; each later one waits twice as long as the one before."""
WINDOW_SECONDS = 10.0
START_SECONDS = 0.2
"""Seconds that a restart takes apart from calls of the module."""
PAUSE_FIRST_SECONDS = 0.05
PAUSE_MAX_SECONDS = 2.0

LOGIN_SECONDS = 2.0
"""Interval of looks whether a refused login may be tried again: with another PIN, or by an operator's order."""
LOGIN_AWS_SECONDS = 60.0
"""The same of a PIN that is in AWS Secrets Manager."""


class Supervised(Protocol):
    """The member, as its supervisor uses it."""

    name: str
    engine: Engine
    login_seconds: float
    """The interval of `may_log_in`."""

    async def run(self, work: Callable[[], T]) -> T:
        """Make a blocking call in the member's thread."""

    def restart_host(self) -> str | None:
        """As Engine.restart_host, with the present PIN. Blocks."""

    def may_log_in(self) -> bool:
        """After a refused login: whether another one may be tried. Blocks."""


class Supervisor:
    """Keeps one engine working. Belongs to the event loop.

    In this process a stuck worker is replaced while there is room;
    when all workers are stuck, the member is down until one returns. A host process is killed when half of its workers
    are stuck, and restarted whenever it has ended. If it hung, the member is down while the restart takes much longer
    than `patience`, the seconds after which a call counts as hanging.
    """

    def __init__(self, member: Supervised, sessions: int, patience: float) -> None:
        self._member = member
        self._engine = member.engine
        self._name = member.name
        self._sessions = sessions
        self._patience = patience
        self._hung = False
        self._loop = asyncio.get_running_loop()
        self._supervising: asyncio.TimerHandle | None = None
        self._watch_until = 0.0
        self._stuck = 0
        self._down = False
        self._watched = -1
        self._quiet = 0
        """Beats in a row without a request in flight."""
        self._scope = Scope()
        self._restarting: asyncio.Task[None] | None = None
        self._attempts: deque[float] = deque()
        self.restarts = 0
        self.refusal: HsmError | None = None
        """The error of a refused login, while the host process is not restarted for it."""
        self.refused: Callable[[HsmError], None] = lambda _error: None
        """Called with that error, in the event loop."""
        self.lost: Callable[[], None] = lambda: None
        """Called in the event loop whenever the host process has ended, before its restart."""
        self.renewed: Callable[[], None] = lambda: None
        """Called in the event loop when the host process runs again after a refused login."""

    def begin(self) -> None:
        """Attach the engine to the loop and start watching it."""
        self._engine.attach(self._loop, self._overdue)
        self._scope.every(HEARTBEAT_SECONDS, self._beat, f"the workers of {self._name} were not checked")
        self._watch_host()

    async def end(self) -> None:
        """Stop watching. Cancels a restart and waits for its end."""
        if self._supervising is not None:
            self._supervising.cancel()
            self._supervising = None
        self._unwatch_host()
        await self._scope.close()

    def _overdue(self) -> None:
        """Handle a request past its deadline. Whether its call hangs may show only later."""
        self._watch_until = self._loop.time() + WATCH_SECONDS
        self._look()

    async def _beat(self) -> float | None:
        """Check workers with requests in flight, before the first deadline: a host process may be stopped (SIGSTOP),
        and the module may have ended the threads of workers."""
        if not self._engine.in_flight:
            self._quiet += 1
        elif self._supervising is None:
            self._quiet = 0
            self._look()
        return QUIET_SECONDS if self._quiet > QUIET_BEATS else None

    def _look(self) -> None:
        if self._supervising is not None:
            self._supervising.cancel()
            self._supervising = None
        if self._restarting is not None:
            return
        stuck, before = 1, self._stuck
        try:
            stuck, healthy = self._engine.supervise()
            self._stuck = stuck
            kills, pid = self._engine.host_pid and stuck * 2 >= self._sessions, self._engine.host_pid
            if kills:
                self._hung = True
                self._engine.kill_host()
            else:
                self._set_down(stuck > 0 and healthy == 0)  # those that the module has ended are replaced at once
        finally:  # whatever was raised above, it is looked at again
            if stuck or self._loop.time() < self._watch_until:
                self._supervising = self._loop.call_later(SUPERVISE_SECONDS, self._look)
        if stuck > before:
            self._say("warning", "calls hang", stuck=stuck, healthy=healthy)
        if kills:
            self._say("error", "host process killed: it hangs", pid=pid)

    def _set_down(self, down: bool, status: str | None = None) -> None:
        """`status`: that of the requests which are refused while the member is down."""
        was, self._down = self._down, down
        self._engine.set_down(down, status)
        if down and not was:
            self._say("error", "member down: nothing can be signed there for now")

    def _say(self, level: str, event: str, **details: Any) -> None:
        """Log, after what the line is about was done."""
        tell(level, event, member=self._name, **details)

    def _watch_host(self) -> None:
        if self._engine.host_fd >= 0:
            self._watched = self._engine.host_fd
            self._loop.add_reader(self._watched, self._host_ended)

    def _unwatch_host(self) -> None:
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            self._watched = -1

    def _host_ended(self) -> None:
        replayed = 0
        try:
            self._unwatch_host()
            replayed = self._engine.recover()
            self.lost()
        finally:  # whatever was raised above, it is started again
            self._restarting = self._scope.start(self._restart())
        self._say("error", "host process ended; starting it again", replayed=replayed)

    def _pause(self) -> float:
        """Return the seconds that the next restart has to wait."""
        now = self._loop.time()
        while self._attempts and self._attempts[0] < now - WINDOW_SECONDS:
            self._attempts.popleft()
        self._attempts.append(now)
        surplus = len(self._attempts) - RESTARTS_AT_ONCE
        return 0.0 if surplus <= 0 else min(PAUSE_FIRST_SECONDS * 2.0 ** (surplus - 1), PAUSE_MAX_SECONDS)

    async def _restart(self) -> None:
        # A host that has run is about to run again: requests wait for it, within their deadlines.
        await asyncio.sleep(self._pause())
        # The module that hung may hang in its start too. A start after a crash may take its time.
        hanging = self._loop.call_later(self._patience + START_SECONDS, self._set_down, True) if self._hung else None
        try:
            while not await self._start_again(hanging):
                if pause := self._pause():
                    self._set_down(True, None if self.refusal is None else self.refusal.status)
                    await asyncio.sleep(pause)
        finally:
            if hanging is not None:
                hanging.cancel()
        refused, self.refusal = self.refusal, None
        self.restarts += 1
        self._restarting = None
        self._hung = False
        self._stuck = 0
        self._set_down(False)
        self._watch_host()
        if refused is not None:
            self.renewed()

    async def _start_again(self, hanging: asyncio.TimerHandle | None) -> bool:
        """Try once to start the host process; return whether it runs. After a refused login, wait until another one may
        be tried."""
        try:
            missing = await self._member.run(self._member.restart_host)
        except Exception as error:  # noqa: BLE001  # none ends the restarts
            # Workers of the failed attempt may have begun requests.
            self._engine.recover()
            if isinstance(error, LoginError):
                if hanging is not None:
                    hanging.cancel()
                await self._until_login(error)
            else:
                self._say("error", "host process does not start", error=str(error) or type(error).__name__)
            return False
        if missing is not None:
            self._say("error", "host process started without a key", error=missing)
        return True

    async def _until_login(self, error: LoginError) -> None:
        self.refusal = error.with_traceback(None)
        self._set_down(True, error.status)
        self._engine.move(error.status)  # those that waited for the restart
        self.refused(error)
        self._say("error", "member down: the login was refused, and is not tried again with this PIN", error=str(error))
        while not await self._member.run(self._member.may_log_in):  # noqa: ASYNC110  # nothing tells of a file's change
            await asyncio.sleep(self._member.login_seconds)
