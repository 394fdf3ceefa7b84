"""The closed loop on an event loop: so many coroutines, each awaiting one signature after the other."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import cycle
from time import perf_counter_ns
from typing import Any, TypeVar

from hsmcore_bench.suite.child.protocol import slice_figures
from hsmcore_bench.suite.stats import percentiles

LAG_INTERVAL_NS = 1_000_000
M = TypeVar("M")  # a message, or a batch of them


def event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed, else None for the default."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def loop_name() -> str:
    factory = event_loop()
    return "asyncio" if factory is None else factory.__module__


class Gate:
    """Tells the callers when to stop. The first timed one past the deadline closes it for all."""

    __slots__ = ("closed", "deadline")

    def __init__(self, seconds: float) -> None:
        self.deadline = perf_counter_ns() + int(seconds * 1e9)
        self.closed = False


async def saturate(
    sign: Callable[[M], Awaitable[object]],
    messages: Sequence[Sequence[M]],
    seconds: float,
    *,
    timed_every: int = 1,
    watch_lag: bool = False,
    weight: int = 1,
) -> dict[str, Any]:
    """One caller for each list of messages, all at once, for so long; each message counts as `weight` signatures."""
    latencies = array("q")
    lateness = array("q")
    began = perf_counter_ns()
    gate = Gate(seconds)
    watcher = asyncio.create_task(_watch(gate, lateness)) if watch_lag else None
    counts = await asyncio.gather(
        *(
            _timed(sign, own, gate, latencies) if number % timed_every == 0 else _untimed(sign, own, gate)
            for number, own in enumerate(messages)
        )
    )
    ended = perf_counter_ns()
    if watcher is not None:
        await watcher
    return _figures(sum(counts) * weight, ended - began, latencies, lateness)


async def burst(sign: Callable[[M], Awaitable[object]], messages: Sequence[M], seconds: float) -> dict[str, Any]:
    """One caller for calls that never suspend: the clock is read once per round through `messages`."""
    latencies = array("q")
    gate = Gate(seconds)
    rounds = 0
    last = began = perf_counter_ns()
    while last < gate.deadline:
        for message in messages:
            await sign(message)
        now = perf_counter_ns()
        latencies.append((now - last) // len(messages))
        rounds += 1
        last = now
        await asyncio.sleep(0)
    return _figures(rounds * len(messages), last - began, latencies, ())


async def arrive(
    sign: Callable[[M], Awaitable[object]],
    messages: Sequence[M],
    seconds: float,
    per_second: float,
    *,
    punctual: bool = True,
) -> dict[str, Any]:
    """Requests that come at random (a Poisson process of `per_second`), however long earlier ones take. A latency
    counts from when the request was due, so that a loop that is late hides nothing.

    To be punctual the loop spins in the last millisecond before each: a processor that a token in software would need.
    """
    latencies, running = array("q"), set[asyncio.Task[None]]()
    dice = random.Random(per_second)

    async def one(message: M, due: int) -> None:
        await sign(message)
        latencies.append(perf_counter_ns() - due)

    began = due = perf_counter_ns()
    end = began + int(seconds * 1e9)
    for message in cycle(messages):
        due += int(dice.expovariate(per_second) * 1e9)
        if due >= end:
            break
        early = due - perf_counter_ns()
        while early > 0:
            # A timer is late by as much; uvloop makes one of less than half a millisecond none at all.
            wait = max(0, early - LAG_INTERVAL_NS) if punctual else max(early, LAG_INTERVAL_NS)
            await asyncio.sleep(wait / 1e9)
            early = due - perf_counter_ns()
        task = asyncio.ensure_future(one(message, due))
        running.add(task)
        task.add_done_callback(running.discard)
    while running:
        await asyncio.gather(*running)
    return _figures(len(latencies), perf_counter_ns() - began, latencies, ())


async def idle(seconds: float) -> dict[str, Any]:
    """Ask for nothing for so long: the figures of no signature."""
    began = perf_counter_ns()
    await asyncio.sleep(seconds)
    return _figures(0, perf_counter_ns() - began, (), ())


async def _timed(
    sign: Callable[[M], Awaitable[object]], messages: Sequence[M], gate: Gate, latencies: array[int]
) -> int:
    record, clock, count = latencies.append, perf_counter_ns, 0
    last = clock()
    for message in cycle(messages):
        await sign(message)
        now = clock()
        record(now - last)
        last = now
        count += 1
        if now >= gate.deadline:
            break
    gate.closed = True
    return count


async def _untimed(sign: Callable[[M], Awaitable[object]], messages: Sequence[M], gate: Gate) -> int:
    count = 0
    for message in cycle(messages):
        await sign(message)
        count += 1
        if gate.closed:
            break
    return count


async def _watch(gate: Gate, lateness: array[int]) -> None:
    while not gate.closed:
        due = perf_counter_ns() + LAG_INTERVAL_NS
        await asyncio.sleep(LAG_INTERVAL_NS / 1e9)
        lateness.append(max(0, perf_counter_ns() - due))


def _figures(signatures: int, elapsed_ns: int, latencies: Iterable[int], lateness: Iterable[int]) -> dict[str, Any]:
    calls, lag = percentiles(latencies), percentiles(lateness)
    return slice_figures(
        signatures, elapsed_ns / 1e9, None if calls is None else asdict(calls), None if lag is None else asdict(lag)
    )
