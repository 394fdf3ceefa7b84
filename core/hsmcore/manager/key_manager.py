"""The key manager that an application holds. It composes its parts; the native core handles the bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast, overload

from hsmcore.audit import AuditLog
from hsmcore.audit.record import extra as audit_extra
from hsmcore.base.events import Callback, EventName, Events
from hsmcore.base.receipt import DigestSignature, Receipt
from hsmcore.config import Config, KeyManagerConfig, PayloadFormat
from hsmcore.errors import EngineClosed, HsmError, LoginError, NotHolder
from hsmcore.errors.batch import batch_of
from hsmcore.failover.path import Ask, SigningPath, Way
from hsmcore.handover.base import Handover
from hsmcore.manager import batching, digests
from hsmcore.manager.background import BackgroundServices, abandon, missing
from hsmcore.manager.batched import BatchedSigning
from hsmcore.manager.describe import Described, Snapshot
from hsmcore.manager.key_work import KeyWork
from hsmcore.manager.keys import KeyOperations
from hsmcore.manager.lifecycle import Lifecycle, a_turn, ended, refuse_again, refused
from hsmcore.manager.membership import confirmed, join, lease_of, telling
from hsmcore.manager.path import UNOPENED, OwnTexts, open_path, running
from hsmcore.manager.policy import Guard
from hsmcore.manager.policy.guard import refuse_claims, submit_batch
from hsmcore.manager.recording import AuditNotes, found_store, named_store, say_where
from hsmcore.manager.verification import VerifierPool
from hsmcore.members import cache_summary
from hsmcore.members.base import refuse_closed
from hsmcore.tracing import instrument

if TYPE_CHECKING:
    from hsmcore._native import Waiter
    from hsmcore.fleet.membership import Membership

T = TypeVar("T")
Message = bytes | bytearray | memoryview
Formats = Sequence[PayloadFormat]
Claims = tuple[str | None, int | None]  # kind and position


class KeyManager(BatchedSigning, KeyWork):
    """Signs with the current key of a key ring on an HSM.

    Belongs to the event loop that runs `initialize()`: use in another loop raises WrongEventLoop, in a forked child
    EngineForked. All coroutines may run concurrently. No call blocks the loop; every signature has a deadline. All
    errors are HsmError.
    """

    def __init__(
        self, config: Config, *, rotates: bool = True, audit: AuditLog | None = None, formats: Formats = ()
    ) -> None:
        """`audit`: instead of a log of its own, its part of one that several key managers share. `formats`: those of
        all their policies."""
        self.config = config
        self._rotates = rotates
        self.audit = AuditLog.of(config.key_manager) if audit is None else audit
        self._rules: KeyManagerConfig = config.key_manager
        self._life = Lifecycle(self._open, self._refuse, self._close)
        self._events, self._verifiers = Events(), VerifierPool()
        self._background = BackgroundServices(config)
        self._handover: Handover | None = None
        self._refused: LoginError | None = None
        self._audited = self.audit.enabled
        self._record = AuditNotes(self.audit, self._rules.name)
        self._formats = formats
        self._guard: Guard | None = None
        self._passes: Callable[..., bool] | None = None
        self._batches: batching.AnyBatches = batching.NoBatches(self._life.check)
        self.fleet: Membership | None = None
        """This host in its fleet, while the key manager is open; None: there is no fleet."""
        self._sign_on(UNOPENED, UNOPENED)

    def __repr__(self) -> str:
        signs = f", {self._path.version.algorithm} key {self._path.version.id}" if self._life.state == "open" else ""
        return f"<KeyManager {self._rules.name}: {self._life.state}{signs}>"

    def _sign_on(self, path: SigningPath, way: Way) -> None:
        self._path, self._way = path, way
        self._keys = KeyOperations(path, self._background.rotation, self._rules, self.audit, self._events)

    async def initialize(self) -> None:
        """Open the audit log, log in to the token, start its workers, find and prove the key. Raises HsmError. A
        failure leaves nothing open, and the call may be repeated, unless the login was refused."""
        await self._life.open()

    async def close(self) -> None:
        """Refuse new requests, wait until each request in flight is answered, then release the token. Idempotent. A
        part that cannot be closed keeps no other one open: its error is raised at the end; call again for the rest."""
        if self._life.state == "open":
            self._life.check()
            await self._batches.close()  # while roots are signed
        await self._life.close()

    async def _open(self) -> None:
        instrument(self)
        say_where(self._rules)
        refuse_again(self._refused, self._rules.name)
        unmade = missing(self._rules)
        try:
            await self.audit.open()
            store = await found_store(self._rules)
            self.audit.record("configuration-load", result="ok", config_sha256=self.config.sha256(), **store)
            self.fleet = await join(self.config)
            opening = BackgroundServices.open(self.config, self.audit, self._handover, rotates=self._rotates)
            ring = self._background = await opening
            path = await open_path(ring, self.config, self._verifiers.verify_one, self.audit, self._events)
            await self._begin(path)
        except BaseException as error:
            self._refused = refused(error)
            async with AsyncExitStack() as rest:
                rest.push_async_callback(abandon, unmade)
                rest.push_async_callback(self.audit.close)
                rest.callback(self._record.not_opened, error)
                rest.push_async_callback(ended, self.fleet)
                rest.push_async_callback(self._end_background)
            raise
        self._record.opened(path.members(), path.version, named_store(self._rules, self._background.store_number))
        self._events.emit("initialized", member=path.member.name, key_id=path.version.id)

    async def _begin(self, path: SigningPath) -> None:
        """Start to seal the log, record, rotate and notify. If that fails, the path is closed."""
        try:
            await self._background.claim(path)
            await self.audit.use_members(partial(running, path))
            fleet = self.fleet
            guard = self._guard = await Guard.open(self.config, self._formats, path, fleet, self.audit)
            self._passes = None if guard is None else guard.passes  # before anything can be signed
            self._sign_on(path, confirmed(path, fleet, self._rules, self._record))
            path.begin(self._keys.ring, self._life.check, lease_of(fleet))
            port = self._keys.port(self)
            self._batches = batching.NoBatches(self._life.check)
            if guard is not None:
                texts = OwnTexts(guard, self._life.check, path, self._sign_own, self._record, fleet)
                if guard.batches:
                    self._batches = batching.Batches.of(self._rules, texts)
                await self._keys.open_sets(self.config, port, texts, rotates=self._rotates)
            await self._background.begin(port, path.signing()[0], self._events)
            if fleet is not None:
                await fleet.watch_over(self.audit)
                fleet.begin(telling(self.audit, self._events))
        except BaseException:
            async with AsyncExitStack() as rest:
                rest.push_async_callback(path.close)
                rest.callback(self._sign_on, UNOPENED, UNOPENED)
                rest.push_async_callback(self._keys.close)
                rest.push_async_callback(self._end_background)
                rest.push_async_callback(ended, self._guard)
            raise

    async def _end_background(self) -> None:
        await self._background.close()
        self._background = BackgroundServices(self.config)

    def _refuse(self) -> None:
        self._path.refuse()
        self._passes = self._passes and refuse_closed

    async def _close(self) -> None:
        path = self._path
        async with AsyncExitStack() as rest:  # from the last line to the first, whatever one of them raises
            rest.callback(self._verifiers.close)
            rest.push_async_callback(self.audit.close)
            rest.push_async_callback(path.close)
            rest.push_async_callback(self.audit.seal)  # while a member can still sign the checkpoint
            rest.callback(self.audit.note, "close", member=self._rules.name)
            rest.push_async_callback(ended, self.fleet)  # what was under way has been handed out
            rest.push_async_callback(ended, self._guard)
            rest.push_async_callback(path.idle)
            rest.push_async_callback(self._keys.close)
            rest.push_async_callback(self._end_background)
        self._events.emit("closed", member=self._rules.name)

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def sign(  # noqa: C901, PLR0912  # on the way of every signature: another call costs
        self,
        message: Message,
        timeout: float | None = None,
        *,
        kind: str | None = None,
        position: int | None = None,
        allow_other_key: bool = False,
        key_id: str | None = None,
        _receipt: bool = False,
    ) -> bytes:
        """Sign one message with the current key.

        `timeout` in seconds; None: `requestTimeoutMs`. Returns 64 bytes. Raises DeadlineExceeded, KeyDeactivated,
        InvalidMessage, MessageTooLarge, InvalidTimeout, MemberDown and other HsmErrors; `.retryable` says whether the
        same call can succeed later. While the queue is full, it waits within its timeout; what cannot meet its deadline
        at the measured rate gets QueueFull, a DeadlineExceeded, at once. With failover, AllLevelsFailed names the cause
        of each level. `allow_other_key`: another key may sign where a signature under the first may exist. `key_id`:
        sign with this key or raise KeyNotCurrent, KeyNotFound.

        With a policy, raises PolicyRefused for what this key or caller may not have signed, QueueFull at a caller's
        limit, DoubleSign for another payload at a bound position. `kind`, `position`: what the caller takes the message
        for, and where in its chain; it must say the same. hsmcore.payload makes one of a digest.
        """
        if key_id is not None or allow_other_key:
            receipt = await self._sign_otherwise(message, timeout, kind, position, allow_other_key, key_id)
            return cast("bytes", receipt) if _receipt else receipt.signature
        extra = audit_extra() if self._audited else None
        way, submitted, admission = self._way, False, None
        try:
            passes = self._passes
            if passes is not None:
                if not passes(message, kind, position):
                    admission = cast("Guard", self._guard).admit(message, kind, position)
                    timeout = await admission.begin(timeout)
                    message, extra = admission.message, admission.extra() if self._audited else None
            elif kind is not None or position is not None:
                self._life.check()
                refuse_claims(kind, position)
            begun = way.waits and monotonic()
            try:
                signed = (way.receipt if _receipt else way.submit)(message, timeout, way.key_index, extra)
                if type(signed) is bytes:  # cheaper than isinstance where `signed` is an awaitable
                    return signed
                submitted = True
                answer: bytes = await signed  # type: ignore[misc]  # the line above excludes bytes
            except asyncio.CancelledError:
                way.abandon(signed, message)  # type: ignore[possibly-undefined]  # nothing else awaits
                raise
            except NotHolder as late:
                submitted = submitted or way.waits
                answer = await way.again(_receipt, message, timeout, extra, begun, late)
        except HsmError as error:
            if not way.answers_recorded if submitted else self._life.state == "open":  # else it may be sealed
                self._record.failure("sign", message, error)
            await a_turn(error)
            raise
        else:
            if admission is not None:
                admission.released()
            return answer
        finally:
            if admission is not None:
                admission.end()

    @overload
    async def sign_many(
        self,
        messages: Iterable[Message],
        timeout: float | None = None,
        return_exceptions: Literal[False] = False,
        key_id: str | None = None,
        *,
        kind: str | None = None,
    ) -> list[bytes]: ...
    @overload
    async def sign_many(
        self,
        messages: Iterable[Message],
        timeout: float | None = None,
        return_exceptions: bool = False,
        key_id: str | None = None,
        *,
        kind: str | None = None,
    ) -> list[bytes | HsmError]: ...
    async def sign_many(
        self,
        messages: Iterable[Message],
        timeout: float | None = None,
        return_exceptions: bool = False,
        key_id: str | None = None,
        *,
        kind: str | None = None,
    ) -> Any:
        """Sign a batch in one crossing to the workers. Returns the signatures in order.

        The first error is raised at once, with the `index` of its message, unless `return_exceptions` puts errors into
        the list. An invalid message, or more messages than the caller may have open, are refused before anything is
        signed. `timeout` covers the whole batch. `kind`, `key_id`: of each, as in `sign`.
        """
        batch = batch_of(messages)

        async def submit(extra: bytes | None, admitted: ExitStack) -> Awaitable[list[Any]]:
            send = partial(self._way.submit_many, only=self._keys.public_key_of(key_id))
            if self._guard is None:
                refuse_claims(kind, None)
                return send(batch, timeout, return_exceptions, extra)
            claims, record = (batch, kind, timeout, return_exceptions, extra, admitted), self._record.failure
            return await submit_batch(self._guard, send, *claims, record)

        return await self._answer("sign-many", None, submit)

    def sign_with_receipt(
        self,
        message: Message,
        timeout: float | None = None,
        *,
        kind: str | None = None,
        position: int | None = None,
        allow_other_key: bool = False,
        key_id: str | None = None,
    ) -> Coroutine[Any, Any, Receipt]:
        """Sign one message; the receipt names member, level and key. As `sign`."""
        claims: Any = {"kind": kind, "position": position, "allow_other_key": allow_other_key, "key_id": key_id}
        return cast("Coroutine[Any, Any, Receipt]", KeyManager.sign(self, message, timeout, **claims, _receipt=True))

    async def _sign_otherwise(
        self,
        message: Message,
        timeout: float | None,
        kind: str | None,
        position: int | None,
        allow_other_key: bool,
        key_id: str | None,
    ) -> Receipt:
        async def submit(extra: bytes | None, admitted: ExitStack) -> Awaitable[Receipt]:
            data, left = message, timeout
            if self._guard is None:
                refuse_claims(kind, position)
            elif not self._guard.passes(message, kind, position):
                admission = self._guard.judge(message, kind, position)
                admitted.enter_context(self._guard.counted([admission]))
                data, left = admission.message, await admission.begin(timeout)
                extra = admission.extra() if self._audited else None
            return self._way.ask(Ask(data, left, extra, self._keys.public_key_of(key_id), allow_other_key))

        return await self._answer("sign", message, submit)

    def submit(
        self, message: bytes, timeout: float | None, claims: Claims, only: bytes | None, waiter: Waiter | None = None
    ) -> asyncio.Future[Receipt] | None:
        """Begin to sign, without a coroutine; `only`: with this public key. `waiter`: of Way.ask. None: something must
        be awaited first. Cancel the future and call `abandon` to give the request up."""
        extra = audit_extra() if self._audited else None
        try:
            if self._passes is None:
                refuse_claims(*claims)
            elif not self._passes(message, *claims):
                return None
            asked = self._way.ask(tuple.__new__(Ask, (message, timeout, extra, only, False, True)), waiter)
        except HsmError as error:
            if not isinstance(error, EngineClosed):  # then the log may be sealed already
                self._record.failure("sign", message, error)
            raise
        if self._audited and not self._way.answers_recorded:
            asked.add_done_callback(partial(self._record.outcome, message))
        return asked

    def abandon(self, asked: asyncio.Future[Receipt], message: bytes) -> None:
        """No answer of `submit` is wanted any more. A message that may have been signed stays bound to its key."""
        self._way.abandon(asked, message)

    async def sign_digest(self, digest: Message, timeout: float | None = None) -> DigestSignature:
        """Sign a digest of 32 bytes as it is, without hashing it, with an ECDSA key.

        A caller that chooses a digest has the key sign anything, so the policy must list "prehashed". Returns the
        signature, and for secp256k1 its recovery id, which takes a millisecond more. Raises PolicyRefused,
        AlgorithmUnsupported for an Ed25519 key, InvalidMessage, and the errors of `sign`.
        """
        asked: Any = digests.shown(digest)
        submit = partial(digests.submit, self._path, self._way, self._guard, asked, timeout)
        receipt = await self._answer("sign", asked, submit)
        return await digests.finish(self._way, self._verifiers, self._keys.ring, asked, receipt)

    async def _answer(
        self, operation: str, message: Any, submit: Callable[[bytes | None, ExitStack], Awaitable[Awaitable[T]]]
    ) -> T:
        """Submit, and wait for the answer. Record a failure that no engine records."""
        recorded = True
        try:
            self._life.check()
            recorded = False
            with ExitStack() as admitted:
                answer = await submit(audit_extra() if self._audited else None, admitted)
                recorded = self._way.answers_recorded
                try:
                    return await answer
                except asyncio.CancelledError:
                    self._way.abandon(answer, message)
                    raise
        except HsmError as error:
            if not recorded:
                self._record.failure(operation, message, error)
            await a_turn(error)
            raise

    async def _sign_own(self, text: bytes, timeout: float, extra: bytes | None, only: bytes | None) -> Receipt:
        """As OwnTexts.sign."""

        async def submit(_extra: bytes | None, _admitted: ExitStack) -> Awaitable[Receipt]:
            return self._way.ask(Ask(text, timeout, extra, only))

        return await self._answer("sign", text, submit)

    async def verify(self, message: Message, signature: bytes, key_id: str | None = None) -> bool:
        """Whether `signature` is valid for `message` under the given key, or under any key of the ring. An ECDSA
        signature with a high s is not: other software makes such. In software, off the event loop, never by the HSM.
        Raises KeyNotFound, InvalidMessage."""
        self._life.check_open()
        ring = self._keys.ring
        versions = [ring.get(key_id)] if key_id is not None else ring.for_verification()
        valid = await self._verifiers.verify(versions, message, signature)
        return self._record.verification(message, signature, key_id, valid)

    def on_rotation(self, handover: Handover) -> None:
        """Set the handover that announces each new key to the chain before it signs (see hsmcore.handover). Call it
        before initialize(): an interrupted rotation waits for it. Raises BadArgument for one that is not whole."""
        self._background.announce_with(handover)
        self._handover = handover

    def on(self, event: EventName, callback: Callback) -> Callable[[], None]:
        """Call `callback(details)` in the event loop for each `event` of EVENTS. Returns how to unsubscribe."""
        return self._events.on(event, callback)

    async def operator_action(self, action: str, *, result: str, **fields: Any) -> int | None:
        """Record an action of the operator's console, also a refused one, and emit "operator-action". Returns the
        number of the durable record. Raises AuditUnavailable."""
        number = self.audit.record("operator-action", command=action, result=result, **fields)
        await self.audit.durable(number)
        self._events.emit("operator-action", action=action, result=result, **fields)
        return number

    def get_cache_stats(self) -> dict[str, Any]:
        """Counters of the signature cache: size, max_size, hits, misses, joined, evictions, bytes, hit_rate."""
        self._life.check()
        return cache_summary([one.engine for one in running(self._path)], self._rules.max_cache_size)

    def get_stats(self) -> dict[str, Any]:
        """Counters and latency histograms of the workers, by member; see Engine.stats."""
        self._life.check()
        return {member.name: member.stats() for member in self.members() if member.running}

    def describe(self) -> Described:
        """The state, as data for JSON. Only in the event loop; also before initialize() and after close()."""
        return self.snapshot().describe()

    def snapshot(self) -> Snapshot:
        """The parts, for hsmcore.metrics. Any thread."""
        beside, life, ring = self._background, self._life.state, self._keys.ring
        first = (self.config, life, self._path, ring, beside.rotation, self.audit, beside.store_problems)
        return Snapshot(*first, self._guard, self.fleet, beside.state_backups, self._batches.figures, self._keys.logs)
