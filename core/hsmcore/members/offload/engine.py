"""OffloadEngine: the native Engine's behaviour for members without a PKCS#11 module.

A request has any number of waiters: a caller that asks for a signature that is being made waits for the same request,
where sharing is allowed. A request ends when the back end answers, when its last waiter's deadline has passed, or,
before the back end has begun, when it has no waiter left. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from hsmcore._native import AdmissionControl, fork_generation, timeout_ns
from hsmcore.control.curves import Algorithm
from hsmcore.errors import HsmError, NotInitialized, WrongEventLoop, error_of
from hsmcore.members.offload.counters import Meter
from hsmcore.members.offload.keytable import KeyRow, KeyTable
from hsmcore.members.offload.requests import (
    NS,
    Batch,
    BatchItem,
    Request,
    Waiter,
    checked_message,
)
from hsmcore.members.offload.runners import Backend, InstantBackend, InstantRunner, TaskRunner
from hsmcore.members.offload.single_flight import SingleFlight

SWEEP_SECONDS = 0.005
"""Callers may be answered this much after their deadline."""


class OffloadEngine:
    """A SigningEngine (see base.py) in front of a back end.

    At most `queue_size` requests are in flight, of which at most the back end's `concurrency` are with the back end;
    others wait within their timeouts. `max_message` in bytes, `default_timeout` in seconds. Each `verify_every`-th
    signature is verified before it is handed out; 0: none, 1: all.
    """

    def __init__(
        self,
        backend: Backend | InstantBackend,
        *,
        member: str,
        queue_size: int,
        max_message: int,
        default_timeout: float,
        cache_size: int,
        single_flight: bool,
        cache_nondeterministic: bool,
        verify_every: int = 0,
    ) -> None:
        self._runner: TaskRunner | InstantRunner
        if isinstance(backend, InstantBackend):
            self._runner = InstantRunner(backend, self._next, self._finish)
        else:
            self._runner = TaskRunner(backend, queue_size, member, self._next, self._finish)
        self._member = member
        self._slots = queue_size
        self._max_message = max_message
        self._default_timeout = int(default_timeout * NS)
        self._sharing = SingleFlight(cache_size, single_flight)
        self._share_all = cache_nondeterministic
        self._process = fork_generation()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._open = self._down = False
        self._down_status = "TOKEN_LOST"
        self._keys = KeyTable(member, verify_every)
        self._ready: deque[Request] = deque()  # not begun, in order; skip those that are not in _live
        self._live: set[Request] = set()
        self._of: dict[asyncio.Future[Any], list[Waiter]] = {}  # waiters without an answer
        self._idle: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_at = 0
        self.meter = Meter()
        self._admission = AdmissionControl()
        self._admission.servers = self._runner.workers

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve the running `loop`: from now on `submit` works, in this loop only."""
        self._loop = loop
        self._thread = threading.get_ident()
        self._open = True

    def add_key(
        self, algorithm: Algorithm, public_key: bytes, max_message: int | None = None, limit: str = "its limit"
    ) -> int:
        """Add a key to the table. Returns its index, which the back end gets with each message. `max_message` is the
        back end's own limit in bytes, and `limit` its name."""
        shared = self._sharing.enabled and (self._share_all or algorithm == "ed25519")
        most, name = self._max_message, "maxMessageBytes"
        if max_message is not None and max_message < most:
            most, name = max_message, limit
        return self._keys.add(KeyRow(algorithm, public_key, shared, most, name))

    def retire_key(self, index: int) -> None:
        """Refuse every further request for this key, and the queued ones, and wipe cached signatures."""
        self._keys.row(index).retired = True
        self.clear_cache()
        self._refuse_queued("KEY_DEACTIVATED", index)

    def is_retired(self, index: int) -> bool:
        """Return whether the key was retired."""
        return self._keys.row(index).retired

    def set_down(self, down: bool, status: str = "TOKEN_LOST") -> None:
        """While down, fail requests immediately with `status`, and the queued ones."""
        self._down = down
        self._down_status = status
        if down:
            self._refuse_queued(status)

    def refuse(self) -> None:
        """Refuse every further request."""
        self._open = False

    def idle(self) -> asyncio.Future[None]:
        """Return a future that is done when every caller has its answer."""
        if self._idle is None or self._idle.done():
            self._idle = self._attached().create_future()
        self._check_idle()
        return self._idle

    async def stop(self, timeout: float) -> int:
        """Answer every waiting caller with EngineClosed and end every call to the back end. Returns how many of these
        did not end within `timeout` seconds. Idempotent."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for request in list(self._live):
            self._settle(request, self._failure("CLOSED"))
        self._check_idle()
        left = await self._runner.stop(timeout)
        self._sharing.close()
        return left

    def submit(self, message: object, timeout: float | None = None, key: int = 0) -> bytes | asyncio.Future[bytes]:
        """Sign one message. Returns its signature if the cache holds it, else a future of it."""
        loop = self._checked()
        limit = self._default_timeout if timeout is None else timeout_ns(timeout)
        row = self._keys.row(key)
        data = checked_message(message, row.max_message, row.limit, self._member)
        self._keys.check_active(row)
        held = self._sharing.look_up(key, data) if row.shared else None
        if isinstance(held, bytes):
            return held
        if held is None:
            self._require_time(1, limit)
        future: asyncio.Future[bytes] = loop.create_future()
        now = time.monotonic_ns()
        waiter = Waiter(future, now + limit)
        self._of[future] = [waiter]
        self._enter(waiter, row, key, data, now, held)
        self._runner.pump(loop)
        self._watch(loop, waiter.deadline)
        return future

    def submit_many(
        self, messages: object, timeout: float | None = None, return_exceptions: bool = False, key: int = 0
    ) -> asyncio.Future[list[Any]]:
        """Sign a batch. Returns a future of the list of signatures, in order."""
        loop = self._checked()
        if not isinstance(messages, Iterable):
            raise TypeError(f"{type(messages).__name__!r} object is not iterable")
        row = self._keys.row(key)
        data = [checked_message(message, row.max_message, row.limit, self._member) for message in messages]
        limit = self._default_timeout if timeout is None else timeout_ns(timeout)
        self._keys.check_active(row)
        if data:  # A caller that accepts partial results needs time for one request, any other caller for all of them.
            self._require_time(1 if return_exceptions or row.shared else len(data), limit)
        now = time.monotonic_ns()
        deadline = now + limit
        future: asyncio.Future[list[Any]] = loop.create_future()
        if not data:
            future.set_result([])
            return future
        batch = Batch(future, len(data), return_exceptions)
        waiters = self._of[future] = []
        for position, message in enumerate(data):
            held = self._sharing.look_up(key, message) if row.shared else None
            if isinstance(held, bytes):
                batch.put(position, held)
            else:
                place = BatchItem(batch, position, deadline)
                waiters.append(place)
                self._enter(place, row, key, message, now, held)
        self._forget_answered((future,))
        self._runner.pump(loop)
        self._watch(loop, deadline)
        return future

    def abandon(self, future: asyncio.Future[Any]) -> bool:
        """Note that the caller of `future` gave up. Drop its requests, unless they have other waiters or have begun.
        Returns whether a signature may exist or may still be made."""
        waiters = self._of.pop(future, [])
        signed = not waiters or any(waiter.answered for waiter in waiters)
        for waiter in waiters:
            request = waiter.request
            if request is None or waiter not in request.waiters:
                signed = True
                continue
            request.waiters.remove(waiter)
            if request.waiters or self._runner.has(request):
                signed = True
            else:
                self.meter.cancelled += 1
                self._drop(request)
        self._check_idle()
        return signed

    def clear_cache(self) -> None:
        """Wipe all cached signatures. Signatures in flight are not cached and not shared any more."""
        self._sharing.clear()

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot in the queue or are with the back end."""
        return min(self._held, self._slots)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._held - self.in_flight

    def stats(self) -> dict[str, Any]:
        """Return counters, and histograms of time with the back end and in the queue: [(upper bound in ns, count)]."""
        runner = self._runner
        return {
            **self.meter.rows(),
            "workers": runner.workers,
            "busy": runner.busy,
            "stuck": runner.stuck,
            "down": self._down or runner.clogged,
            "queued": self._held - runner.busy,
            "in_flight": self.in_flight,
            "waiting": self.waiting,
            "oldest_queued_ns": self._oldest_queued(),
            "oldest_call_ns": runner.oldest(),
        }

    def cache_stats(self) -> dict[str, int]:
        """Return counters of the signature cache; all 0 when it is disabled."""
        return self._sharing.stats()

    def _oldest_queued(self) -> int:
        """Return the age of the oldest queued request in nanoseconds; 0: none is queued. Any thread."""
        for request in self._ready.copy():
            if request in self._live:
                return time.monotonic_ns() - request.submitted
        return 0

    @property
    def _held(self) -> int:
        return len(self._live) + self._runner.stuck

    def _failure(self, status: str) -> HsmError:
        return error_of(status, member=self._member)

    def _require_time(self, count: int, limit: int) -> None:
        """Raise HsmError if `count` more requests cannot be answered within `limit` nanoseconds."""
        if self._admission.refuses(self._held, count, limit):
            self.meter.refused += 1
            raise error_of("QUEUE_FULL", detail=self._admission.describe(self._held, limit), member=self._member)

    def _attached(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise NotInitialized("used before initialize()", member=self._member)
        return self._loop

    def _checked(self) -> asyncio.AbstractEventLoop:
        if self._process != fork_generation():
            raise self._failure("FORKED")
        loop = self._attached()
        if not self._open:
            raise self._failure("CLOSED")
        if self._down or self._runner.clogged:
            raise self._failure(self._down_status)
        # The running loop is the only one of its thread.
        if threading.get_ident() != self._thread or not loop.is_running():
            raise WrongEventLoop("used outside the event loop that initialized it", member=self._member)
        return loop

    def _enter(self, waiter: Waiter, row: KeyRow, key: int, message: bytes, now: int, joined: Request | None) -> None:
        if joined is not None:
            joined.add(waiter)
            return
        request = Request(key, message, now, self._sharing.generation)
        request.add(waiter)
        self._live.add(request)
        self._ready.append(request)
        if row.shared:
            self._sharing.begin(request)

    def _next(self) -> Request | None:
        """Return the next request that has a waiter, for the runner."""
        while self._ready:
            request = self._ready.popleft()
            if request not in self._live:
                continue
            if request.gone:  # cancelled without a call of `abandon`
                self.meter.cancelled += 1
                self._forget_answered(waiter.future for waiter in request.waiters)
                self._drop(request)
                self._check_idle()
                continue
            request.begun = time.monotonic_ns()
            self.meter.queue_ns.add(request.begun - request.submitted)
            return request
        return None

    def _finish(self, request: Request, result: bytes | HsmError) -> None:
        """Handle the back end's answer, for the runner."""
        now = time.monotonic_ns()
        self.meter.hsm_ns.add(now - request.begun)
        self._admission.note(now, 1, bool(self._ready))
        if isinstance(result, bytes):
            begun = time.monotonic_ns()
            result = self._keys.judged(request.key, request.message, result)
            self.meter.verify_ns.add(time.monotonic_ns() - begun)
        if isinstance(result, bytes):
            self.meter.signatures += 1
            if self._keys.row(request.key).shared:
                self._sharing.keep(request, result)
        else:
            if result.status != "CANCELLED":
                self.meter.failed_with(result)
            self.meter.wrong += result.status == "SIGNATURE_INVALID"
        self._settle(request, result)
        self._check_idle()

    def _refuse_queued(self, status: str, key: int | None = None) -> None:
        for request in list(self._live):
            if not self._runner.has(request) and key in (None, request.key):
                self._settle(request, self._failure(status))
        self._check_idle()

    def _settle(self, request: Request, result: bytes | HsmError) -> None:
        self._drop(request)
        self._forget_answered(request.settle(result))

    def _drop(self, request: Request) -> None:
        self._live.discard(request)
        self._sharing.end(request)

    def _forget_answered(self, futures: Iterable[asyncio.Future[Any]]) -> None:
        for future in futures:
            if future.done():
                self._of.pop(future, None)

    def _check_idle(self) -> None:
        if self._idle is not None and not self._of and not self._idle.done():
            self._idle.set_result(None)

    def _watch(self, loop: asyncio.AbstractEventLoop, deadline: int) -> None:
        """Schedule a sweep no later than this deadline."""
        if self._sweep_at and self._sweep_at <= deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._sweep_at = deadline
        self._timer = loop.call_later(max(SWEEP_SECONDS, (deadline - time.monotonic_ns()) / NS), self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer every waiter whose deadline has passed, and schedule the next sweep."""
        self._timer, self._sweep_at = None, 0
        now = time.monotonic_ns()
        soonest: list[int] = []
        for request in list(self._live):
            for waiter in request.take_overdue(now):
                waiter.refuse(self._failure("DEADLINE_EXCEEDED"))
                self._forget_answered((waiter.future,))
            if request.deadline > now:
                soonest.append(min((waiter.deadline for waiter in request.waiters), default=request.deadline))
            else:
                self.meter.expired += 1
                self._drop(request)
                if self._runner.has(request):
                    self._runner.expire(request, loop)
        if soonest:
            self._watch(loop, min(soonest))
        self._check_idle()
