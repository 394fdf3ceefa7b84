"""What clients may ask for: how each operation is read, begun at a key manager, and answered.

The connections admit requests of their own, wire_requests.py.
"""

from __future__ import annotations

import asyncio
import sys
from base64 import b64encode
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, NamedTuple

import orjson

from hsmcore._native import BatchedSignature, Digest, verify
from hsmcore.audit.record import come_as
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.config.policy import PREHASHED
from hsmcore.errors import BadArgument, HsmError, KeyNotCurrent, MemberDown, PolicyRefused, SignatureInvalid
from hsmcore.gateway.admission import ClientKey
from hsmcore.gateway.chunks import ChargedBatch
from hsmcore.gateway.intake import SIGN_COST, TASK_COST
from hsmcore.gateway.jobs import Job
from hsmcore.gateway.wire import batched, unfinished
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Flag, Frame, Type
from hsmcore.manager.key_manager import KeyManager
from hsmcore.manager.policy.guard import refuse_claims

CACHE_STATS: Final = "cache-stats"
VERSIONS: Final = "versions"
_TRIES: Final = 3


class Operation(NamedTuple):
    """One of what clients may ask for."""

    decode: Callable[[Frame], Any]
    begin: Callable[[Any, float], None]
    """As Job.start."""
    encode: Callable[[Any, Any], bytes]
    """Makes the frame of a result."""
    cost: int = SIGN_COST
    """What one takes of the event loop, in microseconds; of a batch, with its first message."""
    signs: bool = True
    """Whether its messages count in the client's rate."""
    many: bool = False
    """Whether it has `messages`, of which each costs as much as a request."""
    takes_turn: bool = True
    """Whether it takes a turn as a whole: the root and the slices of a batch do, and managing keeps no session busy."""
    manages: bool = False
    remembered: bool = True
    """Whether its answer is: what changes nothing may be done again."""


def _sign(request: Job, left: float) -> None:
    """Have a message signed: without a task, if nothing must be awaited first."""
    what: wire.Sign = request.what
    counter, kind, manager = request.counter, what.kind or None, request.counter.manager
    if kind == PREHASHED:
        counter.require_listed(PREHASHED)
    elif counter.account.kinds is not None:
        counter.require_kind(what.message, kind)
    only = counter.versions.public_key(what.version) if what.version else None
    if kind == PREHASHED:
        request.run(_sign_prehashed(manager, what.message, left, only))
        return
    if counter.in_context or "opentelemetry.trace" in sys.modules:
        request.context.run(come_as, request.number)
        asked = request.context.run(manager.submit, what.message, left, (kind, what.position), only, request)
    else:
        asked = manager.submit(what.message, left, (kind, what.position), only, request)
    if asked is request:
        request.running = asked
        return
    if asked is not None:
        request.follow(asked)
        return
    key_id = counter.versions.key(what.version).id if what.version else None
    request.run(manager.sign_with_receipt(what.message, left, kind=kind, position=what.position, key_id=key_id))


async def _sign_prehashed(manager: KeyManager, digest: bytes, timeout: float, only: bytes | None) -> Receipt:
    """Sign a digest as it is. `only`: with the key of this public key or not at all; None: with the current one. Which
    key it was, the signature itself says: another one may have become current meanwhile."""
    before = current(manager)
    if only is not None and only != before.public_key:
        raise KeyNotCurrent.of(only, before.public_key)
    signature = (await manager.sign_digest(digest, timeout)).signature
    for key in (before, *manager.keys()):
        if await asyncio.to_thread(verify, key.algorithm, key.public_key, Digest(digest), signature):
            if only is not None and only != key.public_key:
                raise KeyNotCurrent.of(only, key.public_key, bound=True)
            return Receipt(signature, key.id, key.public_key, "", "", False, 0, None)
    raise SignatureInvalid("no key of the ring made this signature")


def _sign_many(request: Job, left: float) -> None:
    request.run(_sign_batch(request.counter, request.what, left))


async def _sign_batch(counter: ClientKey, what: wire.SignMany, timeout: float) -> tuple[int, list[bytes | HsmError]]:
    """Sign a batch under one version of the key, in slices that take turns with what others ask for. Returns its
    number, and a signature or an error for each: KeyNotCurrent for those that came too late for this version."""
    messages, kind, number = what.messages, what.kind or None, what.version
    key_id = counter.versions.key(number).id if number else None
    if kind is not None and counter.policy is None:
        refuse_claims(kind, None)
    outcomes = counter.refusals(messages, kind)
    good = [message for message, outcome in zip(messages, outcomes, strict=True) if outcome is None]
    chosen, signed = await _sign_charged(counter, good, timeout, key_id)
    answers = iter(signed)
    found = [next(answers) if outcome is None else outcome for outcome in outcomes]
    keys = counter.manager.keys()
    return number or counter.versions.number(next(one.public_key for one in keys if one.id == chosen)), found


