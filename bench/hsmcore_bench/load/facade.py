"""`python -m hsmcore_bench.load.facade`: requests through `await km.sign(message)`, a task for each, as sequencers do.

Speaks as bench/native/load/main.c does: settings as one line of JSON, {"ready": …}, "go NANOSECONDS", a line each
interval, and stays until its input ends.
A timer of the kernel's wakes the loop for the next planned start, to the microsecond.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final

import orjson
import uvloop

import hsmcore
from hsmcore.base.heap import settle
from hsmcore.errors import HsmError
from hsmcore.gateway import Client, ClientTls
from hsmcore_bench.harness.parent import die_with_parent
from hsmcore_bench.load.mix import Messages
from hsmcore_bench.load.shapes import Segment, starts
from hsmcore_bench.load.verify import RECORD

_BURST: Final = 32
"""Starts between two turns of the loop."""
_REST: Final = 4
_REST_MAX_NS: Final = 1_000_000
"""After a turn of the loop no start wakes it before it has rested for so many times as long as it worked, a millisecond
at most. Where each start woke it, waking would cost more than signing, as it would a service that reads one request at
a time from its sockets. At rates that leave the loop idle for longer, nothing changes."""
_GRACE_SECONDS: Final = 2.0
_FAILED: Final = 1
_TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = 0o4000, 0o2000000, 1
_now = time.monotonic_ns


class _Timer:
    """A timerfd: asyncio's own timers and libuv's are no finer than a millisecond. Setting it again also clears an
    expiration."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._when = (ctypes.c_long * 4)(0, 0, 0, 0)  # struct itimerspec

    def set(self, at: int) -> None:
        """Go off at `at` nanoseconds of the monotonic clock."""
        self._when[2], self._when[3] = divmod(max(1, at), 1_000_000_000)
        self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, self._when, None)

    def close(self) -> None:
        os.close(self.fd)


class _Series(dict[int, int]):
    """Counts by their place in an HdrHistogram; in line, because this runs for every request."""

    def add(self, ns: int) -> None:
        shift = ns.bit_length() - 11
        bucket = (shift << 10) + (ns >> shift) if shift > 0 else max(ns, 0)
        self[bucket] = self.get(bucket, 0) + 1


