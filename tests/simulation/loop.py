"""The event loop of a world: asyncio's own, but its clock jumps to what comes next, and nothing is asked of the system.

Two kinds of things happen: turns of the loop, as asyncio makes them, and events of the world (a device answers, a
thread's call ends), which come at their time, also between two callbacks of one turn, as they do from other threads.
"""

from __future__ import annotations

import asyncio
from asyncio import events
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final

from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND, Clock

_STEP_NS: Final = 2_000
_STEP_BITS: Final = _STEP_NS.bit_length()
"""What a callback takes, at most, in simulated time."""
_NEVER_NS: Final = 1 << 63


class Stuck(Exception):
    """Nothing will ever happen again, and the world has not ended; or it goes on for ever."""


class _Numbered:
    """Sets of tasks and futures have the same order in each run: hashes are numbers, not addresses."""

    _numbers = count()

    def __hash__(self) -> int:
        return self.number

    number: int


class Future(_Numbered, asyncio.Future[Any]):
    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        self.number = next(_Numbered._numbers)
        super().__init__(loop=loop)


class Task(_Numbered, asyncio.Task[Any]):
    def __init__(self, coroutine: Any, **options: Any) -> None:
        self.number = next(_Numbered._numbers)
        super().__init__(coroutine, **options)


class Loop(asyncio.BaseEventLoop):
    """Runs a world in the current thread."""

    _ready: Any
    _scheduled: Any
    _stopping: bool
    _debug: bool

    def __init__(self, chance: Chance, clock: Clock) -> None:
        super().__init__()
        _Numbered._numbers = count()
        self.chance, self.clock = chance, clock
        self.failures: list[dict[str, Any]] = []
        self.steps = 0
        self.most_steps = 2_000_000
        self._world: list[tuple[int, int, Callable[[], object]]] = []
        self._count = count()
        self._readable: dict[object, Callable[[], object]] = {}
        self.set_task_factory(lambda loop, work, **options: Task(work, loop=loop, **options))
        self.set_exception_handler(lambda _loop, context: self.failures.append(context))

    def time(self) -> float:
        return self.clock.ns / SECOND

    def create_future(self) -> Any:
        return Future(loop=self)

    # ---- the world -------------------------------------------------------------------------------------------------

    def happens(self, after_ns: int, event: Callable[[], object]) -> None:
        """Have an event of the world happen, as if in another thread."""
        heappush(self._world, (self.clock.ns + (max(0, after_ns)), next(self._count), event))

    def readable(self, descriptor: object, read: Callable[[], object]) -> None:
        """An event of the world has made a descriptor readable: `read` is called in the next turn, once."""
        self._readable[descriptor] = read

    def unreadable(self, descriptor: object) -> None:
        self._readable.pop(descriptor, None)

    def stall(self, ns: int) -> None:
        """The process does not run for a while: the world goes on without it."""
        self.clock.ns += ns

    def pass_until(self, ns: int) -> None:
        """Only the world goes on, each event at its time."""
        while self._world and self._world[0][0] <= ns:
            self.clock.ns = max(self.clock.ns, self._world[0][0])
            self._let_happen()
        self.clock.ns = max(self.clock.ns, ns)

    def may_run(self, _handle: Any) -> bool:
        """Whether the process of a callback runs, in a world of several."""
        return True

    def _let_happen(self) -> None:
        world, clock = self._world, self.clock
        while world and world[0][0] <= clock.ns:
            heappop(world)[2]()

    # ---- turns -----------------------------------------------------------------------------------------------------

    def _run_once(self) -> None:
        clock, world, bits = self.clock, self._world, self.chance.time.getrandbits
        if (world and world[0][0] <= clock.ns) or not self._ready:
            self._wait()
        turn = [*self._ready]
        self._ready.clear()
        if self._readable or self._scheduled:
            turn += self._arrived()
        if len(turn) > 1:
            self.chance.order.arrange(turn, _owner)
        for handle in turn:
            if not handle._cancelled and self.may_run(handle):
                handle._run()
            # As `randrange`, which takes longer than most callbacks.
            while (step := bits(_STEP_BITS)) >= _STEP_NS:
                pass
            clock.ns += step
            if world and world[0][0] <= clock.ns:
                self._let_happen()
        self.steps += len(turn)
        if self.steps > self.most_steps:
            raise Stuck(f"{self.steps} steps, and no end")

    def _wait(self) -> None:
        """Let time pass until there is something to do."""
        world, scheduled, clock = self._world, self._scheduled, self.clock
        self._let_happen()
        while not (self._ready or self._readable or self._stopping or self._is_due()):
            if not world and not scheduled:
                raise Stuck("nothing is left to happen")
            then = world[0][0] if world else _NEVER_NS
            if scheduled:
                then = min(then, int(scheduled[0]._when * SECOND))
            clock.ns = max(clock.ns, then)
            self._let_happen()

    def _arrived(self) -> list[Any]:
        """Descriptors that are readable and timers that are due: no order is promised among these."""
        arrived: list[Any] = []
        if self._readable:
            arrived += [events.Handle(read, (), self) for read in self._readable.values()]
            self._readable.clear()
        while self._is_due():
            handle = heappop(self._scheduled)
            handle._scheduled = False
            arrived.append(handle)
        if len(arrived) > 1:
            self.chance.time.shuffle(arrived)
        return arrived

    def _is_due(self) -> bool:
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            heappop(scheduled)._scheduled = False
        return bool(scheduled) and int(scheduled[0]._when * SECOND) <= self.clock.ns

    def _timer_handle_cancelled(self, handle: Any) -> None:
        """Cancelled timers are dropped when they come up."""

    def _write_to_self(self) -> None:
        """Nothing waits in the system."""

    def _process_events(self, event_list: Any) -> None:
        """None come from a selector."""

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        raise NotImplementedError("a world has no descriptors")


def install() -> None:
    """Have `gather` and `shield` of asyncio take as many callbacks and turns on each Python. Once in a process.

    CPython up to 3.11 gathers what is done already in the next turn, and newer ones at once. Here it is the next turn.
    From 3.14 on a shield has a callback more.
    """
    gather = asyncio.gather

    def shield(work: Any) -> Any:
        inner = asyncio.ensure_future(work)
        return inner if inner.done() else _same(inner)

    def in_turn(one: Any) -> Any:
        return _same(one) if asyncio.isfuture(one) and one.done() else one

    asyncio.shield = shield
    asyncio.gather = lambda *work, **options: gather(*map(in_turn, work), **options)


def _same(inner: Any) -> Any:
    """A future that ends as this one does, one turn later. To cancel it leaves this one alone."""
    outer = inner.get_loop().create_future()

    def end(_: object) -> None:
        error = None if inner.cancelled() else inner.exception()
        if outer.done():
            return
        if inner.cancelled():
            outer.cancel()
        elif error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(inner.result())

    inner.add_done_callback(end)
    return outer


def _owner(handle: Any) -> object:
    owner = getattr(handle._callback, "__self__", None)
    return owner if isinstance(owner, Task) else handle
