"""Signing without a coroutine, for whoever takes many answers by callbacks: `hsmcore gateway`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hsmcore.audit.record import extra as audit_extra
from hsmcore.base.receipt import Signed
from hsmcore.errors import EngineClosed, HsmError
from hsmcore.manager.path import SigningPath
from hsmcore.manager.policy.guard import refuse_claims
from hsmcore.manager.recording import AuditNotes


class Begun:
    """A request that a member has. Belongs to the event loop.

    `asked` is done when the member has answered; then call `outcome`, once. To give the request up, cancel `asked` and
    call `abandon`.
    """

    __slots__ = ("_about", "_error", "_extra", "_message", "_path", "_record", "asked")

    def __init__(
        self,
        path: SigningPath,
        record: AuditNotes,
        message: Any,
        extra: bytes | None,
        asked: asyncio.Future[Any],
        about: Any,
    ) -> None:
        self._path, self._record, self._message, self._extra = path, record, message, extra
        self.asked, self._about = asked, about
        self._error: HsmError | None = None

    def outcome(self) -> Signed | None:
        """Return the signature. None: the member has failed, and `go_on` asks others. Raises HsmError."""
        try:
            return self._path.answered(self.asked, self._about)
        except HsmError as error:
            if error.attempt is None:
                self._failed(error)
                raise
            self._error = error
            return None

    async def go_on(self) -> Signed:
        """Sign with another member. Raises HsmError."""
        assert self._error is not None  # noqa: S101  # for the type checker: after an `outcome` of None
        try:
            return await self._path.go_on(self._error, self._extra, self._about)
        except HsmError as error:
            self._failed(error)
            raise

    def abandon(self) -> None:
        """No answer is wanted any more. A message that may have been signed stays bound to its key."""
        self._path.abandon(self.asked, self._message)

    def _failed(self, error: HsmError) -> None:
        if not self._path.answers_recorded:
            self._record.failure("sign", self._message, error)


def begin(
    path: SigningPath,
    passes: Callable[..., bool] | None,
    record: AuditNotes,
    message: bytes,
    timeout: float | None,
    kind: str | None,
    position: int | None,
    only: bytes | None,
) -> Begun | None:
    """As KeyManager.submit. `passes`: the policy's fast way."""
    extra = audit_extra() if record.enabled else None
    try:
        if passes is not None:
            if not passes(message, kind, position):
                return None
        elif kind is not None or position is not None:
            refuse_claims(kind, position)
        asked = path.ask(message, timeout, extra, only)
    except HsmError as error:
        if not isinstance(error, EngineClosed):  # then the log may be sealed already
            record.failure("sign", message, error)
        raise
    return None if asked is None else Begun(path, record, message, extra, *asked)
