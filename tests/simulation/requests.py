"""The request table and its futures, as bindings/requests.pxi and native/src/requests.c have them, in plain Python.

What is left out: host processes, the cost of a wake. `engine.py` has the workers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from copy import copy
from time import monotonic_ns
from typing import Any, Final

from tests.simulation.threads import worlds

from hsmcore._native import Digest, freeze, timeout_ns
from hsmcore.base.receipt import Receipt
from hsmcore.errors import EmptyMessage, HsmError, NotInitialized, PolicyRefused, error_of
from hsmcore.errors.batch import of_batch

SWEEP_NS: Final = 5_000_000
DETERMINISTIC: Final = "ed25519"
made: list[Requests] = []
"""Of the world that runs."""


class Ask:
    """One request. `state`: "queued" has no slot, "sent" has one, "following" waits for an identical one, "ready" has
    an answer that is not handed out, "held" has one whose record is not durable, "over"."""

    __slots__ = (
        *("answer", "batch", "begun", "begun_ns", "claimed", "deadline", "extra", "followers", "future", "key"),
        *("leader", "message", "only", "routed", "receipt", "own", "slot", "state", "position", "stage", "cached"),
        *("met", "seq", "round"),
    )

    def __init__(self, message: Any, key: int, deadline: int) -> None:
        self.message, self.key, self.deadline = message, key, deadline
        self.future: Any = None
        self.batch: Batch | None = None
        self.position = 0
        self.begun_ns, self.begun, self.claimed, self.slot, self.cached = 0, False, True, False, False
        self.routed: int = 0
        """The deadline of the whole request, if it is routed."""
        self.receipt = self.own = False
        self.extra: bytes | None = None
        self.only: bytes | None = None
        self.met = False
        """Whether the answer is of its own call, and not of one that it follows."""
        self.seq = self.round = 0
        """Of its record."""
        self.followers: list[Ask] = []
        self.leader: Ask | None = None
        self.state = "new"
        self.stage = "queued"
        """Of the worker's side: "queued", "begun", "cancelled"."""
        self.answer: bytes | tuple[str, int, str] | HsmError = b""


class Batch:
    def __init__(self, future: Any, count: int, errors: bool) -> None:
        self.future, self.errors, self.left = future, errors, count
        self.results: list[Any] = [None] * count
        self.asks: list[Ask | None] = [None] * count

    def put(self, position: int, result: Any) -> None:
        self.results[position] = result
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result(self.results)

    def fail(self, position: int, error: HsmError) -> None:
        if self.errors:
            self.put(position, error)
            return
        self.left -= 1
        if not self.future.done():
            self.future.set_exception(of_batch(error, position))


