"""One operation of AWS KMS: sign, send, retry where that can help, and parse the answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from hsmcore.base.log import get_logger
from hsmcore.errors import HsmError, error_of
from hsmcore.providers.kms.aws import Surroundings
from hsmcore.providers.kms.errors import BAD_SIGNATURE, failure, row_for
from hsmcore.providers.kms.http import ConnectFailed, ConnectionLost, HttpAnswer, HttpPool
from hsmcore.providers.kms.settings import AwsKmsSettings
from hsmcore.providers.kms.sigv4 import AwsCredentials, Signer

TARGET: Final = "TrentService."
PAUSE_FIRST: Final = 0.02
PAUSE_MOST: Final = 1.0
LOST: Final = "ConnectionLost"
LOST_MOST: Final = 3
"""New connections of one call that may end without an answer; after that KMS counts as unreachable."""
SKEW_SECONDS: Final = 60.0
"""A clock that is off by less is not why a request was refused: AWS allows five minutes."""
CATCH_UP_SECONDS: Final = 0.02
"""What a share makes up for, as much as an event loop is late now and then."""
NOT_REPEATED: Final = frozenset({"CreateKey", "CreateAlias"})
"""Operations that are not idempotent: retried only if KMS says that it did nothing."""


@dataclass(slots=True)
class Attempt:
    """The state of a signature for a caller, also after its call was cancelled."""

    unsigned: bool = True
    """Whether KMS has certainly made none: nothing was sent, or each try was throttled or its credentials refused."""


def connect(
    settings: AwsKmsSettings, surroundings: Surroundings, credentials: AwsCredentials, member: str
) -> KmsClient:
    """Make the client of a member. It sends nothing yet."""
    parts = urlsplit(surroundings.url)
    hint = "Check the network to the endpoint (endpointUrl, VPC endpoint, DNS, security group)."
    if surroundings.proxied:
        hint += " The environment names a proxy, which hsmcore does not use: signing needs a direct way."
    pool = HttpPool(surroundings.url, settings.connect_timeout_ms / 1e3, surroundings.tls)
    signer = Signer(surroundings.region, "kms", parts.netloc, parts.path or "/")
    share = None if settings.max_per_second is None else Share(settings.max_per_second)
    return KmsClient(pool, signer, credentials, member, hint, share)


class Share:
    """The requests in a second that are this member's; they wait in the order in which they came."""

    def __init__(self, per_second: int) -> None:
        self._gap = 1 / per_second
        self._next = 0.0
        self._turn = asyncio.Lock()

    async def turn(self) -> None:
        """Wait for the turn. A cancelled wait takes nothing from the share."""
        clock = asyncio.get_running_loop().time
        async with self._turn:
            await asyncio.sleep(max(0.0, self._next - clock()))
            self._next = max(self._next, clock() - CATCH_UP_SECONDS) + self._gap


class _Refused(Exception):
    """The credentials were refused, and the request waits. `error`: what it would fail with."""

    def __init__(self, error: HsmError) -> None:
        super().__init__()
        self.error = error


