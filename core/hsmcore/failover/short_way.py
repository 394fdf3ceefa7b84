"""The way of a request while all is well: one native call, which picks a member and submits. What follows when its
answer is an error, or its caller leaves, is decided here and goes on in router.py."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from hsmcore._native import freeze, verify
from hsmcore.base.receipt import Signed
from hsmcore.errors import HsmError, InvalidMessageType
from hsmcore.failover.breaker import WITHHELD
from hsmcore.failover.policy import Attempts
from hsmcore.failover.request import Answer, Request
from hsmcore.failover.router import Router


class ShortWay:
    """As SigningPath's first half. Belongs to the event loop."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._levels = router.levels
        self._submit_with_receipt = router.routes.submit_with_receipt
        self._ask = router.routes.ask
        self.submit = router.routes.submit

    async def answer(self, message: Any, timeout: float | None, extra: bytes | None) -> Answer:
        """Sign; the answer names member and key."""
        try:
            asked = self._submit_with_receipt(message, timeout, extra)
            try:
                found = await asked
            except asyncio.CancelledError:
                self.abandon(asked, message)
                raise
        except HsmError as error:
            return await self.again(error, extra)
        return _answer_of(found)

    def ask(
        self, message: Any, timeout: float | None, extra: bytes | None, only: bytes | None
    ) -> tuple[asyncio.Future[Any], bytes | None] | None:
        """As SigningPath.ask."""
        if only is not None and any(one.key_version.public_key != only for one in self._levels.sharing):
            return None
        try:
            asked = self._ask(message, timeout, extra)
        except HsmError as error:
            if error.attempt is None:
                raise
            asked = self.again(error, extra, only)
        else:
            if asyncio.iscoroutine(asked) and only is not None:
                asked.close()  # of the long way, which would not know of `only`
                return None
        return asyncio.ensure_future(asked), only

    def answered(self, asked: asyncio.Future[Any], _only: bytes | None) -> Signed:
        """As SigningPath.answered."""
        return _signed(_answer_of(asked.result()))

    async def go_on(self, error: HsmError, extra: bytes | None, only: bytes | None) -> Signed:
        """As SigningPath.go_on."""
        return _signed(await self.again(error, extra, only))

    async def again(self, error: HsmError, extra: bytes | None, only: bytes | None = None) -> Answer:
        """Go on with a request whose attempt ended with this error. Raises the error if no other member helps. `only`:
        as SigningPath.submit_many."""
        attempt, error.attempt = error.attempt, None
        if attempt is None:
            raise error
        endpoint, index, deadline, message, taken = attempt
        request = Request(message, deadline, allow_other_key=False, extra=extra, attempts=Attempts(only=only))
        key = endpoint.version_at(index).public_key
        return await self._router.resume(request, endpoint, key, error, taken=taken)

    def abandon(self, answer: Any, message: Any) -> None:
        """The caller has left: no other key may sign the message, unless nobody has begun with it."""
        for endpoint in self._levels.members:
            asked = endpoint.asked_for(answer)
            if asked is not None:
                index, message = asked
                if endpoint.abandon(answer):
                    self._router.bind((message,), endpoint.version_at(index).public_key)
                return
        if isinstance(answer, asyncio.Future) and answer.done() and not answer.cancelled():
            with suppress(InvalidMessageType):  # a buffer that was released since
                self._bind_answered(answer, message)

    def _bind_answered(self, answer: asyncio.Future[Any], message: Any) -> None:
        """The answer was there when its caller left."""
        error = answer.exception()
        if isinstance(error, HsmError) and error.attempt is not None:
            endpoint, index, _, message, taken = error.attempt
            if error.maybe_signed or (taken and isinstance(error, WITHHELD)):
                self._router.bind((message,), endpoint.version_at(index).public_key)
        elif error is None:
            result = answer.result()
            signature, message = result[0] if isinstance(result, tuple) else result, freeze(message)
            # No answer keeps who signed it, for the few whose caller leaves now: the signature tells.
            keys = {version.public_key: version for one in self._levels.members for version in one.versions.values()}
            for version in keys.values():
                if verify(version.algorithm, version.public_key, message, signature):
                    self._router.bind((message,), version.public_key)


def _answer_of(found: Any) -> Answer:
    if isinstance(found, Answer):
        return found  # of the long way
    signature, seq, cached, endpoint, index = found
    return Answer(signature, endpoint, endpoint.version_at(index), cached, seq)


def _signed(answer: Answer) -> Signed:
    key = answer.version
    return Signed(answer.signature, key.id, key.public_key, answer.endpoint.level_name, answer.audit_seq)
