"""A key manager in a fleet: how it joins, whom it tells, and the path whose answers wait for the fleet's database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.log import get_logger
from hsmcore.base.receipt import Receipt
from hsmcore.config import Config, KeyManagerConfig
from hsmcore.errors import HsmError
from hsmcore.manager.path import SigningPath
from hsmcore.manager.recording import AuditNotes
from hsmcore.members.base import Submit

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


def confirmed(path: SigningPath, fleet: Membership | None, rules: KeyManagerConfig, record: AuditNotes) -> SigningPath:
    """Return the path itself, or one whose answers wait for the database (`fleet.unordered`: "strict")."""
    if fleet is None or not fleet.strict:
        return path
    return cast("SigningPath", ConfirmedPath(path, fleet, rules.request_timeout_ms / 1e3, record))


class ConfirmedPath:
    """A path whose signatures are handed out once the database has said, after they were made, that the epoch is this
    host's. A signature that is not confirmed in time stays unseen, and its message bound to its key. As SigningPath."""

    def __init__(self, path: SigningPath, fleet: Membership, default_timeout: float, record: AuditNotes) -> None:
        self._path, self._fleet, self._default, self._record = path, fleet, default_timeout, record
        self._begun = 0
        """Signatures of `submit` that are being made, and are confirmed next."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path, name)

    def ask(self, *_request: object) -> None:
        """The database must be awaited for each answer."""

    @property
    def submit(self) -> Submit:
        return self._confirming(self._path.submit)

    @property
    def submit_any_key(self) -> Submit:
        return self._confirming(self._path.submit_any_key)

    def _confirming(self, submit: Submit) -> Submit:
        def asked(message: object, timeout: float | None, key: int, extra: bytes | None) -> Awaitable[bytes]:
            until = self._until(timeout)
            return self._signed(message, submit(message, timeout, key, extra), until)

        return cast("Submit", asked)

    async def _signed(self, message: Any, asked: bytes | Awaitable[bytes], until: float) -> bytes:
        self._begun += 1
        try:
            signature = asked if isinstance(asked, bytes) else await asked
        except asyncio.CancelledError:
            self._path.abandon(asked, message)
            raise
        finally:
            self._begun -= 1
        try:
            await self._fleet.confirm(until, self._begun)
        except BaseException as error:
            self._withhold(message, signature, error)
            raise
        return signature

    def abandon(self, answer: Any, message: Any) -> None:
        """`_signed` did it."""
        if not asyncio.iscoroutine(answer):
            self._path.abandon(answer, message)

    async def again(self, error: HsmError, extra: bytes | None) -> bytes:
        if error.attempt is None:
            return await self._path.again(error, extra)  # raises it
        _, _, deadline, message, _ = error.attempt
        signature = await self._path.again(error, extra)
        await self._confirm([(message, signature)], deadline / 1e9)
        return signature

    async def submit_many(
        self,
        messages: Sequence[Any],
        timeout: float | None,
        return_exceptions: bool,
        extra: bytes | None,
        only: bytes | None = None,
    ) -> list[Any]:
        until = self._until(timeout)
        answers = await self._path.submit_many(messages, timeout, return_exceptions, extra, only)
        signed = [
            (message, answer) for message, answer in zip(messages, answers, strict=True) if isinstance(answer, bytes)
        ]
        try:
            if signed:
                await self._confirm(signed, until)
        except HsmError as error:
            if not return_exceptions:
                raise
            return [error if isinstance(answer, bytes) else answer for answer in answers]
        return answers

    async def submit_with_receipt(
        self,
        message: Any,
        timeout: float | None,
        allow_other_key: bool,
        extra: bytes | None,
        only: bytes | None = None,
    ) -> Receipt:
        until = self._until(timeout)
        receipt = await self._path.submit_with_receipt(message, timeout, allow_other_key, extra, only)
        await self._confirm([(message, receipt.signature)], until)
        return receipt

    def _until(self, timeout: Any) -> float:
        valid = type(timeout) in (int, float)  # what is not, the engine refuses
        return monotonic() + (timeout if valid else self._default)

    async def _confirm(self, signed: Sequence[tuple[Any, bytes]], until: float) -> None:
        try:
            await self._fleet.confirm(until, self._begun)
        except BaseException as error:
            for message, signature in signed:
                self._withhold(message, signature, error)
            raise

    def _withhold(self, message: Any, signature: bytes, error: BaseException) -> None:
        """The signature exists and its caller does not get it, as when the wait for it had ended."""
        if isinstance(error, HsmError):
            error.maybe_signed = True
        asked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        asked.set_result(signature)
        self._path.abandon(asked, message)
        if isinstance(error, HsmError) and self._path.answers_recorded:  # else the key manager records it
            self._record.failure("sign", message, error)