async def _sign_charged(
    counter: ClientKey, messages: list[bytes], timeout: float, key_id: str | None
) -> tuple[str, list[bytes | HsmError]]:
    """Under the current key if none is named. Another one may be current by the time when they are signed."""
    tries, until = _TRIES if key_id is None else 1, monotonic() + timeout
    while True:
        tries -= 1
        batch = ChargedBatch(counter, messages, key_id)
        signed = await batch.signed(until - monotonic())
        if tries and signed and all(isinstance(one, KeyNotCurrent) and not one.maybe_signed for one in signed):
            continue
        if batch.failed is not None:
            raise batch.failed
        return batch.key_id or await counter.manager.get_current_key_id(), signed


def _sign_batched(request: Job, left: float) -> None:
    """Put a message into the batch that is open, with those of other clients."""
    what: batched.SignBatched = request.what
    counter, kind = request.counter, what.kind or None
    counter.require_batches()
    request.context.run(come_as, request.number)
    placed = request.context.run(counter.manager.submit_batched, what.message, left, kind)
    if placed is None:
        request.run(counter.manager.sign_batched(what.message, left, kind))
    else:
        request.follow(placed)


def _read_verify(one: Frame) -> wire.Verify:
    found = wire.read_verify(one.body)
    return found._replace(message=Digest(found.message)) if one.flags & Flag.DIGEST else found


def _verify(request: Job, _left: float) -> None:
    what: wire.Verify = request.what
    request.run(request.counter.manager.verify(what.message, what.signature, what.key_id or None))


def _manage(request: Job, _left: float) -> None:
    request.run(_managed(request.counter, request.what.operation, request.what.key_id))


async def _managed(counter: ClientKey, operation: str, key_id: str) -> str:
    """Carry out one of wire.OPERATIONS. Returns the new key's id, counters, versions or what is unfinished as
    JSON, a wrapped key in base64, or ""."""
    manager = counter.manager
    if operation == CACHE_STATS:
        return orjson.dumps(manager.get_cache_stats()).decode()
    if operation == VERSIONS:
        await counter.versions.learn_all()
        return orjson.dumps([one.to_json() for one in counter.versions.all()]).decode()
    if operation == unfinished.OPERATION:
        found = await manager.unfinished(key_id, handed_out=True)
        if found is not None:
            counter.require_listed(found.kind)
        return unfinished.written(found)
    if not counter.client.rules.manages:
        counter.refused("may not manage keys", operation)
        hint = f"It needs gateway.clients.{counter.client.name}.manages."
        raise PolicyRefused(f"client {counter.client.name!r} may not manage keys", hint=hint)
    match operation:
        case "generate":
            return await manager.generate_key()
        case "set-current":
            await manager.set_current_key_id(key_id)
        case "deactivate":
            await manager.deactivate_key(key_id)
        case "export":
            return b64encode(await manager.export_key_backup(key_id)).decode()
        case _:
            raise BadArgument(f"there is no operation {operation!r:.40}")
    return ""


def current(manager: KeyManager) -> KeyVersion:
    """Return the version that signs. Raises MemberDown."""
    found = manager.snapshot().key
    if found is None:
        raise MemberDown("no key signs at present")
    return found


def _signed(request: Any, outcome: Receipt) -> bytes:
    version = request.what.version or request.counter.versions.number(outcome.public_key)
    return wire.signed(request.number, version, outcome)


def _signed_many(request: Any, outcome: tuple[int, list[bytes | HsmError]]) -> bytes:
    version, outcomes = outcome
    shown = [wire.refusal_of(one) if isinstance(one, HsmError) else one for one in outcomes]
    return wire.signed_many(request.number, version, shown)


def _batched(request: Any, outcome: BatchedSignature) -> bytes:
    return batched.batched(request.number, outcome)


def _verified(request: Any, outcome: bool) -> bytes:
    return wire.verified(request.number, outcome)


def _done(request: Any, outcome: str) -> bytes:
    return wire.done(request.number, outcome)


SIGN: Final = Operation(wire.read_sign, _sign, _signed)
SIGN_MANY: Final = Operation(
    lambda one: wire.read_sign_many(one.body), _sign_many, _signed_many, many=True, takes_turn=False
)
SIGN_BATCHED: Final = Operation(
    lambda one: batched.read_sign_batched(one.body), _sign_batched, _batched, takes_turn=False
)
VERIFY: Final = Operation(_read_verify, _verify, _verified, cost=TASK_COST, signs=False, remembered=False)
MANAGE: Final = Operation(
    lambda one: wire.read_manage(one.body),
    _manage,
    _done,
    cost=TASK_COST,
    signs=False,
    takes_turn=False,
    manages=True,
)
_OPERATIONS: Final[dict[int, Operation]] = {
    Type.SIGN: SIGN,
    Type.SIGN_MANY: SIGN_MANY,
    Type.SIGN_BATCHED: SIGN_BATCHED,
    Type.VERIFY: VERIFY,
    Type.MANAGE: MANAGE,
}
OPERATIONS: Final = tuple(_OPERATIONS.get(number) for number in range(256))
"""By the number of a frame's type."""
