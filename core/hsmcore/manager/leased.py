"""The way of signatures that are handed out under a fleet's lease: while that is late, and the epoch this host's as far
as is known, requests wait within their deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Final, Protocol, cast

from hsmcore._native import Lease, Waiter, timeout_ns
from hsmcore.base.receipt import Receipt
from hsmcore.base.scope import Scope
from hsmcore.errors import DeadlineExceeded, HsmError, NotHolder
from hsmcore.failover.path import Ask, SigningPath, Way
from hsmcore.manager.policy.wants import LEADS
from hsmcore.manager.recording import AuditNotes
from hsmcore.members.base import Submit, WithReceipt

_LOOK_SECONDS: Final = 0.01


class Leads(Protocol):
    """What may hold the epoch: hsmcore.fleet.membership."""

    @property
    def lease(self) -> Lease: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...


class LeasedWay(Way):
    """Asks the members again for what was refused, or withheld, since the lease was late. Not for what `ask` has
    submitted already. `default_timeout` in seconds. Belongs to the event loop."""

    waits = True

    def __init__(self, path: SigningPath, fleet: Leads, default_timeout: float, record: AuditNotes) -> None:
        self._path, self._default, self._record, self._fleet = path, default_timeout, record, fleet
        self.answers_recorded = path.answers_recorded
        self._waiting: set[asyncio.Future[None]] = set()
        self._scope = Scope()
        self._watching: asyncio.Task[None] | None = None

    @property
    def key_index(self) -> int:  # type: ignore[override]  # the path's own, which changes with its key
        return self._path.key_index

    def keep(self, message: Any, public_key: bytes) -> None:
        self._path.keep(message, public_key)

    def _until(self, begun: float, timeout: float | None) -> float:
        return begun + (self._default if timeout is None else timeout_ns(timeout) / 1e9)

    def _failed(self, message: Any, error: BaseException) -> None:
        if isinstance(error, HsmError) and self._path.answers_recorded:  # else the key manager records it
            self._record.failure("sign", message, error)

    # What comes while the lease is good costs no more than without a fleet.

    @property
    def submit(self) -> Submit:  # type: ignore[override]
        return self._path.submit

    @property
    def receipt(self) -> WithReceipt:  # type: ignore[override]
        return self._path.receipt

    async def again(
        self, receipt: bool, message: Any, timeout: float | None, extra: bytes | None, begun: float, late: NotHolder
    ) -> Any:
        def submit(left: float) -> Any:
            return (self.receipt if receipt else self.submit)(message, left, self.key_index, extra)

        return await self._again(submit, message, self._until(begun, timeout), late)

    async def _again(self, submit: Callable[[float], Any], message: Any, until: float, late: NotHolder) -> Any:
        while True:
            try:
                await self._good(until, late)
                signed = submit(max(until - monotonic(), 1e-3))
            except NotHolder as error:
                if self._leads:  # it was good for a moment
                    late = _knowing(error, late)
                    continue
                self._failed(message, error)
                raise
            except HsmError as error:
                self._failed(message, error)
                raise
            if type(signed) is bytes:
                return signed
            try:
                return await signed
            except asyncio.CancelledError:
                self._path.abandon(signed, message)
                raise
            except NotHolder as error:
                late = error

    def ask(self, asked: Ask, waiter: Waiter | None = None) -> asyncio.Future[Receipt]:
        begun = monotonic()
        try:
            return self._path.ask(asked, waiter)
        except NotHolder as error:
            if not self._leads:
                raise
            until = self._until(begun, asked.timeout)
            again = self._again(lambda left: self._path.ask(asked._replace(timeout=left)), asked.message, until, error)
            return self._scope.start(again)

    def abandon(self, asked: Any, message: Any) -> None:
        """`_again` does it for what it asks."""
        if isinstance(asked, asyncio.Task):
            asked.cancel()
        elif asyncio.isfuture(asked):
            self._path.abandon(asked, message)

    def submit_many(
        self,
        messages: Sequence[Any],
        timeout: float | None,
        return_exceptions: bool,
        extra: bytes | None,
        only: bytes | None = None,
    ) -> Awaitable[list[Any]]:
        until = self._until(monotonic(), timeout)

        def submit(places: Sequence[int], left: float | None) -> Awaitable[list[Any]]:
            return self._path.submit_many([messages[at] for at in places], left, return_exceptions, extra, only)

        late: NotHolder | None = None
        asked: Awaitable[list[Any]] | None = None
        try:
            asked = submit(range(len(messages)), timeout)
        except NotHolder as error:
            if not self._leads:
                raise
            late = error
        return self._many(asked, late, submit, messages, until, return_exceptions=return_exceptions)

    async def _many(
        self,
        asked: Awaitable[list[Any]] | None,
        late: NotHolder | None,
        submit: Callable[[Sequence[int], float], Awaitable[list[Any]]],
        messages: Sequence[Any],
        until: float,
        *,
        return_exceptions: bool,
    ) -> list[Any]:
        answers: dict[int, Any] = {}
        places: Sequence[int] = range(len(messages))
        while True:
            try:
                if asked is not None:
                    answers |= zip(places, await asked, strict=True)
                    places = [at for at in places if isinstance(answers[at], NotHolder)]
                    if not places:
                        return [answers[at] for at in range(len(messages))]
                    late = answers[places[0]]
            except NotHolder as error:
                late = error
            assert late is not None  # noqa: S101  # for the type checker
            try:
                await self._good(until, late)
                asked = submit(places, max(until - monotonic(), 1e-3))
            except NotHolder as error:
                if self._leads:  # it was good for a moment
                    asked, late = None, _knowing(error, late)
                    continue
                failed: HsmError = error
            except HsmError as error:
                failed = error
            else:
                continue
            for at in places:
                self._failed(messages[at], failed)
            if not return_exceptions or not answers:
                raise failed
            return [answers.get(at) if at not in places else failed for at in range(len(messages))]

    @property
    def _leads(self) -> bool:
        return self._fleet.state in LEADS

    async def _good(self, until: float, late: NotHolder) -> None:
        """Wait for the lease. Raises NotHolder once another host may hold the epoch, DeadlineExceeded at `until`."""
        if self._leads and not self._fleet.lease.is_over:
            return
        good: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(good)
        if self._watching is None or self._watching.done() or self._watching.cancelling():
            self._watching = self._scope.start(self._watch())
        try:
            async with asyncio.timeout(until - monotonic()):
                await good
        except TimeoutError:
            why = f"the fleet's lease was not confirmed in time: {self._fleet.reason or 'its renewal is late'}"
            raise DeadlineExceeded(why, maybe_signed=late.maybe_signed) from None
        finally:
            self._waiting.discard(good)
            if not self._waiting:
                self._watching.cancel()
        if not self._leads:
            raise _knowing(cast("NotHolder", self._fleet.lease.refusal()), late)

    async def _watch(self) -> None:
        while self._leads and self._fleet.lease.is_over:  # noqa: ASYNC110  # a renewal tells nobody
            await asyncio.sleep(_LOOK_SECONDS)
        waiting, self._waiting = self._waiting, set()
        for good in waiting:
            if not good.done():
                good.set_result(None)


def _knowing(error: NotHolder, before: NotHolder) -> NotHolder:
    """Return an error that says of the signature what the one before said."""
    error.maybe_signed = error.maybe_signed or before.maybe_signed
    return error
