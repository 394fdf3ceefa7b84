"""The way of a request while all is well: one native call, which picks a member and submits. What follows when its
answer is an error, or its caller leaves, is decided here and goes on in router.py."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from hsmcore._native import freeze, verify
from hsmcore.errors import HsmError, InvalidMessageType
from hsmcore.failover.breaker import WITHHELD, may_have_signed
from hsmcore.failover.request import Answer, Request
from hsmcore.failover.router import Router


class ShortWay:
    """As SigningPath's first half. Belongs to the event loop."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._levels = router.levels
        self._submit_with_receipt = router.routes.submit_with_receipt
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
        if isinstance(found, Answer):
            return found  # of the long way
        signature, seq, cached, endpoint, index = found
        return Answer(signature, endpoint, endpoint.version_at(index), cached, seq)

    async def again(self, error: HsmError, extra: bytes | None) -> Answer:
        """Go on with a request whose attempt ended with this error. Raises the error if no other member helps."""
        attempt, error.attempt = error.attempt, None
        if attempt is None:
            raise error
        endpoint, index, deadline, message, taken = attempt
        request = Request(message, deadline, allow_other_key=False, extra=extra)
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
            if may_have_signed(error) or (taken and isinstance(error, WITHHELD)):
                self._router.bind((message,), endpoint.version_at(index).public_key)
        elif error is None:
            result = answer.result()
            signature, message = result[0] if isinstance(result, tuple) else result, freeze(message)
            # No answer keeps who signed it, for the few whose caller leaves now: the signature tells.
            keys = {version.public_key: version for one in self._levels.members for version in one.versions.values()}
            for version in keys.values():
                if verify(version.algorithm, version.public_key, message, signature):
                    self._router.bind((message,), version.public_key)
