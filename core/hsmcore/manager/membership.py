"""A key manager in a fleet: how it joins, whom it tells, and the path whose answers wait for the fleet's database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from hsmcore._native import Lease, Waiter
from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.log import get_logger
from hsmcore.base.receipt import Receipt
from hsmcore.config import Config, KeyManagerConfig
from hsmcore.errors import HsmError
from hsmcore.failover.path import Ask, SigningPath, Way
from hsmcore.manager.leased import FleetWay, LeasedWay
from hsmcore.manager.recording import AuditNotes

if TYPE_CHECKING:
    from hsmcore.fleet.entry import Tell
    from hsmcore.fleet.membership import Membership

EVENT: Final = "fleet"
_LOST: Final = "fleet-lost"


async def join(config: Config) -> Membership | None:
    """Enter the fleet of a configuration; None: it has none. As Membership.open."""
    rules = config.key_manager
    if rules.fleet is None:
        return None
    from hsmcore.fleet.membership import Membership

    return await Membership.open(rules.fleet, config.state_secret, rules.where)


def telling(audit: AuditLog, events: Events) -> Tell:
    """Return what records a fleet's events, logs them, and tells the application."""

    def tell(record: str, **details: Any) -> None:
        log = get_logger()
        if record:
            audit.note(record, result="error" if record == _LOST else "ok", **details)
        (log.warning if record == _LOST or details["state"] == "doubtful" else log.info)(
            EVENT, record=record, **details
        )
        events.emit(EVENT, record=record, **details)

    return tell


def lease_of(fleet: Membership | None) -> Lease | None:
    """Return what answers to callers are handed out under; None: each host hands out what has no position."""
    return None if fleet is None or fleet.unordered == "any" else fleet.lease


def confirmed(path: SigningPath, fleet: Membership | None, rules: KeyManagerConfig, record: AuditNotes) -> Way:
    """Return the path itself; in a fleet, a way whose answers wait for the lease, or with `unordered` "strict" for the
    database."""
    if fleet is None or fleet.unordered == "any":
        return path
    if fleet.unordered == "lease":
        return LeasedWay(path, fleet, rules.request_timeout_ms / 1e3, record)
    return ConfirmedWay(path, fleet, rules.request_timeout_ms / 1e3, record)


class ConfirmedWay(FleetWay):
    """The way of signatures that are handed out once the database has said, after they were made, that the epoch is
    this host's. A signature that is not confirmed in time stays unseen, and its message bound to its key."""

    def __init__(self, path: SigningPath, fleet: Membership, default_timeout: float, record: AuditNotes) -> None:
        super().__init__(path, default_timeout, record)
        self._fleet, self.submit, self.receipt = fleet, self._submit, self._receipt
        self._begun = 0
        """Signatures of `submit` that are being made, and are confirmed next."""
        self._unawaited: set[asyncio.Future[Receipt]] = set()
        """Requests of `ask` whose task has not taken its first step."""

    def _submit(self, message: object, timeout: float | None, _key: int, extra: bytes | None) -> Awaitable[bytes]:
        return _signature_of(self._receipt(message, timeout, _key, extra))

    def _receipt(self, message: object, timeout: float | None, _key: int, extra: bytes | None) -> Awaitable[Receipt]:
        """What the members refuse is raised here: nothing was submitted."""
        until = self._until(monotonic(), timeout)
        return self._signed(message, self._path.ask(Ask(message, timeout, extra)), until)

    def ask(self, asked: Ask, _waiter: Waiter | None = None) -> asyncio.Future[Receipt]:
        """As Way. The answer is looked at here before it is handed out."""
        until = self._until(monotonic(), asked.timeout)
        future = self._path.ask(asked)
        self._unawaited.add(future)
        task = asyncio.get_running_loop().create_task(self._signed(asked.message, future, until))
        task.add_done_callback(lambda _: self._drop(future, asked.message))
        return task

    def _drop(self, asked: asyncio.Future[Receipt], message: Any) -> None:
        """A task that is cancelled before its first step never gives its request up."""
        if asked in self._unawaited:
            self._unawaited.discard(asked)
            self._path.abandon(asked, message)

    async def _signed(self, message: Any, asked: asyncio.Future[Receipt], until: float) -> Receipt:
        self._unawaited.discard(asked)
        self._begun += 1
        try:
            receipt = await asked
        except asyncio.CancelledError:
            self._path.abandon(asked, message)
            raise
        finally:
            self._begun -= 1
        try:
            await self._confirm(until)
        except BaseException as error:
            self._path.keep(message, receipt.public_key)  # its caller does not get it
            self._failed(message, error)
            raise
        return receipt

    def abandon(self, asked: Any, message: Any) -> None:
        """`_signed` does it."""
        del message
        if isinstance(asked, asyncio.Task):
            asked.cancel()

    async def submit_many(
        self,
        messages: Sequence[Any],
        timeout: float | None,
        return_exceptions: bool,
        extra: bytes | None,
        only: bytes | None = None,
    ) -> list[Any]:
        until = self._until(monotonic(), timeout)
        answers = await self._path.submit_many(messages, timeout, return_exceptions, extra, only)
        if not any(isinstance(answer, bytes) for answer in answers):
            return answers
        try:
            await self._confirm(until)
        except BaseException as error:
            for message, answer in zip(messages, answers, strict=True):
                if isinstance(answer, bytes):
                    signed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
                    signed.set_result(answer)
                    self._path.abandon(signed, message)  # it says under which key
                    self._failed(message, error)
            if not return_exceptions or not isinstance(error, HsmError):
                raise
            return [error if isinstance(answer, bytes) else answer for answer in answers]
        return answers

    async def _confirm(self, until: float) -> None:
        try:
            await self._fleet.confirm(until, self._begun)
        except HsmError as error:
            error.maybe_signed = True
            raise


async def _signature_of(receipt: Awaitable[Receipt]) -> bytes:
    return (await receipt).signature