class Requests:
    """One member's requests. As the class of this name in bindings/."""

    def __init__(
        self,
        *,
        member: str,
        slots: int,
        max_message: int,
        max_workers: int,
        coalesce_seconds: float,
        default_timeout: float,
        cache_size: int,
        single_flight: bool,
        cache_nondeterministic: bool,
        digests: bool = False,
        takes_digests: bool = False,
    ) -> None:
        del max_workers, digests
        made.append(self)
        self.member, self.slots, self.max_message = member, slots, max_message
        self.default_timeout = timeout_ns(default_timeout)
        self.takes_digests = takes_digests
        self.coalesce_ns = int(coalesce_seconds * 1e9)
        self.shares = bool(cache_size or single_flight)
        self.cache_all, self.cache_size = cache_nondeterministic, cache_size
        self.cached: dict[tuple[int, Any], bytes] = {}
        self.flying: dict[tuple[int, Any], Ask] = {}
        self.keys: dict[int, dict[str, Any]] = {}
        self.retired: set[int] = set()
        self.signers: dict[int, tuple[str, bytes, str, str]] = {}
        self.asks: dict[Any, Ask] = {}
        """By the future of one request."""
        self.missed: dict[Any, tuple[int, Any]] = {}
        self.all: dict[Ask, None] = {}
        """Every request that is not over."""
        self.queue: deque[Ask] = deque()
        self.ready: deque[Ask] = deque()
        self.held: deque[Ask] = deque()
        self.awaiting: deque[Ask] = deque()
        self.recorder: Any = None
        self.journal_failure = 0
        self.done: deque[tuple[Ask, Any]] = deque()
        """What workers have ended."""
        self.used = 0
        self.loop: Any = None
        self.open = False
        self.down: str | None = None
        self.lease: Any = None
        self.journal: Any = None
        """Its `signed` is told of each call that a worker has ended, before anything else is."""
        self.place: Any = None
        self.fall_back: Callable[..., Any] | None = None
        self.sweeping: asyncio.TimerHandle | None = None
        self.sweep_at = 0
        self.on_overdue: Callable[[], None] | None = None
        self.waiting_idle: Any = None
        self.completed = self.rejected = self.abandoned = self.refused = 0
        self.hits = self.misses = self.joined = 0

    # ---- life ------------------------------------------------------------------------------------------------------

    def attach(self, loop: Any, on_overdue: Callable[[], None] | None = None) -> None:
        self.loop, self.on_overdue, self.open = loop, on_overdue, True

    def detach(self) -> None:
        self.open = False
        if self.loop is None:
            return
        worlds[0].unreadable(self)
        self._take()
        if self.sweeping is not None:
            self.sweeping.cancel()
        if self.recorder is not None:
            self.refuse_durable(0)
        self._fail(lambda _ask: True, "CLOSED")
        self._take()
        self.loop = None
        if self.lease is not None:
            self.lease.tables.remove(self)
        if self.recorder is not None:
            self.recorder.journal.engines.remove(self)
            self.recorder = None

    def refuse(self) -> None:
        self.open = False

    def set_down(self, down: bool, status: str | None = None) -> None:
        self.down = (status or "TOKEN_LOST") if down else None

    def record_in(self, journal: Any) -> None:
        if hasattr(journal, "signed"):
            self.journal = journal
            return
        from tests.simulation.journal import Recorder

        self.recorder = Recorder(journal)
        journal.engines.append(self)

    def hand_out_under(self, lease: Any) -> None:
        self.lease = lease
        if lease is not None:
            lease.tables.append(self)

    def set_tail(self, key: int, tail: bytes) -> None:
        if self.recorder is not None:
            self.recorder.set_tail(key, tail)

    def signs_as(self, key: int, version: Any, member: str, level: str) -> None:
        self.signers[key] = version.id, version.public_key, member, level

    def signs_with(self, index: int) -> bool:
        return index in self.keys and index not in self.retired

    def idle(self) -> Any:
        if self.waiting_idle is None or self.waiting_idle.done():
            self.waiting_idle = self.loop.create_future()
        self._check_idle()
        return self.waiting_idle

    def clear_cache(self) -> None:
        self.cached.clear()

    # ---- in --------------------------------------------------------------------------------------------------------

    def submit(
        self, message: Any, timeout: float | None = None, key: int = 0, extra: bytes | None = None, own: bool = False
    ) -> Any:
        return self.ask_for(message, self._ns(timeout), key, extra, own=own)

    def ask(
        self,
        message: Any,
        timeout: float | None = None,
        key: int = 0,
        extra: bytes | None = None,
        gather: bool = False,
        waiter: Any = None,
    ) -> Any:
        return self.ask_for(message, self._ns(timeout), key, extra, receipt=True, waiter=waiter)

    def ask_for(
        self,
        message: Any,
        timeout: int,
        key: int,
        extra: bytes | None,
        *,
        receipt: bool = False,
        own: bool = False,
        routed: int = 0,
        only: bytes | None = None,
        waiter: Any = None,
    ) -> Any:
        self._check(own=own and not routed, recorded=extra != b"")
        if type(message) is Digest and not self.takes_digests:
            raise PolicyRefused("this key signs no digest as it is", member=self.member)
        one = Ask(self._checked(message), key, monotonic_ns() + timeout)
        one.receipt, one.own, one.extra, one.routed, one.only = receipt, own, extra, routed, only
        one.begun_ns = monotonic_ns()
        self._check_key(key)
        at_once = self._start(one)
        if at_once is not None and not receipt and not self._confirms and (self.recorder is None or extra == b""):
            return at_once
        one.future = self.loop.create_future() if waiter is None else waiter
        self.asks[one.future] = one
        if at_once is not None:
            one.answer, one.cached = at_once, True
            self.all[one] = None
            self._settle(one)
        self._pump()
        if self.ready:
            self._take()
        return one.future

    def submit_many(
        self,
        messages: Any,
        timeout: float | None = None,
        return_exceptions: bool = False,
        key: int = 0,
        extra: bytes | None = None,
    ) -> Any:
        self._check(recorded=extra != b"")
        asked: list[Ask] = []
        limit = monotonic_ns() + self._ns(timeout)
        for position, message in enumerate(messages):
            try:
                asked.append(Ask(self._checked(message), key, limit))
            except HsmError as error:
                raise of_batch(error, position) from None
        self._check_key(key)
        future = self.loop.create_future()
        batch = Batch(future, len(asked), return_exceptions)
        if not asked:
            future.set_result([])
        for position, one in enumerate(asked):
            one.batch, one.position, one.extra = batch, position, extra
            batch.asks[position] = one
            at_once = self._start(one)
            if at_once is not None and (self.recorder is not None or self._confirms):
                one.answer, one.cached, self.all[one] = at_once, True, None
                self._settle(one)
            elif at_once is not None:
                batch.asks[position] = None
                batch.put(position, at_once)
        if asked and not future.done():
            self.asks[future] = asked[0]
        self._pump()
        self._take()
        return future

    def _ns(self, timeout: float | None) -> int:
        return self.default_timeout if timeout is None else timeout_ns(timeout)

    def _check(self, *, own: bool = False, recorded: bool = True) -> None:
        if not self.open:
            if self.loop is None and not self.all and not self.completed:
                raise NotInitialized("used before initialize()", member=self.member)
            raise self._failure("CLOSED")
        if self.down is not None:
            raise _knowing(self._failure(self.down), False)
        if self.lease is not None and not own and self.lease.is_over:
            raise self.lease.refusal(self.member)
        if self.recorder is not None and recorded:
            self.recorder.require_writable()

    def _checked(self, message: Any) -> Any:
        data = freeze(message)
        if len(data) == 0:
            raise EmptyMessage(member=self.member)
        if len(data) > self.max_message:
            detail = f"{len(data)} bytes; maxMessageBytes is {self.max_message}"
            raise error_of("MESSAGE_TOO_LARGE", detail=detail, member=self.member)
        return data

    def _check_key(self, key: int) -> None:
        if not self.signs_with(key):
            raise self._failure("KEY_DEACTIVATED" if key in self.retired else "KEY_NOT_FOUND")

    def _cacheable(self, key: int) -> bool:
        return self.shares and (self.cache_all or self.keys[key]["algorithm"] == DETERMINISTIC)

    def _start(self, one: Ask) -> bytes | None:
        """Take a request. Returns its signature, if the cache has it."""
        found = self._look_up(one)
        if isinstance(found, bytes):
            return found
        self.all[one] = None
        self._watch(one.deadline)
        if found is None and self.queue:
            self._queue(one)
        else:
            self._proceed(one, found)
        return None

    def _look_up(self, one: Ask) -> bytes | Ask | None:
        if not self._cacheable(one.key):
            return None
        name = one.key, _name(one.message)
        if name in self.cached:
            self.hits += 1
            return self.cached[name]
        leader = self.flying.get(name)
        self.joined, self.misses = self.joined + (leader is not None), self.misses + (leader is None)
        return leader

    def _proceed(self, one: Ask, found: bytes | Ask | None) -> None:
        if isinstance(found, bytes):
            one.answer, one.cached = found, True
            self._settle(one)
        elif found is not None:
            one.leader, one.state = found, "following"
            found.followers.append(one)
        elif self.used < self.slots:
            one.state, one.stage, one.slot = "sent", "queued", True
            self.used += 1
            if self._cacheable(one.key):
                self.flying[one.key, _name(one.message)] = one
            self.publish(one)
        else:
            self._queue(one)

    def _queue(self, one: Ask, *, first: bool = False) -> None:
        one.state = "queued"
        (self.queue.appendleft if first else self.queue.append)(one)

    def publish(self, one: Ask) -> None:
        """A request is in the ring."""
        raise NotImplementedError

    def _pump(self) -> None:
        """Requests wait to be begun: for a guest's runners."""

    # ---- out -------------------------------------------------------------------------------------------------------

    def ended(self, one: Ask, answer: Any) -> None:
        """A worker has ended a request. In its thread."""
        if self.journal is not None:
            self.journal.signed(one.message, one.extra, answer)
        self.done.append((one, answer))
        if self.loop is not None:
            worlds[0].happens(self.coalesce_ns, lambda: self.loop and worlds[0].readable(self, self._take))

    def _settle(self, one: Ask) -> None:
        if one.state == "queued":
            self.queue.remove(one)
        elif one.state == "held":
            self.held.remove(one)
        elif one.state == "awaiting":
            self.awaiting.remove(one)
        one.state = "ready"
        self.ready.append(one)

    def _collect(self) -> None:
        """Make answers of what workers have ended."""
        while self.done:
            one, answer = self.done.popleft()
            name = one.key, _name(one.message)
            if self.flying.get(name) is one:
                del self.flying[name]
                if isinstance(answer, bytes) and self.cache_size and one.key not in self.retired:
                    self.cached[name] = answer
                    while len(self.cached) > self.cache_size:
                        del self.cached[next(iter(self.cached))]
            begun = one.stage == "begun"
            one.begun |= begun
            one.slot, self.used = False, self.used - 1
            if isinstance(answer, bytes):
                self.completed += 1
            else:
                self.rejected += 1
            self._share(one, answer, begun)
            if one.state == "sent":
                one.answer, one.met = answer, True
                self._settle(one)
            elif one.state == "told":
                if isinstance(answer, bytes) and self._is_recorded(one):
                    one.answer = answer
                    self.recorder.put(one, claimed=False)
                self._over(one)

    def _share(self, leader: Ask, answer: Any, begun: bool) -> None:
        followers, leader.followers = leader.followers, []
        alone = isinstance(answer, tuple) and answer[0] in ("CANCELLED", "DEADLINE_EXCEEDED")
        for one in reversed(followers) if alone else followers:
            one.leader = None
            one.begun |= begun
            if alone:
                self._queue(one, first=True)
            else:
                one.answer = answer
                self._settle(one)

    def _take(self) -> None:
        if self.recorder is not None and self.queue and self.recorder.journal.unwritable() is not None:
            self.journal_failure = self.recorder.journal.failure
            self._fail(lambda one: one.state == "queued", "SYSTEM")
        while True:
            self._collect()
            if self.ready:
                self._answered(self.ready.popleft())
            elif (not self.queue or self.used >= self.slots or not self._refill()) and not self._let_go():
                break
        self._pump()
        if self.lease is not None and self.lease.waiting:
            being_made = sum(one.claimed and one.state not in ("ready", "awaiting") for one in self.all)
            self.lease.look(being_made)
        self._check_idle()

    def _let_go(self) -> bool:
        """Have the records written, and look whether answers that are held still have to be."""
        if self.recorder is None:
            return False
        journal = self.recorder.journal
        journal.flush()
        if self.held and journal.hands_out:
            self._release(journal.next)
        elif self.held and journal.failure and not journal.fail_open:
            self._refuse_held(journal.failure)
        return bool(self.ready)

    def _release(self, kept: int) -> None:
        while self.held and self.held[0].seq <= kept:
            self._settle(self.held[0])

    def _refuse_held(self, failure: int) -> None:
        self.journal_failure = failure
        while self.held:
            self.held[0].answer = "SYSTEM", 0, ""
            self._settle(self.held[0])

    def release_durable(self, kept: int) -> None:
        """For the journal: the records up to this one are durable."""
        self._release(kept)
        self._take()

    def refuse_durable(self, failure: int) -> None:
        """For the journal: it is failing, or is about to be closed (0)."""
        self._refuse_held(failure)
        self._take()

    def leave_journal(self) -> None:
        """For the journal, before it is closed."""
        self.open = False
        self.refuse_durable(0)
        self._fail(lambda _ask: True, "CLOSED")
        self._take()
        self.recorder = None

    def _is_recorded(self, one: Ask) -> bool:
        return self.recorder is not None and one.extra != b""

    def _record(self, one: Ask) -> bool:
        """Record an answer, if it gets a record. Returns whether it is held."""
        if not self._is_recorded(one) or not self.recorder.wants(one):
            return False
        waiter = one.future if one.batch is None else one.batch.future
        claimed = one.claimed and waiter is not None and not waiter.done()
        one.seq = self.recorder.put(one, claimed=claimed)
        if not (claimed and one.seq and isinstance(one.answer, bytes)):
            return False
        one.state = "held"
        self.held.append(one)
        return True

    @property
    def _confirms(self) -> bool:
        return self.lease is not None and self.lease.wake is not None

    def _awaits(self, one: Ask) -> bool:
        """Whether an answer awaits a round of the lease from now on."""
        waiter = one.future if one.batch is None else one.batch.future
        if not self._confirms or one.round or not one.claimed or not isinstance(one.answer, bytes):
            return False
        if (one.own and not one.routed) or waiter is None or waiter.done() or self.lease.is_over:
            return False
        self.lease.waiting += 1
        one.round = self.lease.round + 1
        one.state = "awaiting"
        self.awaiting.append(one)
        return True

    def confirm(self, number: int) -> None:
        """For the lease: a round is over."""
        while self.awaiting and self.awaiting[0].round <= number:
            self._settle(self.awaiting[0])
        self._take()

    def _refill(self) -> bool:
        while self.queue and self.used < self.slots:
            one = self.queue.popleft()
            one.state = "new"
            self._proceed(one, self._look_up(one))
        return bool(self.ready)

    def _over(self, one: Ask) -> None:
        one.state = "over"
        self.all.pop(one, None)

    def _answered(self, one: Ask) -> None:
        if self._record(one) or self._awaits(one):
            return
        waiter, claimed = one.future, one.claimed
        one.claimed = False
        if one.slot:
            one.state = "told"  # a worker has it still
        else:
            self._over(one)
        if not claimed:
            return
        if one.batch is not None:
            self._batch_answered(one)
            return
        self.asks.pop(waiter, None)
        answer = one.answer
        if isinstance(answer, bytes) and self.lease is not None and (one.routed or not one.own) and self.lease.is_over:
            answer = _knowing(self.lease.refusal(self.member), True)
        taken = not waiter.done()
        if isinstance(answer, bytes):
            if taken:
                waiter.set_result(self._receipt(one, answer) if one.receipt else answer)
        else:
            error = self._error(one, answer)
            if taken and one.routed and self.fall_back is not None:
                begun = one.begun_ns if one.receipt else 0
                self.fall_back(waiter, self.place, one.key, one.routed, one.message, error, one.extra, one.only, begun)
            elif taken:
                waiter.set_exception(error)
        if one.routed and not taken:
            self.missed[waiter] = one.key, one.message

    def _batch_answered(self, one: Ask) -> None:
        batch = one.batch
        assert batch is not None
        batch.asks[one.position] = None
        if isinstance(one.answer, bytes):
            batch.put(one.position, one.answer)
        else:
            batch.fail(one.position, self._error(one, one.answer))
        if batch.future.done():
            self.asks.pop(batch.future, None)
            if any(batch.asks):
                begun = self._cancel_batch(batch)
                failed = None if batch.future.cancelled() else batch.future.exception()
                if begun and failed is not None:
                    failed.maybe_signed = True

    def _receipt(self, one: Ask, signature: bytes) -> Receipt:
        key_id, public_key, member, level = self.signers.get(one.key, ("", b"", "", ""))
        return Receipt(
            signature, key_id, public_key, member, level, one.cached, monotonic_ns() - one.begun_ns, one.seq or None
        )

    def _error(self, one: Ask, answer: Any) -> HsmError:
        if isinstance(answer, HsmError):
            return copy(answer)
        status, ckr, call = answer
        if status == "SYSTEM" and not one.slot and self.recorder is not None:
            refusal: HsmError = self.recorder.journal.refusal(self.journal_failure)
            return _knowing(refusal, bool(one.begun or one.seq))
        known = None if one.begun and status != "CLOSED" else one.begun
        return _knowing(error_of(status, ckr=ckr, call=call, member=self.member), known)

    def _failure(self, status: str) -> HsmError:
        return error_of(status, member=self.member)

    def _check_idle(self) -> None:
        if self.waiting_idle is not None and not self.waiting_idle.done() and not any(one.claimed for one in self.all):
            self.waiting_idle.set_result(None)

    # ---- ends that are not the workers' ------------------------------------------------------------------------------

    def abandon(self, future: Any) -> bool:
        self.abandoned += 1
        if not self.open:
            return True
        begun = True
        one = self.asks.pop(future, None)
        if one is not None and one.batch is not None:
            begun = self._cancel_batch(one.batch)
        elif one is not None:
            begun = self._cancel(one)
        self._check_idle()
        return begun

    def _cancel_batch(self, batch: Batch) -> bool:
        self.asks.pop(batch.future, None)
        begun = False
        for position, one in enumerate(batch.asks):
            result = batch.results[position]
            begun = begun or type(result) is bytes or (result is not None and result.maybe_signed)
            batch.asks[position] = None
            if one is not None:
                begun = self._cancel(one) or begun
        return begun

    def _cancel(self, one: Ask) -> bool:
        """Returns whether a signature of it was or will be made."""
        if not one.claimed:
            return True
        one.claimed = False
        if one.state == "following":
            begun = self._unfollow(one) or one.begun
            self._over(one)
        elif one.slot:
            begun = self._withdraw(one) or one.begun
            if one.state == "ready":
                self.ready.remove(one)
                one.state = "sent"
        else:
            begun = one.begun or (one.state != "queued" and isinstance(one.answer, bytes))
            {"queued": self.queue, "held": self.held, "awaiting": self.awaiting}.get(one.state, self.ready).remove(one)
            self._over(one)
        return begun

    def _withdraw(self, one: Ask) -> bool:
        """Withdraw a request in a slot. Returns whether a signature of it was or will be made."""
        if one.followers or one.stage == "begun":
            return True
        one.stage = "cancelled"
        return False

    def _unfollow(self, one: Ask) -> bool:
        leader = one.leader
        assert leader is not None
        leader.followers.remove(one)
        one.leader = None
        return (leader.claimed and leader.state == "sent") or self._withdraw(leader)

    def _fail(self, which: Callable[[Ask], bool], status: str) -> None:
        for one in [*self.all]:
            if one.claimed and which(one) and one.state in ("queued", "sent", "following", "held", "awaiting"):
                self._answer_early(one, status)

    def _answer_early(self, one: Ask, status: str) -> None:
        if one.state == "sent":
            one.begun |= status == "CLOSED" or self._withdraw(one)
        elif one.state == "following":
            one.begun |= self._unfollow(one)
        one.answer = status, 0, ""
        self._settle(one)

    def move(self) -> None:
        self._fail(lambda one: one.state not in ("held", "awaiting"), "DEADLINE_EXCEEDED")
        self._take()

    def asked_for(self, future: Any) -> tuple[int, Any] | None:
        one = self.asks.get(future)
        if one is None or one.batch is not None:
            return self.missed.pop(future, None)
        return one.key, one.message

    def _watch(self, deadline: int) -> None:
        if self.loop is None or 0 < self.sweep_at <= deadline:
            return
        if self.sweeping is not None:
            self.sweeping.cancel()
        self.sweep_at = deadline
        self.sweeping = self.loop.call_later(max(SWEEP_NS, deadline - monotonic_ns()) / 1e9, self._sweep)

    def _sweep(self) -> None:
        self.sweeping, self.sweep_at, now = None, 0, monotonic_ns()
        late = [one for one in self.all if one.deadline <= now and (one.claimed or one.slot)]
        overdue = sum(one.state in ("sent", "following", "told") for one in late)
        self._fail(lambda one: one.deadline <= now, "DEADLINE_EXCEEDED")
        self._take()
        left = [one.deadline for one in self.all if one.deadline > now]
        if left:
            self._watch(min(left))
        if overdue and self.on_overdue is not None:
            self.on_overdue()

    # ---- figures ---------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return self.used

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def cache_stats(self) -> dict[str, int]:
        return {
            "hits": self.hits,
            "misses": self.misses,
            "joined": self.joined,
            "evictions": 0,
            "entries": len(self.cached),
            "in_flight": len(self.flying),
            "bytes": 0,
        }


def _name(message: Any) -> Any:
    """The same bytes as a message and as a digest are two things."""
    return (b"digest", message.value) if type(message) is Digest else message


def _knowing(error: HsmError, maybe_signed: bool | None) -> HsmError:
    error.maybe_signed = maybe_signed
    return error
