"""One signature of the HSM for a whole batch of messages: they are collected, and the root of their tree is signed.

A batch closes at an age or a size. While its root is being bound and signed, the next one collects; one root is signed
at a time, so a batch lasts as long as the signature before it. Its messages are numbered when it closes, behind all
that the store has numbered: the process that has a range bound has it for its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from hsmcore._native import BatchedSignature, Leaves, timeout_ns
from hsmcore.audit import batch_proof
from hsmcore.audit.leaves import LeafFiles
from hsmcore.audit.note import signed
from hsmcore.audit.record import extra as audit_extra
from hsmcore.config import Batching, KeyManagerConfig
from hsmcore.config.policy import BATCH_ROOT
from hsmcore.errors import AlgorithmUnsupported, BadArgument, DeadlineExceeded, EngineClosed, HsmError, QueueFull
from hsmcore.fleet.membership import Membership
from hsmcore.manager.lifecycle import a_turn
from hsmcore.manager.path import SigningPath
from hsmcore.manager.recording import Recorder
from hsmcore.policy import Guard
from hsmcore.policy.watermark import NotNext, Place
from hsmcore.receipt import Receipt
from hsmcore.state import StoreNotGenuine

T = TypeVar("T")
_WAITING: Final = 4
"""Batches that may wait for the one before them."""
_SLICE: Final = 1024
"""Callers that are answered before the event loop has its turn."""
Answer = Callable[..., Awaitable[Receipt]]
"""KeyManager._answer."""


class Batches:
    """The batches of an open key manager. Belongs to its event loop."""

    def __init__(
        self,
        rules: KeyManagerConfig,
        guard: Guard,
        check: Callable[[], None],
        path: Callable[[], SigningPath],
        answer: Answer,
        record: Recorder,
        fleet: Membership | None,
    ) -> None:
        self._rules = rules.batching or Batching()
        self._guard, self._check, self._path, self._answer = guard, check, path, answer
        self._record, self._fleet = record, fleet
        self._most = self._rules.max_leaves
        self._most_bytes, self._timeout = rules.max_message_bytes, rules.request_timeout_ms * 1_000_000
        self._kept = None if self._rules.keep_leaves is None else LeafFiles(Path(self._rules.keep_leaves))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hsmcore-batch")
        self._open: Leaves | None = None
        self._closes_at = 0.0
        self._full: deque[Leaves] = deque()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._next = 0
        """Where the next batch begins, as far as this process knows."""

    @classmethod
    def of(cls, rules: KeyManagerConfig, guard: Guard | None, check: Callable[[], None], *parts: Any) -> AnyBatches:
        """Return what signs batches, if the policy lists their roots. Raises AlgorithmUnsupported."""
        if guard is None or not guard.batches:
            return NoBatches(check)
        made = cls(rules, guard, check, *parts)
        _require_ed25519(made._path().version.public_key)
        return made

    async def sign(self, message: Any, timeout: float | None, kind: str | None) -> BatchedSignature:
        """As KeyManager.sign_batched."""
        try:
            left = self._timeout if timeout is None else timeout_ns(timeout)
            leaves = self._open or self._begin()
            signature = leaves.add(self._guard.gate, message, kind, left, self._most_bytes)
            if signature is None:
                signature = await self._judged(message, timeout, kind)
            elif leaves.count >= self._most:
                self._close_open()
        except HsmError as error:
            self._record.failure("sign-batched", message, error)
            await a_turn(error)
            raise
        return await signature

    async def _judged(self, message: Any, timeout: float | None, kind: str | None) -> asyncio.Future[BatchedSignature]:
        """The way of a message that is not signed without further ado. Returns its future, which is done."""
        with self._guard.admitted_leaf(message, kind) as admission:
            left = await admission.begin(timeout)
            leaves = self._open or self._begin()
            left_ns = self._timeout if left is None else timeout_ns(left)
            signature = leaves.add_judged(admission.message, admission.kind, left_ns, self._most_bytes)
            if leaves.count >= self._most:
                self._close_open()
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
        self._open, self._closes_at = Leaves(loop), loop.time() + self._rules.interval_ms / 1e3
        if self._task is None:
            self._task = loop.create_task(self._run(), context=Context())  # a root is no caller's
        return self._open

    def _close_open(self) -> None:
        if self._open is not None:
            self._full.append(self._open)
        self._open = None
        self._hurry.set()

    async def _run(self) -> None:
        try:
            while self._full or self._open is not None:
                if not self._full:
                    await self._due()
                if not self._full:
                    self._close_open()
                leaves = self._full.popleft()
                if leaves.count:
                    await self._answer_all(leaves)
        finally:
            self._task = None

    async def _due(self) -> None:
        """Wait until the open batch is to be closed."""
        self._hurry.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._closes_at):
                await self._hurry.wait()

    async def _answer_all(self, leaves: Leaves) -> None:
        give: Callable[[int], bool] = leaves.answer
        try:
            await self._have_signed(leaves)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not leave the callers waiting
            give = partial(leaves.fail, error)
        while give(_SLICE):  # noqa: ASYNC110  # to give the event loop its turn
            await asyncio.sleep(0)

    async def _have_signed(self, leaves: Leaves) -> None:
        text, place, left = await self._bound(leaves)

        async def submit(_extra: bytes | None, _admitted: object) -> Awaitable[Receipt]:
            shown = {"kind": BATCH_ROOT, "domain": place.domain, "position": place.position}
            extra = audit_extra(**shown, first=place.first, count=leaves.count) if self._record.enabled else None
            return self._path().submit_with_receipt(text, left, False, extra)

        receipt = await self._answer("sign", text, submit)
        _require_ed25519(receipt.public_key)
        note = signed(text, batch_proof.signer(text, receipt.public_key), receipt.signature)
        if self._kept is not None:
            await self._in_thread(self._keep, leaves, note)
        leaves.signed(note, receipt.key_id, receipt.public_key, receipt.audit_seq)

    async def _bound(self, leaves: Leaves) -> tuple[bytes, Place, float]:
        """Number the messages, and bind the root. Returns its text and place, and the seconds that are left."""
        least = self._next
        while True:
            first, epoch = self._next, 0 if self._fleet is None else self._fleet.epoch
            root = await self._in_thread(leaves.build, first, self._rules.blind)
            left = leaves.seconds_left
            text = batch_proof.checkpoint(self._guard.domain, epoch, leaves.count, root, first, time.time_ns())
            try:
                if not left:
                    raise DeadlineExceeded("the batch was not signed in time")
                place, left = await self._guard.bind_root(text, first, epoch, left)
            except NotNext as moved:
                if moved.next < least:
                    raise StoreNotGenuine(f"the state store went back behind {least}, which was bound here") from None
                self._next = moved.next
            except HsmError as error:
                self._record.failure("sign", text, error)
                raise
            else:
                self._next = first + leaves.count
                return text, place, left

    def _keep(self, leaves: Leaves, note: bytes) -> None:
        if self._kept is not None:
            self._kept.keep(leaves.first, note, leaves.leaves())

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def close(self) -> None:
        """Take no more messages, and answer those that were taken. Idempotent."""
        self._closing = True
        self._close_open()
        while self._task is not None:
            await asyncio.wait({self._task})
        self._thread.shutdown(wait=False)


class NoBatches:
    """In the place of Batches, where there are none. `check`: Lifecycle.check."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    async def sign(self, _message: Any, _timeout: float | None, _kind: str | None) -> BatchedSignature:
        """Raise BadArgument."""
        self._check()
        raise BadArgument(
            f'the policy does not list "{BATCH_ROOT}", so no batch is signed',
            hint=f'Add "{BATCH_ROOT}" to policy.kinds; see docs/BATCHING.md.',
        )

    async def close(self) -> None:
        """There is nothing to close."""


AnyBatches = Batches | NoBatches


def _require_ed25519(public_key: bytes) -> None:
    if len(public_key) != 32:
        raise AlgorithmUnsupported("the root of a batch is signed with Ed25519, and the key is of another algorithm")
