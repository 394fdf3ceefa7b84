"""One operation of AWS KMS: sign, send, retry where that can help, and parse the answer."""

from __future__ import annotations

import asyncio
import copy
import random
import time
from collections.abc import Callable
from typing import Any, Final

import orjson

from hsmcore.errors import HsmError, error_of
from hsmcore.members.kms.errors import failure, row_for
from hsmcore.members.kms.http import Answer, ConnectFailed, ConnectionLost, HttpPool
from hsmcore.members.kms.sigv4 import Credentials, Signer

TARGET: Final = "TrentService."
PAUSE_FIRST: Final = 0.02
PAUSE_MOST: Final = 1.0
LOST: Final = "ConnectionLost"
LOST_MOST: Final = 3
"""New connections of one call that may end without an answer; after that KMS counts as unreachable."""
REFUSED_SECONDS: Final = 5.0
"""Refused credentials are presented again after this time: a clock or an account may have been put right."""
NOT_REPEATED: Final = frozenset({"CreateKey", "CreateAlias"})
"""Operations that are not idempotent: retried only if KMS says that it did nothing."""


class KmsClient:
    """Calls KMS over a pool. `call` retries until it succeeds, fails for good or is cancelled, so give it a deadline.

    `lost` is called when no connection can be made, `retried` with the name of each error that is retried, `refused`
    when credentials are refused. They are presented again after REFUSED_SECONDS; `credentials` may be replaced at any
    time, which ends that. The error of a signature that KMS may have made has `maybe_signed`.
    """

    def __init__(
        self, pool: HttpPool, signer: Signer, credentials: Credentials, member: str, hint: str | None = None
    ) -> None:
        self._pool, self._signer, self._member, self._hint = pool, signer, member, hint
        self.credentials = credentials
        self._refused: tuple[Credentials, HsmError, float] | None = None
        self.lost: Callable[[], None] = lambda: None
        self.retried: Callable[[str], None] = lambda _name: None
        self.refused: Callable[[], None] = lambda: None

    async def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to an operation. Raises HsmError."""
        body = orjson.dumps(request)
        pauses = lost = 0
        unsure = False  # whether an earlier attempt may have signed
        while True:
            try:
                outcome = await self._attempt(operation, body)
            except ConnectionLost as error:
                unsure |= error.sent and operation == "Sign"
                if error.kept:
                    self.retried(LOST)
                    continue  # the number of kept connections is bounded
                lost += 1
                if lost == LOST_MOST or operation in NOT_REPEATED:
                    raise self._unreachable(operation, f"connection lost: {error}", unsure) from None
                outcome = LOST
            except ConnectFailed as error:
                raise self._unreachable(operation, str(error), unsure) from None
            except HsmError as error:
                error.maybe_signed |= unsure
                raise
            if isinstance(outcome, dict):
                return outcome
            self.retried(outcome)
            # Full jitter, so that clients that were throttled together do not retry together.
            await asyncio.sleep(random.uniform(0, min(PAUSE_FIRST * 2.0**pauses, PAUSE_MOST)))  # noqa: S311
            pauses += 1

    async def _attempt(self, operation: str, body: bytes) -> dict[str, Any] | str:
        """Return the answer, or the name of an error that a retry may overcome."""
        credentials = self._presentable()
        head = self._signer.head(credentials, TARGET + operation, body)
        # An operation that must not be repeated gets a new connection, which the peer has no reason to close.
        answer = await self._pool.post(head + body, fresh=operation in NOT_REPEATED)
        if answer.status == 200:
            return self._content(operation, answer)
        name = _error_name(answer.body)
        row = row_for(name, answer.status)
        throttled = row.status == "BUSY" and answer.status < 500
        if row.then == "retry" and (throttled or operation not in NOT_REPEATED):
            return name
        refusal = failure(row, name or f"HTTP {answer.status}", operation, self._member)
        if row.then == "refused":
            self._refused = credentials, copy.copy(refusal), time.monotonic() + REFUSED_SECONDS
            self.refused()
        raise refusal

    def _presentable(self) -> Credentials:
        if self._refused is not None:
            refused, error, until = self._refused
            if refused == self.credentials and time.monotonic() < until:
                raise copy.copy(error)
            self._refused = None
        return self.credentials

    def _content(self, operation: str, answer: Answer) -> dict[str, Any]:
        try:
            content = orjson.loads(answer.body or b"{}")
        except orjson.JSONDecodeError:
            content = b""
        if content is None:  # an operation without a result
            content = {}
        if not isinstance(content, dict):
            raise self._down(operation, "the answer is not a JSON object", operation == "Sign")
        return content

    def _unreachable(self, operation: str, detail: str, unsure: bool) -> HsmError:
        self.lost()
        return self._down(operation, detail, unsure)

    def _down(self, operation: str, detail: str, unsure: bool) -> HsmError:
        error = error_of("TOKEN_LOST", call=f"kms:{operation}", detail=detail, member=self._member, hint=self._hint)
        error.maybe_signed = unsure
        return error


def _error_name(body: bytes) -> str:
    """Return the error's name in an answer of AWS JSON 1.1: `__type` without namespace and URI; "" if there is none."""
    try:
        named = orjson.loads(body)["__type"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        named = None
    return named.rpartition("#")[2].partition(":")[0][:80] if isinstance(named, str) else ""