class KmsClient:
    """Calls KMS over a pool. `call` retries until it succeeds, fails for good or is cancelled, so give it a deadline.

    `lost` is called when no connection can be made, `retried` with the name of each error that is retried, `refused`
    when credentials are refused; `credentials` may be replaced at any time. `gives_way` is asked whether a signature
    that KMS has certainly not made is to fail, since another member can make it; else it waits here. `signs` is called
    with the first signature after that. The error of a signature that KMS may have made has `maybe_signed`.
    """

    def __init__(
        self,
        pool: HttpPool,
        signer: Signer,
        credentials: AwsCredentials,
        member: str,
        hint: str | None = None,
        share: Share | None = None,
    ) -> None:
        self._pool, self._signer, self._member, self._hint = pool, signer, member, hint
        self._share = share
        self.credentials = credentials
        self.ahead = 0.0
        """Seconds by which KMS's clock is ahead of this machine's, where that had a request refused; else 0."""
        self.requests: Counter[tuple[str, str]] = Counter()
        """Requests that were sent, by operation and outcome."""
        self._denials = 0
        """The number of consecutive refusals of the credentials."""
        self._asking = asyncio.Lock()
        """While they are refused, one request at a time asks."""
        self._asked_way = False
        self.lost: Callable[[], None] = lambda: None
        self.retried: Callable[[str], None] = lambda _name: None
        self.refused: Callable[[], None] = lambda: None
        self.gives_way: Callable[[HsmError], bool] = lambda _error: False
        self.signs: Callable[[], None] = lambda: None
        self.renews = False
        """Whether the SDK may have other credentials soon."""

    async def call(self, operation: str, request: dict[str, Any], attempt: Attempt | None = None) -> dict[str, Any]:
        """Return the answer to an operation. `attempt`: of a signature for a caller; without one, refused credentials
        are an error at once. Raises HsmError."""
        body = orjson.dumps(request)
        pauses = lost = 0
        unsure = False  # whether an earlier try may have signed
        tried = attempt or Attempt()
        while True:
            try:
                outcome = await self._in_turn(operation, body, tried, waits=attempt is not None)
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
            if attempt is not None and attempt.unsigned and self._gives_way(busy := self._busy(outcome, operation)):
                raise busy
            await self._pause(pauses)
            pauses += 1

    async def _in_turn(self, operation: str, body: bytes, tried: Attempt, *, waits: bool) -> dict[str, Any] | str:
        """As `_attempt`; where credentials are refused, `waits` until they are not."""
        try:
            if not waits or not self._denials:
                return await self._attempt(operation, body, tried)
        except _Refused as refusal:
            if not waits or (tried.unsigned and self._gives_way(refusal.error)):
                raise refusal.error from None
        async with self._asking:
            while self._denials:
                await self._pause(self._denials)
                try:
                    return await self._attempt(operation, body, tried)
                except _Refused as refusal:
                    if tried.unsigned and self._gives_way(refusal.error):
                        raise refusal.error from None
        return await self._in_turn(operation, body, tried, waits=waits)

    async def _pause(self, before: int) -> None:
        # Full jitter, so that clients that were throttled together do not retry together.
        await asyncio.sleep(random.uniform(0, min(PAUSE_FIRST * 2.0 ** min(before, 10), PAUSE_MOST)))  # noqa: S311

    def _gives_way(self, error: HsmError) -> bool:
        self._asked_way = True
        return self.gives_way(error)

    def _busy(self, name: str, operation: str) -> HsmError:
        return failure(row_for(name, 429), name, operation, self._member)

    async def _attempt(
        self, operation: str, body: bytes, tried: Attempt, *, corrected: bool = False
    ) -> dict[str, Any] | str:
        """Return the answer, or the name of an error that a retry may overcome. Raises _Refused for credentials."""
        if self._share is not None and operation == "Sign":
            await self._share.turn()
        before, ahead = tried.unsigned, self.ahead
        head = self._signer.head(self.credentials, TARGET + operation, body, time.time() + ahead)
        answer = await self._sent(operation, head + body, tried)
        if answer.status == 200:
            self.requests[operation, "ok"] += 1
            self._denials = 0
            if self._asked_way and operation == "Sign":
                self._asked_way = False
                self.signs()
            return self._content(operation, answer)
        tried.unsigned = before and answer.status < 500
        name = _error_name(answer.body)
        row = row_for(name, answer.status)
        throttled = row.status == "BUSY" and answer.status < 500
        outcome = "throttled" if throttled else "refused" if row.then == "refused" else "failed"
        self.requests[operation, outcome] += 1
        if row is BAD_SIGNATURE and not corrected and self._corrects_clock(answer.date, ahead):
            tried.unsigned = before
            return await self._attempt(operation, body, tried, corrected=True)
        if row.then == "refused":
            if not self._denials:
                get_logger().error("AWS KMS refuses the credentials", member=self._member, error=name)
            self._denials += 1
            self.refused()
            error = failure(row, name, operation, self._member)
            error.told_retryable = True if self.renews else None
            raise _Refused(error)
        if not throttled and answer.status < 500:
            self._denials = 0
        if row.then == "retry" and (throttled or operation not in NOT_REPEATED):
            return name
        raise failure(row, name or f"HTTP {answer.status}", operation, self._member)

    async def _sent(self, operation: str, request: bytes, tried: Attempt) -> HttpAnswer:
        sent = False

        def sending() -> None:
            nonlocal sent
            sent, tried.unsigned = True, False

        try:
            # An operation that must not be repeated gets a new connection, which the peer has no reason to close.
            return await self._pool.post(request, fresh=operation in NOT_REPEATED, sending=sending)
        except ConnectionLost:
            self.requests[operation, "lost"] += 1
            raise
        except asyncio.CancelledError:
            if sent:
                self.requests[operation, "cancelled"] += 1
            raise

    def _corrects_clock(self, date: bytes, used: float) -> bool:
        """Return whether a request that was signed with this correction is to be signed again with another one."""
        try:
            ahead = parsedate_to_datetime(date.decode("latin-1")).timestamp() - time.time()
        except ValueError:
            return False
        if abs(ahead - used) < SKEW_SECONDS:
            return False
        if abs(ahead - self.ahead) >= SKEW_SECONDS:
            self.ahead = ahead
            text = "this machine's clock and AWS KMS's differ: requests to it are signed with its time"
            get_logger().error(text, member=self._member, ahead_seconds=round(ahead))
        return True

    async def close(self) -> None:
        """Close every connection; calls under way fail."""
        await self._pool.close()

    def _content(self, operation: str, answer: HttpAnswer) -> dict[str, Any]:
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
