"""One signature of the HSM for a whole batch of messages: they are collected, and the root of their tree is signed.

A batch closes at an age or a size. While its root is being bound and signed, the next one collects; one root is signed
at a time, so a batch lasts as long as the signature before it. Its messages are numbered when it closes, behind all
that the store has numbered: the process that has a range bound has it for its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from hsmcore._native import BatchedSignature, Leaves, timeout_ns
from hsmcore.audit.leaves import LeafFiles
from hsmcore.audit.record import current_caller
from hsmcore.audit.record import extra as audit_extra
from hsmcore.base.payload import MOST_POSITION
from hsmcore.base.scope import Scope
from hsmcore.config import Batching, KeyManagerConfig
from hsmcore.config.policy import BATCH_ROOT
from hsmcore.errors import (
    AlgorithmUnsupported,
    BadArgument,
    DeadlineExceeded,
    EngineClosed,
    HsmError,
    PolicyRefused,
    QueueFull,
    RequestCancelled,
)
from hsmcore.errors.batch import each
from hsmcore.manager.describe import BatchFigures
from hsmcore.manager.lifecycle import a_turn
from hsmcore.manager.path import OwnTexts
from hsmcore.manager.policy.wants import NotNext, PayloadPlace
from hsmcore.tlog import batch_proof
from hsmcore.tlog.note import signed

T = TypeVar("T")
_WAITING: Final = 4
"""Batches that may wait for the one before them."""
_SLICE: Final = 1024
"""Callers that are answered before the event loop has its turn."""
_CALLERS: Final = 64
"""Callers that the record of a root names: those with the most messages."""


class Batches:
    """The batches of an open key manager. Belongs to its event loop."""

    def __init__(
        self,
        rules: KeyManagerConfig,
        parts: OwnTexts,
    ) -> None:
        self._rules = rules.batching or Batching()
        self._guard, self._check, self._have = parts.guard, parts.check, parts.sign
        self._record, self._fleet = parts.record, parts.fleet
        self._most = self._rules.max_leaves
        self._most_bytes, self._timeout = rules.max_message_bytes, rules.request_timeout_ms * 1_000_000
        self._kept = None if self._rules.keep_leaves is None else LeafFiles(Path(self._rules.keep_leaves))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hsmcore-batch")
        self._open: Leaves | None = None
        self._closes_at = 0.0
        self._full: deque[Leaves] = deque()
        self._hurry = asyncio.Event()
        self._signing = Scope()
        self._closing = False
        self.figures = BatchFigures()
        self._next = 0
        """Where the next batch begins, as far as this process knows."""

    @classmethod
    def of(cls, rules: KeyManagerConfig, parts: OwnTexts) -> Self:
        """Return what signs batches. Raises AlgorithmUnsupported."""
        _require_ed25519(parts.path.version.public_key)
        return cls(rules, parts)

    async def sign(self, message: Any, timeout: float | None, kind: str | None) -> BatchedSignature:
        """As KeyManager.sign_batched."""
        try:
            signature = self._add(message, timeout, kind)
            if signature is None:
                signature = await self._judged(message, timeout, kind)
        except HsmError as error:
            self._record.failure("sign-batched", message, error)
            await a_turn(error)
            raise
        return await signature

    def begin(self, message: Any, timeout: float | None, kind: str | None) -> asyncio.Future[BatchedSignature] | None:
        """As KeyManager.submit_batched."""
        try:
            return self._add(message, timeout, kind)
        except HsmError as error:
            self._record.failure("sign-batched", message, error)
            raise

    def _add(self, message: Any, timeout: float | None, kind: str | None) -> asyncio.Future[BatchedSignature] | None:
        """Add a message that is signed without further ado. None: it must be judged."""
        left = self._timeout if timeout is None else timeout_ns(timeout)
        leaves = self._open or self._begin()
        signature = leaves.add(self._guard.leaves, message, kind, left, self._most_bytes, current_caller())
        if leaves.count >= self._most:
            self._close_full(leaves)
        return signature

    async def sign_many(self, messages: list[Any], timeout: float | None, kind: str | None) -> list[BatchedSignature]:
        """As KeyManager.sign_batched_many."""
        with ExitStack() as admitted:
            judged = None
            try:
                until = time.monotonic_ns() + (self._timeout if timeout is None else timeout_ns(timeout))
                self._check()
                if not Leaves.passing(self._guard.leaves, messages, kind, self._most_bytes):
                    messages, judged = await self._judge_all(messages, timeout, kind, admitted)
            except HsmError as error:
                self._record.failure("sign-batched", None, error)
                await a_turn(error)
                raise
            return await self._signed_many(messages, until, kind, judged)

    async def _judge_all(
        self, messages: list[Any], timeout: float | None, kind: str | None, admitted: ExitStack
    ) -> tuple[list[bytes], list[str]]:
        """Admit all messages, or none. Returns them and their kinds. The admissions end with `admitted`."""
        guard = self._guard
        admissions = each(lambda message: guard.judge_leaf(message, kind), messages)
        frozen = [one.message for one in admissions]
        Leaves.fitting(frozen, self._most_bytes)
        admitted.enter_context(guard.counted(admissions))
        await asyncio.gather(*(one.begin(timeout) for one in admissions if one.waits))
        return frozen, [one.kind for one in admissions]

    async def _signed_many(
        self, messages: list[Any], until: int, kind: str | None, judged: list[str] | None
    ) -> list[BatchedSignature]:
        parts: list[asyncio.Future[list[BatchedSignature]]] = []
        try:
            await self._add_all(messages, until, kind, judged, parts)
            found = [await part for part in parts]
        except HsmError as error:
            if not parts:
                self._record.failure("sign-batched", None, error)
            error.maybe_signed |= any(not p.done() or not (p.cancelled() or p.exception()) for p in parts)
            await a_turn(error)
            raise
        finally:
            for part in parts:
                if not part.cancel() and not part.cancelled():
                    part.exception()  # it is known that there is one, or not
        return found[0] if len(found) == 1 else [one for part in found for one in part]

    async def _add_all(
        self,
        messages: list[Any],
        until: int,
        kind: str | None,
        judged: list[str] | None,
        parts: list[asyncio.Future[list[BatchedSignature]]],
    ) -> None:
        """Add messages to as many batches as they fill. Each adds a future to `parts`; the next one waits for room."""
        at = 0
        while at < len(messages):
            while self._open is None and len(self._full) >= _WAITING and (ahead := [p for p in parts if not p.done()]):
                await asyncio.wait(ahead, return_when=asyncio.FIRST_COMPLETED)
            leaves = self._open or self._begin()
            end = min(at + self._most - leaves.count, len(messages))
            left = max(until - time.monotonic_ns(), 1)
            parts.append(leaves.add_many(self._guard.leaves, messages, at, end, kind, left, current_caller(), judged))
            at = end
            if leaves.count >= self._most:
                self._close_full(leaves)

    async def _judged(self, message: Any, timeout: float | None, kind: str | None) -> asyncio.Future[BatchedSignature]:
        """The way of a message that is not signed without further ado. Returns its future, which is done."""
        admission = self._guard.judge_leaf(message, kind)
        with self._guard.counted([admission]):
            left = await admission.begin(timeout)
            leaves = self._open or self._begin()
            left_ns = self._timeout if left is None else timeout_ns(left)
            caller = current_caller()
            signature = leaves.add_judged(admission.message, admission.kind, left_ns, self._most_bytes, caller)
            if leaves.count >= self._most:
                self._close_full(leaves)
            try:
                await asyncio.wait({signature})
            finally:
                signature.cancel()
            return signature

    def _begin(self) -> Leaves:
        self._check()
        if self._closing:
            raise EngineClosed("the key manager is closed")
        if len(self._full) >= _WAITING:
            raise QueueFull(f"{_WAITING} batches of {self._rules.max_leaves} messages wait for their signatures")
        loop = asyncio.get_running_loop()
        self._closes_at = loop.time() + self._rules.interval_ms / 1e3
        self._open = self.figures.open = Leaves(loop)
        if not self._signing.is_open:
            self._signing.start(self._run(), context=Context())  # a root is no caller's
        return self._open

    def _close_full(self, leaves: Leaves) -> None:
        """The open batch has as many messages as it may: close it, unless half of them are withdrawn or late. One
        caller that withdraws what it asks for takes no room from the others."""
        if leaves.drop_done() > self._most // 2:
            self._close_open("full")

    def _close_open(self, why: str) -> None:
        leaves, self._open, self.figures.open = self._open, None, None
        if leaves is not None:
            if leaves.drop_done():
                self._full.append(leaves)
                self.figures.closed[why] += 1
                self.figures.closed_waiting += leaves.count
            else:
                leaves.answer(0)  # nobody, but its timer ends
        self._hurry.set()

    async def _run(self) -> None:
        try:
            while self._full or self._open is not None:
                if not self._full:
                    await self._due()
                if not self._full:
                    self._close_open("interval")
                if self._full:
                    await self._answer_all(self._full.popleft())
        except BaseException as error:
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        """The task was cancelled, as an application does with all its tasks: fail what waits, or it waits in vain."""
        self._close_open("close")
        while self._full:
            leaves = self._full.popleft()
            self._ended(leaves, good=False)
            leaves.fail(_withdrawn(error), leaves.count)

    async def _due(self) -> None:
        """Wait until the open batch is to be closed."""
        self._hurry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._closes_at):
                await self._hurry.wait()

    async def _answer_all(self, leaves: Leaves) -> None:
        give: Callable[[int], bool]
        try:
            await self._have_signed(leaves)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not leave the callers waiting
            self._ended(leaves, good=False)
            give = partial(leaves.fail, error)
        except BaseException as error:
            self._ended(leaves, good=False)
            leaves.fail(_withdrawn(error), leaves.count)
            raise
        else:
            self._ended(leaves, good=True)
            give = leaves.answer
        try:
            while give(_SLICE):  # noqa: ASYNC110  # to give the event loop its turn
                await asyncio.sleep(0)
        except BaseException:
            while give(_SLICE):
                pass
            raise

    def _ended(self, leaves: Leaves, *, good: bool) -> None:
        self.figures.closed_waiting -= leaves.count
        if good:
            self.figures.messages += leaves.count
            self.figures.times.add(leaves.age_ns)
        else:
            self.figures.failed += 1

    async def _have_signed(self, leaves: Leaves) -> None:
        text, place, left = await self._bound(leaves)
        more = {"first": place.first, "count": leaves.count, **_who_asked(leaves)}
        extra = audit_extra(**self._guard.shown(BATCH_ROOT, place), **more) if self._record.enabled else None
        receipt = await self._have(text, left, extra, None)
        try:
            _require_ed25519(receipt.public_key)
            note = signed(text, batch_proof.signer(text, receipt.public_key), receipt.signature)
            if self._kept is not None:
                await self._in_thread(self._keep, leaves, note)
        except HsmError as error:
            error.maybe_signed = True  # the root is, and may be in the file
            raise
        leaves.signed(note, receipt.key_id, receipt.public_key, receipt.audit_seq)

    async def _bound(self, leaves: Leaves) -> tuple[bytes, PayloadPlace, float]:
        """Number the messages, and bind the root. Returns its text and place, and the seconds that are left: those of
        the most patient caller, but no more than any request has by default, since the next batch waits for this one.
        """
        least, until = self._next, time.monotonic() + min(leaves.seconds_left, self._timeout / 1e9)
        while True:
            first, epoch = self._next, 0 if self._fleet is None else self._fleet.epoch
            last = first + leaves.count - 1
            if last > MOST_POSITION:
                full = f"the numbers of domain {self._guard.domain!r} are used up: {first} is the next"
                raise PolicyRefused(full, hint="Name another policy.domain.")
            root = await self._in_thread(leaves.build, first, self._rules.blind)
            left = min(leaves.seconds_left, until - time.monotonic())
            text = batch_proof.checkpoint(self._guard.domain, epoch, leaves.count, root, first, time.time_ns())
            try:
                if left <= 0:
                    raise DeadlineExceeded("the batch was not signed in time", maybe_signed=False)
                place, left = await self._guard.bind_own(BATCH_ROOT, text, first, last, epoch, left)
            except NotNext as moved:
                if moved.next < least:
                    raise moved.behind(least) from None
                self._next = moved.next
            except HsmError as error:
                self._record.failure("sign", text, error)
                raise
            else:
                self._next = first + leaves.count
                return text, place, left

    def _keep(self, leaves: Leaves, note: bytes) -> None:
        if self._kept is not None:
            self._kept.keep(leaves.first, note, leaves.leaves(), leaves.callers())

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def hurry(self) -> None:
        """As KeyManager.hurry_batches."""
        if self._open is not None and not self._full:
            self._close_open("close")

    async def close(self) -> None:
        """Take no more messages, and answer those that were taken. Idempotent."""
        self._closing = True
        self._close_open("close")
        await self._signing.finish()
        self._thread.shutdown(wait=False)


class NoBatches:
    """In the place of Batches, where there are none. `check`: Lifecycle.check."""

    figures: None = None

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    async def sign(self, message: Any, timeout: float | None, kind: str | None) -> BatchedSignature:
        """Raise BadArgument."""
        self.begin(message, timeout, kind)
        raise AssertionError

    async def sign_many(self, messages: list[Any], timeout: float | None, kind: str | None) -> list[BatchedSignature]:
        """Raise BadArgument."""
        self.begin(messages, timeout, kind)
        raise AssertionError

    def begin(self, _message: Any, _timeout: float | None, _kind: str | None) -> None:
        """Raise BadArgument."""
        self._check()
        raise BadArgument(
            f'the policy does not list "{BATCH_ROOT}", so no batch is signed',
            hint=f'Add "{BATCH_ROOT}" to policy.kinds; see docs/BATCHING.md.',
        )

    def hurry(self) -> None:
        """There is nothing to hurry."""

    async def close(self) -> None:
        """There is nothing to close."""


AnyBatches = Batches | NoBatches


def _who_asked(leaves: Leaves) -> dict[str, Any]:
    """Who had messages in a batch, and how many, for the record of its root. Empty if nobody says."""
    counts: Counter[str] = Counter()
    for caller, count in leaves.callers():
        if caller is not None:
            counts[caller] += count
    shown = [{"caller": caller, "count": count} for caller, count in counts.most_common(_CALLERS)]
    return {"callers": shown} if shown else {}


def _withdrawn(error: BaseException) -> RequestCancelled:
    return RequestCancelled(f"the batch was given up: {type(error).__name__}")


def _require_ed25519(public_key: bytes) -> None:
    if len(public_key) != 32:
        raise AlgorithmUnsupported("the root of a batch is signed with Ed25519, and the key is of another algorithm")
