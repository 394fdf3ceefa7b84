"""Several processes in one loop: each may stand still, or die as of kill -9, while the others go on.

What a process has begun belongs to it: its tasks, its timers, and the events of the world that they cause. A context
variable says whose it is.
"""

from __future__ import annotations

from asyncio import all_tasks
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, Final

from tests.simulation.chance import Chance
from tests.simulation.clock import Clock
from tests.simulation.loop import Loop, Task


class Process:
    """One life of a host."""

    def __init__(self, host: str, number: int) -> None:
        self.host, self.number = host, number
        self.alive, self.still = True, False
        self.held: list[Callable[[], object]] = []
        """What is to happen when it goes on."""
        self.ends: list[Callable[[], object]] = []
        """What the system does when it dies."""
        self.tasks: list[Any] = []
        """Those that its death has left: kept, since to drop one runs its `finally`."""
        self.context: Context = copy_context()
        self.context.run(HOST.set, self)

    @property
    def name(self) -> str:
        return f"{self.host}#{self.number}"


HOST: Final[ContextVar[Process | None]] = ContextVar("host", default=None)
"""The process whose code runs; None: the world's."""


class HostsLoop(Loop):
    """Runs the processes of a world."""

    def __init__(self, chance: Chance, clock: Clock) -> None:
        super().__init__(chance, clock)
        self.set_task_factory(lambda loop, work, **options: _task(loop, work, options))

    def happens(self, after_ns: int, event: Callable[[], object]) -> None:
        self.happens_to(HOST.get(), after_ns, event)

    happens_around = Loop.happens
    """As `happens`, in the world around all processes."""

    def happens_to(self, process: Process | None, after_ns: int, event: Callable[[], object]) -> None:
        """As `happens`, in a process; None: in the world around them."""
        run = event if process is None else partial(self.in_process, process, event)
        super().happens(after_ns, run)

    def readable(self, descriptor: object, read: Callable[[], object]) -> None:
        process = HOST.get()
        super().readable(descriptor, read if process is None else partial(self.in_process, process, read))

    def may_run(self, handle: Any) -> bool:
        process: Process | None = handle._context.get(HOST)
        if process is None or (process.alive and not process.still):
            return True
        if process.alive:
            process.held.append(partial(self._ready.append, handle))
        return False

    def in_process(self, process: Process, event: Callable[[], object]) -> None:
        """Have an event of the world happen in a process now, or when it goes on."""
        if process.still and process.alive:
            process.held.append(partial(self.in_process, process, event))
        elif process.alive:
            process.context.run(event)

    # ---- what becomes of a process ---------------------------------------------------------------------------------

    def begin(self, process: Process, work: Any) -> Any:
        """Run work as a task of a process."""
        return process.context.copy().run(self.create_task, work)

    def freeze(self, process: Process) -> None:
        """As SIGSTOP."""
        process.still = True

    def go_on(self, process: Process) -> None:
        """As SIGCONT."""
        process.still = False
        held, process.held = process.held, []
        for event in held:
            event()

    def kill(self, process: Process) -> None:
        """As SIGKILL: nothing of it runs any more."""
        process.alive, process.still = False, False
        left = [task for task in all_tasks(self) if getattr(task, "process", None) is process]
        process.tasks = sorted(left, key=lambda task: task.number)
        for task in left:
            task._log_destroy_pending = False
        process.held = []
        for end in process.ends:
            end()


class _Task(Task):
    process: Process | None


def _task(loop: HostsLoop, work: Any, options: dict[str, Any]) -> _Task:
    process = HOST.get()
    if (context := options.get("context")) is not None and process is not None:
        context.run(HOST.set, process)  # an empty one, of work that takes nothing from its caller
    task = _Task(work, loop=loop, **options)
    task.process = process
    return task


def bury(process: Process) -> None:
    """Drop what a death has left, after the world's end."""
    tasks, process.tasks = process.tasks, []
    for task in tasks:
        with suppress(BaseException):
            task.get_coro().close()