class Run:
    """One process's share of a run."""

    def __init__(self, manager: hsmcore.KeyManager | Client, settings: dict[str, Any]) -> None:
        self._sign: Callable[[bytes, float | None], Awaitable[bytes]] = manager.sign
        self._timeout: float = settings["timeout"]
        self._messages = Messages(settings["mix"], settings["maxMessage"], settings["seed"])
        segments = [Segment(*part) for part in settings["segments"]]
        self._plan = starts(segments, phase=settings["phase"], poisson=settings["poisson"], seed=settings["seed"])
        self._interval = settings["interval"]
        self._spool: IO[bytes] | None = None
        if settings["spool"] is not None:
            self._spool = Path(settings["spool"]).open("xb", buffering=1 << 20)  # noqa: SIM115 - closed with the run
        self._loop = asyncio.get_running_loop()
        self._timer = _Timer()
        self._number = 0
        self._open = 0
        """Requests that are started, or about to be, and not answered. What they wait for holds on to their tasks."""
        self._answered = self._loop.create_future()
        self._planned = 0
        self._worked = 0
        """Processor time of this thread when starts were looked at last."""
        self._begin = 0
        self._ended = False
        self._over = self._loop.create_future()
        self._fresh()

    def _fresh(self) -> None:
        self._started = self._signed = self._failed = self._lost = 0
        self._errors: dict[str, int] = {}
        self._corrected, self._uncorrected, self._start = _Series(), _Series(), _Series()

    async def run(self, begin: int, stopped: asyncio.Event) -> None:
        """Start and answer all that is planned, until `stopped`; reports in each interval but the last."""
        self._begin = begin
        reporter = asyncio.create_task(self._report_regularly())
        stopper = asyncio.create_task(stopped.wait())
        self._loop.add_reader(self._timer.fd, self._due)
        first = next(self._plan, None)
        if first is None:
            self._over.set_result(None)
        else:
            self._planned = begin + first
            self._timer.set(self._planned)
        await asyncio.wait({self._over, stopper}, return_when=asyncio.FIRST_COMPLETED)
        self._loop.remove_reader(self._timer.fd)
        self._timer.close()
        self._over.cancel()
        self._ended = True
        if self._open:
            await asyncio.wait({self._answered}, timeout=self._timeout + _GRACE_SECONDS)
            self._lost = self._open
        reporter.cancel()
        stopper.cancel()
        if self._spool is not None:
            self._spool.close()

    def _due(self) -> None:
        """Start what is due. What is due still then has its turn after the loop has looked at everything else."""
        plan, now = self._plan, _now()
        worked = time.thread_time_ns()
        rest, self._worked = min((worked - self._worked) * _REST, _REST_MAX_NS), worked
        for _ in range(_BURST):
            if self._planned > now:
                break
            self._loop.create_task(self._one(self._number, self._planned))
            self._open += 1
            self._number += 1
            offset = next(plan, None)
            if offset is None:
                self._loop.remove_reader(self._timer.fd)
                self._over.set_result(None)
                return
            self._planned = self._begin + offset
        else:
            rest = 0
        self._timer.set(max(self._planned, now + rest))

    async def _one(self, number: int, planned: int) -> None:
        message = self._messages.message(number)
        begun = _now()
        self._started += 1
        self._start.add(begun - planned)
        if begun - planned >= self._timeout * 1e9:
            self._fail("DEADLINE_EXCEEDED")
            signature = b""
            ended = begun
        else:
            try:
                signature = await self._sign(message, self._timeout)
                ended = _now()
                self._signed += 1
            except HsmError as error:
                ended, signature = _now(), b""
                self._fail(error.status)
        self._corrected.add(ended - planned)
        self._uncorrected.add(ended - begun)
        self._open -= 1
        if self._ended and not self._open and not self._answered.done():
            self._answered.set_result(None)
        if self._spool is not None and not self._spool.closed:
            self._spool.write(RECORD.pack(number, 0 if signature else _FAILED, 0, signature))

    def _fail(self, status: str) -> None:
        self._failed += 1
        self._errors[status] = self._errors.get(status, 0) + 1

    async def _report_regularly(self) -> None:
        at = self._begin / 1e9
        while True:
            at += self._interval
            await asyncio.sleep(at - time.monotonic())
            self.report(last=False)

    def report(self, *, last: bool) -> None:
        """Say what was counted since the last time; `last`: there is no more."""
        line = {
            "end": last,
            "at": (_now() - self._begin) / 1e9,
            "started": self._started,
            "signed": self._signed,
            "cached": 0,
            "failed": self._failed,
            "lost": self._lost,
            "twice": 0,
            "errors": self._errors,
        }
        for name, series in (
            ("corrected", self._corrected),
            ("uncorrected", self._uncorrected),
            ("start", self._start),
        ):
            line[name] = list(chain.from_iterable(series.items()))
        self._fresh()
        _say(line)


def _say(line: dict[str, Any]) -> None:
    text = memoryview(orjson.dumps(line) + b"\n")
    while text:
        text = text[os.write(1, text) :]


def _manager(settings: dict[str, Any]) -> hsmcore.KeyManager | Client:
    asked = settings["gateway"]
    if asked is None:
        return hsmcore.create_key_manager(settings["config"], rotates=False)
    return Client(**asked | {"tls": ClientTls(*asked["tls"]) if asked["tls"] else None}, program="hsmcore load")


async def _from_cache(manager: hsmcore.KeyManager | Client) -> int:
    found = manager.get_cache_stats()
    stats = found if isinstance(found, dict) else await found
    return sum(stats[name] for name in ("hits", "joined"))


def _keys(manager: hsmcore.KeyManager | Client) -> list[dict[str, str]]:
    return [{"algorithm": key.algorithm, "public_key": key.public_key.hex()} for key in manager.keys()]  # noqa: SIM118 - no mapping


async def _main(settings: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    try:
        async with _manager(settings) as manager:
            _say({"ready": True, "keys": _keys(manager)})
            words = (await asyncio.to_thread(sys.stdin.buffer.readline)).split()
            if len(words) != 2 or words[0] != b"go":
                return
            loop.add_reader(0, _stop, loop, stopped)
            cached = await _from_cache(manager)
            run = Run(manager, settings)
            settle()
            await run.run(int(words[1]), stopped)
            _say({"keys": _keys(manager), "cached": await _from_cache(manager) - cached})
            run.report(last=True)
            await stopped.wait()
    finally:
        loop.remove_reader(0)


def _stop(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    loop.remove_reader(0)
    stopped.set()


def main() -> int:
    """Returns the exit code: 1 if the key manager could not be opened, and why as JSON on standard output."""
    die_with_parent()
    settings = orjson.loads(sys.stdin.buffer.readline())
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_main(settings))
    except HsmError as error:
        _say({"error": str(error.args[0] if error.args else ""), "status": error.status, "hint": error.hint})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
