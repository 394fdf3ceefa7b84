"""Where a client's request meets a key manager: what the client may, how much, when it is its turn, under whose name.

`sign`, `sign_many` and `verify` are coroutines. The wire's connections use `take` and jobs of their own, of
which the plain ones cost no task.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections import Counter as Count
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain
from time import monotonic
from typing import Any, Final

import orjson

from hsmcore._native import Digest, verify
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.config import Gateway
from hsmcore.config.policy import BATCH_ROOT, ORDERED, PREHASHED
from hsmcore.errors import (
    BadArgument,
    EmptyMessage,
    HsmError,
    InternalError,
    KeyNotCurrent,
    KeyNotFound,
    MemberDown,
    MessageTooLarge,
    PolicyRefused,
    SignatureInvalid,
)
from hsmcore.gateway.chunks import ChargedBatch
from hsmcore.gateway.clients import Directory, KnownClient, OpenWork
from hsmcore.gateway.jobs import Job, Queue
from hsmcore.gateway.wire import messages as wire
from hsmcore.manager.key_manager import KeyManager
from hsmcore.manager.key_managers import KeyManagers
from hsmcore.manager.policy.guard import kinds_of, refuse_claims

CACHE_STATS: Final = "cache-stats"
_TRIES: Final = 3
MANAGING: Final = 8
"""Requests to manage keys that a client may have open at a key manager, beside those for signatures: keys are rotated
while as many signatures are open as there may be."""
_FEW: Final = 32
_ALONE: Final = 1024
_RECORDS: Final = 10.0
"""Refusals of strangers that are recorded at once; then one in a second."""


class ClientKey:
    """What one client may do with one key manager. `slot`: its number for this client."""

    def __init__(self, desk: Admission, client: KnownClient, name: str, slot: int) -> None:
        self.desk, self.client, self.name, self.slot = desk, client, name, slot
        self.manager: KeyManager = desk.managers[name]
        self.queue = desk.queues[name]
        self.account = OpenWork(client, client.rules.in_flight)
        self.managing = OpenWork(client, MANAGING)
        self.accounts = self.account, self.managing
        self.policy = self.manager.config.key_manager.policy
        self.timeout = self.manager.config.key_manager.request_timeout_ms / 1e3
        self.longest = max(desk.settings.max_timeout_ms / 1e3, self.timeout)
        """Seconds that a request may take, whatever its client says."""
        self.message_bytes = self.manager.config.key_manager.max_message_bytes
        self._allowed = None if client.rules.kinds is None else frozenset(client.rules.kinds)

    @property
    def kinds(self) -> int:
        """What may be signed, as bits of wire.KINDS, and wire.BATCHES."""
        listed = None if self.policy is None else self.policy.kinds
        if listed is None and self._allowed is None:
            return wire.ALL_KINDS
        kinds = set(wire.KINDS[1:]).intersection(*(some for some in (listed, self._allowed) if some is not None))
        found = sum(1 << wire.KINDS.index(kind) for kind in kinds)
        return found | wire.BATCHES if self.policy is not None and BATCH_ROOT in self.policy.kinds else found

    def require_kind(self, message: bytes, kind: str | None) -> None:
        """Raise PolicyRefused, and record it, for a message that this client may not have signed."""
        if self._allowed is not None:
            found = self.desk.kind_of(message)
            # Nothing in a digest says what it is of: if it is ordered, the policy binds the position that is claimed.
            if found == "digest32" and kind in ORDERED:
                found = kind
            self.require_listed(found)

    def require_listed(self, kind: str) -> None:
        """Raise PolicyRefused, and record it, for a kind that this client may not have signed."""
        if self._allowed is not None and kind not in self._allowed:
            self.refused(f"kind {kind} not listed", "sign")
            raise PolicyRefused(f"client {self.client.name!r} may not have a payload of kind {kind} signed")

    def refused(self, why: str, what: str) -> None:
        """Record that the client was refused; as Admission.refused."""
        self.desk.refused(self.client.name, why, f"{what} {self.name}")

    def refusal(self, message: bytes, kind: str | None) -> HsmError | None:
        """Return why a message of a batch is refused, of which `kind` must be the kind: a batch has no positions. The
        key manager would refuse the batch as a whole for one that cannot be signed as it is."""
        if not message:
            return EmptyMessage()
        if len(message) > self.message_bytes:
            return MessageTooLarge(f"the message has {len(message)} bytes; {self.message_bytes} may be")
        try:
            self.require_kind(message, None)
        except HsmError as error:
            return error
        if kind is not None and (found := self.desk.kind_of(message)) != kind:
            self.refused(f"kind {found} claimed as {kind}", "sign")
            return PolicyRefused(f"the message is of kind {found}, not {kind}")
        return None


class Admission:
    """Takes clients' requests to the key managers. Belongs to their event loop. Errors are HsmError; one for which
    there is no room now is QueueFull, with `retry_after_ms` where that is known."""

    def __init__(self, managers: KeyManagers, settings: Gateway) -> None:
        """As Directory: may block."""
        self.managers, self.settings = managers, settings
        self.directory = Directory(settings.clients)
        most = settings.in_flight
        self.queues = {
            name: Queue(_enough_for(manager), _ALONE) if most is None else Queue(most)
            for name, manager in managers.items()
        }
        """What is at one key manager, however slow, keeps nothing from another."""
        policies = [own.config.key_manager.policy for own in managers.values()]
        self._kinds = kinds_of(tuple(form for policy in policies if policy for form in policy.formats))
        self._counters = {client.name: self._counters_of(client) for client in self.directory.clients.values()}
        self._former: list[OpenWork] = []
        """Those of clients that are gone, or have other rules now."""
        self.requests: Count[tuple[str, str]] = Count()
        """Answered requests of all faces, by client and outcome; see `count`."""
        self.strangers = 0
        """Connections and requests that were refused because of who or what they are from."""
        self._records, self._recorded = _RECORDS, monotonic()
        self._unrecorded: tuple[int, str, str, str] = 0, "", "", ""
        """How many refusals have no record yet, and the last of them."""
        self._numbers: dict[bytes, int] = {}
        self._versions: list[tuple[str, str, bytes]] = []
        """Key manager, key id and public key of each version, in the order of their numbers, from 1."""

    @property
    def open(self) -> int:
        """Requests of all clients that are not answered; each message of a batch is one."""
        counters = chain.from_iterable(own.values() for own in self._counters.values())
        return sum(one.open for one in chain(self._former, *(counter.accounts for counter in counters)))

    def _counters_of(self, client: KnownClient) -> dict[str, ClientKey]:
        return {name: ClientKey(self, client, name, slot) for slot, name in enumerate(client.rules.keys)}

    def follow(self, directory: Directory) -> None:
        """Serve these clients from now on. What is open goes on as it began."""
        before = self._counters
        gone = [client for client in self.directory.clients.values() if not directory.has(client)]
        self._former = [account for account in self._former if account.open]
        self._former += [one for client in gone for counter in before[client.name].values() for one in counter.accounts]
        self._counters = {
            name: before[name] if self.directory.has(client) else self._counters_of(client)
            for name, client in directory.clients.items()
        }
        self.directory = directory

    def kind_of(self, message: bytes) -> str:
        """Return the kind of payload that a message is."""
        return self._kinds.look(message).kind

    def counter(self, client: KnownClient, name: str) -> ClientKey:
        """Return what a client may do with a key manager. Raises PolicyRefused if it may not use it, or it is none."""
        found = self._counters.get(client.name, {}).get(name)
        if found is None:
            raise PolicyRefused(f"client {client.name!r} may not use a key manager {name!r:.40}")
        return found

    def counters(self, client: KnownClient) -> tuple[ClientKey, ...]:
        """Return those of a client, by slot."""
        return tuple(self._counters.get(client.name, {}).values())

    def manager(self, client: KnownClient, name: str) -> KeyManager:
        """Return a key manager. Raises PolicyRefused, as `counter`."""
        return self.counter(client, name).manager

    def keys(self, client: KnownClient) -> tuple[wire.Key, ...]:
        """Return the versions of the keys that a client may use; `slot` counts in the order of its `keys`."""
        return tuple(
            wire.Key(
                slot=counter.slot,
                version=self.number(counter.name, version.public_key, version.id),
                current=version.public_key == signing and version.state == "active",
                algorithm=version.algorithm,
                id=version.id,
                public_key=version.public_key,
                kinds=counter.kinds,
            )
            for counter in self.counters(client)
            for signing in (_signing(counter.manager),)
            # Members may have one key under several ids.
            for version in reversed({one.public_key: one for one in reversed(counter.manager.keys())}.values())
        )

    def number(self, name: str, public_key: bytes, key_id: str) -> int:
        """Return the number of a version of a key, from 1."""
        found = self._numbers.get(public_key)
        if found is None:
            self._versions.append((name, key_id, public_key))
            found = self._numbers[public_key] = len(self._versions)
        return found

    def key_id(self, counter: ClientKey, number: int) -> str | None:
        """Return the key id of a version; None for 0. Raises KeyNotFound."""
        return self._version(counter, number)[1] if number else None

    def public_key(self, counter: ClientKey, number: int) -> bytes | None:
        """Return the public key of a version; None for 0. Raises KeyNotFound."""
        return self._version(counter, number)[2] if number else None

    def _version(self, counter: ClientKey, number: int) -> tuple[str, str, bytes]:
        if not 0 < number <= len(self._versions) or self._versions[number - 1][0] != counter.name:
            raise KeyNotFound(f"key manager {counter.name!r} has no version {number}")
        return self._versions[number - 1]

    async def sign(
        self,
        client: KnownClient,
        name: str,
        message: bytes,
        *,
        kind: str | None = None,
        position: int | None = None,
        timeout: float | None = None,
        key_id: str | None = None,
    ) -> Receipt:
        """As KeyManager.sign_with_receipt, for a client. `timeout` in seconds, the wait for its turn included."""
        counter = self.counter(client, name)
        counter.require_kind(message, kind)

        async def sign(left: float) -> Receipt:
            return await counter.manager.sign_with_receipt(message, left, kind=kind, position=position, key_id=key_id)

        found: Receipt = await self._await(counter, sign, timeout, signatures=1)
        return found

    async def sign_digest(self, client: KnownClient, name: str, digest: bytes, only: bytes | None = None) -> Receipt:
        """As KeyManager.sign_digest, for a client; `only` as in `sign_prehashed`."""
        counter = self.counter(client, name)
        counter.require_listed(PREHASHED)

        async def sign(left: float) -> Receipt:
            return await self.sign_prehashed(counter, digest, left, only)

        found: Receipt = await self._await(counter, sign, None, signatures=1)
        return found

    async def sign_prehashed(self, counter: ClientKey, digest: bytes, timeout: float, only: bytes | None) -> Receipt:
        """Sign a digest as it is, in its turn. `only`: with the key of this public key or not at all; None: with the
        current one. Which key it was, the signature itself says: another one may have become current meanwhile."""
        before = current(counter.manager)
        if only is not None and only != before.public_key:
            raise KeyNotCurrent.of(only, before.public_key)
        signature = (await counter.manager.sign_digest(digest, timeout)).signature
        for key in (before, *counter.manager.keys()):
            if await asyncio.to_thread(verify, key.algorithm, key.public_key, Digest(digest), signature):
                if only is not None and only != key.public_key:
                    raise KeyNotCurrent.of(only, key.public_key, bound=True)
                return Receipt(signature, key.id, key.public_key, "", "", False, 0, None)
        raise SignatureInvalid("no key of the ring made this signature")

    async def sign_many(
        self,
        client: KnownClient,
        name: str,
        messages: Sequence[bytes],
        *,
        kind: str | None = None,
        timeout: float | None = None,
        key_id: str | None = None,
    ) -> list[bytes | HsmError]:
        """As KeyManager.sign_many with `return_exceptions`, for a client. What it may not have signed is an error in
        the list."""
        counter = self.counter(client, name)

        async def sign(left: float) -> list[bytes | HsmError]:
            return (await self.sign_batch(counter, messages, kind, left, key_id))[1]

        count = len(messages)
        found: list[bytes | HsmError] = await self._await(counter, sign, timeout, count, count, takes_turn=False)
        return found

    async def sign_batch(
        self, counter: ClientKey, messages: Sequence[bytes], kind: str | None, timeout: float, key_id: str | None
    ) -> tuple[int, list[bytes | HsmError]]:
        """Sign a batch under one version of the key, in slices that take turns with what others ask for. Returns its
        number, and a signature or an error for each: KeyNotCurrent for those that came too late for this version."""
        if kind is not None and counter.policy is None:
            refuse_claims(kind, None)
        outcomes = [counter.refusal(message, kind) for message in messages]
        good = [message for message, outcome in zip(messages, outcomes, strict=True) if outcome is None]
        chosen, signed = await self._sign_batch(counter, good, timeout, key_id)
        version = next(one for one in counter.manager.keys() if one.id == chosen)  # noqa: SIM118
        answers = iter(signed)
        found = [next(answers) if outcome is None else outcome for outcome in outcomes]
        return self.number(counter.name, version.public_key, version.id), found

    async def _sign_batch(
        self, counter: ClientKey, messages: list[bytes], timeout: float, key_id: str | None
    ) -> tuple[str, list[bytes | HsmError]]:
        """Under the current key if none is named. Another one may be current by the time when they are signed."""
        manager, tries, until = counter.manager, _TRIES if key_id is None else 1, monotonic() + timeout
        while True:
            tries -= 1
            chosen = key_id

            async def sign(some: Sequence[bytes], left: float) -> list[bytes | HsmError]:
                nonlocal chosen
                chosen = chosen or await manager.get_current_key_id()
                return await manager.sign_many(some, left, return_exceptions=True, key_id=chosen)

            batch = ChargedBatch(counter.queue, counter.account, messages, sign)
            signed = await batch.signed(until - monotonic())
            if tries and signed and all(_untouched(one) for one in signed):
                continue
            if batch.failed is not None:
                raise batch.failed
            return chosen or await manager.get_current_key_id(), signed

    async def verify(
        self, client: KnownClient, name: str, message: bytes, signature: bytes, key_id: str | None = None
    ) -> bool:
        """As KeyManager.verify, for a client."""
        counter = self.counter(client, name)

        async def verify(_left: float) -> bool:
            return await counter.manager.verify(message, signature, key_id)

        return bool(await self._await(counter, verify, None))

    async def manage_key(self, counter: ClientKey, operation: str, key_id: str) -> str:
        """Carry out one of wire.OPERATIONS. Returns the new key's id, counters as JSON, a wrapped key in base64, or
        ""."""
        manager = counter.manager
        if operation == CACHE_STATS:
            return orjson.dumps(manager.get_cache_stats()).decode()
        if not counter.client.rules.manages:
            counter.refused("may not manage keys", operation)
            raise PolicyRefused(f"client {counter.client.name!r} may not manage keys")
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

    def count(self, client: KnownClient, error: HsmError | None) -> None:
        """Count a request that a face has answered; a batch is one. `error`: None is a good answer."""
        outcome = "OK" if error is None else "INTERNAL" if isinstance(error, InternalError) else error.status
        self.requests[client.name, outcome] += 1

    def refused(self, peer: str, why: str, what: str) -> None:
        """Record a refusal: `peer`, of whom or from where; `why`; `what` was asked for. Refusals could fill the disk:
        after the first ones there is a record a second, which counts the others."""
        self.strangers += 1
        now = monotonic()
        self._records = min(self._records + now - self._recorded, _RECORDS)
        self._recorded = now
        self._unrecorded = self._unrecorded[0] + 1, peer, why, what
        if self._records >= 1:
            self._records -= 1
            self._record()

    def _record(self) -> None:
        count, peer, why, what = self._unrecorded
        self._unrecorded = 0, "", "", ""
        self.managers.audit.note("gateway-refused", result="error", label=peer, why=why, command=what, count=count)

    def close(self) -> None:
        """Answer what waits, and record the refusals that have no record yet: the key managers are about to close."""
        for queue in self.queues.values():
            queue.close()
        if self._unrecorded[0]:
            self._record()

    async def _await(
        self,
        counter: ClientKey,
        work: Callable[[float], Coroutine[Any, Any, Any]],
        timeout: float | None,
        cost: int = 1,
        signatures: int = 0,
        *,
        takes_turn: bool = True,
    ) -> Any:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def start(job: Job, left: float) -> None:
            counter.queue.run(job, work(left))

        def answer(_job: Job, outcome: Any) -> None:
            if not answered.done():
                answered.set_result(outcome)

        seconds = counter.timeout if timeout is None else min(timeout, counter.longest)
        job = Job(counter.account, None, start, answer, seconds, cost)
        job.takes_turn = takes_turn
        counter.queue.take(job, signatures)
        try:
            outcome = await answered
        except asyncio.CancelledError:
            counter.queue.cancel(job)
            raise
        if isinstance(outcome, HsmError):
            raise outcome
        return outcome


def _untouched(outcome: bytes | HsmError) -> bool:
    return isinstance(outcome, KeyNotCurrent) and not outcome.maybe_signed


def _enough_for(manager: KeyManager) -> int:
    """Return how many messages keep all members busy: one in each session, and one that follows it."""
    members = [provider.config for _, provider in manager.config.key_manager.members()]
    sessions = sum(getattr(member, "sessions", 0) or getattr(member, "concurrency", 0) for member in members)
    return max(_FEW, 2 * sessions)


def current(manager: KeyManager) -> KeyVersion:
    """Return the version that signs. Raises MemberDown."""
    found = manager.snapshot().key
    if found is None:
        raise MemberDown("no key signs at present")
    return found


def _signing(manager: KeyManager) -> bytes:
    """The public key that signs now; b"": none does."""
    try:
        return manager.public_key
    except KeyNotFound:
        return b""
