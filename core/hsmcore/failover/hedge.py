"""Hedged signing: when the first member is slower than usual, ask a second one with the same key; the first good answer
counts. Only for deterministic signatures, where both answers are equal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

from hsmcore._native import Digest
from hsmcore.base.keyring import KeyVersion
from hsmcore.errors import HsmError
from hsmcore.failover.breaker import Kind, kind_of

if TYPE_CHECKING:
    from hsmcore.failover.endpoint import Endpoint
    from hsmcore.failover.levels import Levels
    from hsmcore.failover.request import Request

FLOOR_S: Final = 0.001
UNKNOWN_S: Final = 0.05
"""While a member's 99th percentile is not known."""


class Route(Protocol):
    """What hedging needs of the router."""

    levels: Levels[Endpoint]
    hedges: int

    def report(self, endpoint: Endpoint, kind: Kind, error: HsmError) -> None:
        """Count a failure of a member."""

    def bind(self, messages: Iterable[bytes | Digest], key: bytes) -> None:
        """Let no other key sign these messages."""


Asked = dict["asyncio.Future[bytes]", tuple["Endpoint", KeyVersion]]


async def hedged(
    router: Route,
    endpoint: Endpoint,
    version: KeyVersion,
    signed: asyncio.Future[bytes],
    request: Request,
    share: float,
) -> tuple[bytes, Endpoint, KeyVersion]:
    """The first good answer, with its member and key. Raises the first member's error if there is no good answer; the
    message is bound to the key if the second member may have signed it, or, when the caller leaves, any member.
    `version`: the key of `signed`; by now the members may sign with another key."""
    asked: Asked = {signed: (endpoint, version)}
    try:
        after = max(endpoint.watch.p99 / 1e9, FLOOR_S) if endpoint.watch.p99 else UNKNOWN_S
        done, _ = await asyncio.wait(asked, timeout=min(after, share))
        if not done:
            known = _ask_second(router, endpoint, version, asked, request.message, share)
            if known is not None:
                return known
        return await _first_good(router, asked, request)
    except asyncio.CancelledError:
        left = [future.done() or asked_of.abandon(future) for future, (asked_of, _) in asked.items()]
        if any(left):  # else no member has begun with it
            router.bind(request.bindable, version.public_key)
        for future in asked:
            future.cancel()
        raise
    finally:
        for future, (asked_of, _) in asked.items():
            if not future.done():
                future.cancel()
                asked_of.abandon(future)
            elif not future.cancelled():
                future.exception()  # retrieved, so that asyncio does not report it


def _ask_second(
    router: Route, endpoint: Endpoint, version: KeyVersion, asked: Asked, message: bytes | Digest, share: float
) -> tuple[bytes, Endpoint, KeyVersion] | None:
    """Submit to another member with the same key, if there is one. Returns the signature if its cache has it."""
    second = router.levels.pick_for(version.public_key, [endpoint])
    if second is None:
        return None
    own = second.key_version
    try:
        again = second.submit(message, share, own.index)
    except HsmError as failure:
        router.report(second, kind_of(failure) or "down", failure)
        return None
    if isinstance(again, bytes):
        return again, second, own
    router.hedges += 1
    asked[again] = second, own
    return None


async def _first_good(router: Route, asked: Asked, request: Request) -> tuple[bytes, Endpoint, KeyVersion]:
    first = next(iter(asked))
    waiting, unsure = set(asked), False
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            ended = future.exception()
            if ended is None:
                return future.result(), *asked[future]
            if not isinstance(ended, HsmError):
                raise ended
            if future is not first and ended.maybe_signed:
                router.bind(request.bindable, asked[future][1].public_key)
                unsure = True
            if future is not first and (kind := kind_of(ended)) is not None:
                router.report(asked[future][0], kind, ended)
    failed = first.exception()
    if unsure and isinstance(failed, HsmError):
        failed.maybe_signed = True
    return await first, *asked[first]  # raises
