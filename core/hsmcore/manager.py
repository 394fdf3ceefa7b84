"""The key manager: what an application holds. Policy only; bytes are the native core's business."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from hsmcore.audit import AuditLog
from hsmcore.audit.record import extra as audit_extra
from hsmcore.config import Config, KeyManagerConfig, load
from hsmcore.config.load import Source
from hsmcore.errors import HsmError, LoginError, NotInitialized, WrongEventLoop
from hsmcore.events import Callback, Events
from hsmcore.failover.batch import sign_many
from hsmcore.failover.seat import Seat
from hsmcore.failover.service import FailoverService, told_apart
from hsmcore.keyops import KeyOperations
from hsmcore.keyring import KeyRing, KeyVersion
from hsmcore.lifecycle import Lifecycle
from hsmcore.members import Member, cache_summary, make_member
from hsmcore.observe import Observable
from hsmcore.parts import Parts
from hsmcore.receipt import Receipt
from hsmcore.recording import Recorder
from hsmcore.tracing import instrument
from hsmcore.upkeep import Upkeep
from hsmcore.verification import VerifierPool

T = TypeVar("T")
Signed = bytes | asyncio.Future[bytes]


def create_key_manager(config: Source, *, rotates: bool = True) -> KeyManager:
    """Check a configuration and make the key manager for it; nothing is opened before `initialize()`.

    `config` is a dict, the path of a JSON file, or a Config. `rotates`: False leaves `keyRotation` to other processes
    and only follows the key ring, as the commands that sign, verify and show do. Raises ConfigurationError, which names
    each fault by its JSON path.
    """
    return KeyManager(load(config), rotates=rotates)


async def _a_turn(error: HsmError) -> None:
    """Give the event loop its turn before an error is raised that may have come without one: what ends an outage runs
    in that loop, and a caller that repeats at once would keep it to itself."""
    if not isinstance(error, WrongEventLoop):  # there may be no loop
        await asyncio.sleep(0)


def _not_initialized(*_args: object, **_kwargs: object) -> Any:
    raise NotInitialized("used before initialize()")


class KeyManager(KeyOperations, Observable):
    """Signs with the current key of a key ring on an HSM.

    It belongs to the event loop that runs `initialize()` and is for that loop only: every other use raises
    WrongEventLoop, and EngineForked in a forked child. All coroutines may run concurrently. No call blocks the loop;
    every signature has a deadline. All errors are HsmError.
    """

    def __init__(self, config: Config, *, rotates: bool = True) -> None:
        self.config = config
        self._rotates = rotates
        self.audit = AuditLog.of(config.key_manager)
        self._rules: KeyManagerConfig = config.key_manager
        self._life = Lifecycle(self._open, self._refuse, self._close)
        self._ring = KeyRing()
        self._changing_keys = asyncio.Lock()
        self._events = Events()
        self._verifiers = VerifierPool()
        self._member: Member | None = None
        self._failover: FailoverService | None = None
        self._upkeep: Upkeep | None = None
        self._key: KeyVersion | None = None
        self._refused: LoginError | None = None
        # Bound once, so that a signature costs no look-up through the member and its engine.
        self._submit: Callable[[object, float | None, int, bytes | None], Signed] = _not_initialized
        self._key_index = 0
        self._audited = self.audit.enabled
        self._record = Recorder(self.audit, self._rules.name)

    # ---- life cycle ----

    async def initialize(self) -> None:
        """Open the audit log, log in to the token, start its workers, find and prove the key. Raises HsmError; on
        failure nothing is left open and it may be tried again, unless the login was refused: that is not repeated."""
        await self._life.open()

    async def close(self) -> None:
        """Refuse new requests, let those in flight end (each with its signature or an error), then let the token go.
        Doing it twice is no error."""
        await self._life.close()

    async def _open(self) -> None:
        instrument(self)
        if self._refused is not None:
            raise type(self._refused)(
                "an earlier initialize() was refused; another attempt could lock the PIN",
                status=self._refused.status,
                member=self._rules.name,
                hint=f"{self._refused.hint} Then make a new key manager.",
            )
        try:
            await self.audit.open()
            self.audit.record("configuration-load", result="ok", config_sha256=self.config.sha256())
            self._upkeep = await Upkeep.open(self.config, rotates=self._rotates)
            config = self._upkeep.config
            if self._rules.has_levels:
                await self._open_levels(config)
                return
            rules = config.key_manager
            member = make_member(rules.own, rules, "primary", config.secret_variables)
            key = await self._start(member)
            await self.audit.use_member(member, member.stop)
            if self._audited:
                member.record_in(self.audit)
            self._begin_with(member, key)
            await self._begin_upkeep(key, member.stop)
        except BaseException as error:
            await self._end_upkeep()
            if isinstance(error, LoginError):
                self._refused = error.with_traceback(None)
            self._record.not_opened(error)
            await self.audit.close()
            raise
        self._record.opened([(member.name, member.level)], self._current())
        self._events.emit("initialized", member=member.name, key_id=self._current().id)

    def _begin_with(self, member: Member, key: KeyVersion) -> None:
        self._member = member
        self._ring = KeyRing()
        self._ring.add(key)
        self._use(member, key)

    async def _open_levels(self, config: Config) -> None:
        service = await FailoverService.open(config, self._verify_version, self.audit, self._events)
        await self.audit.use_member(service.member, service.close)
        self._ring = KeyRing()
        service.router.on_key = self._learn_key
        service.router.check = self._life.check
        for seat in service.running():
            self._learn_key(seat)
        self._ring.make_current(service.version.id)
        self._failover = service
        await self._begin_upkeep(service.version, service.close)
        self._record.opened([(seat.name, seat.level_name) for seat in service.running()], service.version)
        self._events.emit("initialized", member=service.member.name, key_id=service.version.id)

    def _learn_key(self, seat: Seat) -> None:
        if self._audited and seat.member is not None:
            seat.member.record_in(self.audit)
        seat.use(told_apart(seat.key_version, list(self._ring), seat.name))
        self._ring.add(seat.key_version)

    async def _verify_version(self, version: KeyVersion, message: bytes, signature: bytes) -> bool:
        return await self._verifiers.verify([version], message, signature)

    async def _start(self, member: Member) -> KeyVersion:
        try:
            member.require_ready()  # before the blanks of an example: what to install comes first
            self.config.require_complete()
            return await member.start()
        except BaseException:
            await member.stop()
            raise

    def _refuse(self) -> None:
        if self._failover is not None:
            self._failover.refuse()
        # Where the member signs the last checkpoint too, the life cycle's state alone refuses requests.
        if self._member is not None and not self.audit.needs_member:
            self._member.engine.refuse()

    async def _close(self) -> None:
        if self._failover is None and self._member is None:
            return
        self._refuse()  # an opening that was cancelled too late comes here at once
        name = self._rules.name
        await self._end_upkeep()
        if self._member is not None:
            await self._member.engine.idle()
        self.audit.note("close", member=name)
        await self.audit.seal()  # while the member can still sign the checkpoint
        if self._member is not None:
            await self._member.stop()
        if self._failover is not None:
            await self._failover.close()
        await self.audit.close()
        self._verifiers.close()
        self._events.emit("closed", member=name)

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ---- signing ----

    async def sign(
        self,
        message: bytes | bytearray | memoryview,
        timeout: float | None = None,
        *,
        allow_other_key: bool = False,
    ) -> bytes:
        """Sign one message with the current key.

        `timeout` in seconds; None: `requestTimeoutMs`. Returns 64 bytes. Raises DeadlineExceeded, KeyDeactivated,
        InvalidMessage, MessageTooLarge, InvalidTimeout, MemberDown and other HsmErrors; `.retryable` says whether
        the same call can succeed later. When the queue is full, it waits for its turn within the timeout; who could not
        have it in time gets QueueFull, a DeadlineExceeded, at once.

        With failover, AllLevelsFailed says that no level could sign, and why. `allow_other_key`: another key may sign
        the message although a signature under the first one may exist already.
        """
        extra = audit_extra() if self._audited else None
        try:
            if self._failover is not None:
                router = self._failover.router
                if extra is None:
                    return await router.sign(message, timeout, allow_other_key)
                return (await router.sign_traced(message, timeout, allow_other_key, extra)).signature
            signed = self._submit(message, timeout, self._key_index, extra)
        except HsmError as error:
            self._record.failure("sign", message, error)
            await _a_turn(error)
            raise
        if isinstance(signed, bytes):
            return signed
        try:
            return await signed
        except asyncio.CancelledError:
            self._abandon(signed)
            raise
        except HsmError as error:
            await _a_turn(error)
            raise

    @overload
    async def sign_many(
        self,
        messages: Iterable[bytes | bytearray | memoryview],
        timeout: float | None = None,
        return_exceptions: Literal[False] = False,
    ) -> list[bytes]: ...
    @overload
    async def sign_many(
        self,
        messages: Iterable[bytes | bytearray | memoryview],
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> list[bytes | HsmError]: ...
    async def sign_many(
        self,
        messages: Iterable[bytes | bytearray | memoryview],
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> Any:
        """Sign a batch in one crossing to the workers. Returns the signatures in order.

        If one fails, its error is raised at once, unless `return_exceptions` puts it into the list instead. An invalid
        message is refused before anything is signed. `timeout` is for the whole batch.
        """
        messages = list(messages)
        try:
            self._life.check()
        except HsmError as error:
            await _a_turn(error)
            raise
        extra = audit_extra() if self._audited else None
        try:
            if self._failover is not None:
                return (await sign_many(self._failover.router, messages, timeout, return_exceptions, extra))[0]
            engine = self._opened().engine
            future = engine.submit_many(messages, timeout, return_exceptions, self._current().index, extra)
        except HsmError as error:
            self._record.failure("sign-many", None, error)
            await _a_turn(error)
            raise
        return await self._awaited(future)

    async def sign_with_receipt(
        self,
        message: bytes | bytearray | memoryview,
        timeout: float | None = None,
        *,
        allow_other_key: bool = False,
    ) -> Receipt:
        """Sign one message and say who did it. Errors as `sign`."""
        begun = time.perf_counter_ns()
        try:
            self._life.check()
        except HsmError as error:
            await _a_turn(error)
            raise
        extra = audit_extra() if self._audited else None
        try:
            if self._failover is not None:
                made = await self._failover.router.sign_traced(message, timeout, allow_other_key, extra)
                return made.receipt(time.perf_counter_ns() - begun)
            member, key = self._opened(), self._current()
            future = member.engine.submit_with_receipt(message, timeout, key.index, extra)
        except HsmError as error:
            self._record.failure("sign", message, error)
            await _a_turn(error)
            raise
        signature, sequence, cached = await self._awaited(future)
        latency = time.perf_counter_ns() - begun
        return Receipt(signature, key.id, key.public_key, member.name, member.level, cached, latency, sequence)

    async def _awaited(self, future: asyncio.Future[T]) -> T:
        try:
            return await future
        except asyncio.CancelledError:
            self._abandon(future)
            raise
        except HsmError as error:
            await _a_turn(error)
            raise

    def _abandon(self, future: asyncio.Future[Any]) -> None:
        if self._member is not None:
            self._member.engine.abandon(future)

    async def verify(
        self, message: bytes | bytearray | memoryview, signature: bytes, key_id: str | None = None
    ) -> bool:
        """Whether `signature` is good for `message`: by the key named, or by any key of the ring. In software, off the
        event loop, never by the HSM. Raises KeyNotFound, InvalidMessage."""
        self._life.check_open()
        versions = [self._ring.get(key_id)] if key_id is not None else self._ring.for_verification()
        valid = await self._verifiers.verify(versions, message, signature)
        return self._record.verification(message, signature, key_id, valid)

    # ---- keys ----

    @property
    def public_key(self) -> bytes:
        """The current key's public key: 32 bytes (Ed25519) or 65 (0x04 || X || Y)."""
        return self._current().public_key

    async def get_current_key_id(self) -> str:
        """The id (CKA_ID in hexadecimal) of the key that signs."""
        return self._current().id

    # ---- what goes on ----

    def on(self, event: str, callback: Callback) -> Callable[[], None]:
        """Call `callback(details)` in the event loop for each `event`; see events.EVENTS. Returns what ends it."""
        return self._events.on(event, callback)

    def get_cache_stats(self) -> dict[str, Any]:
        """Counters of the signature cache: size, max_size, hits, misses, joined, evictions, bytes, hit_rate."""
        member = self._opened()
        engines = [member.engine] if self._failover is None else [seat.signing for seat in self._failover.running()]
        return cache_summary(engines, self._rules.max_cache_size)

    def get_stats(self) -> dict[str, Any]:
        """Counters and latency histograms of the workers, by member; see Engine.stats."""
        member = self._opened()
        if self._failover is not None:
            return {seat.name: seat.signing.stats() for seat in self._failover.running()}
        return {member.name: member.engine.stats()}

    def parts(self) -> Parts:
        """What it is made of now, for monitoring; see hsmcore.metrics. Any thread."""
        key = self._key if self._failover is None else self._failover.router.version
        rotation = None if self._upkeep is None else self._upkeep.rotation
        is_open = self._life.state == "open"
        return Parts(self.config, is_open, self._member, self._failover, rotation, self.audit, key)

    # ---- inside ----

    def _opened(self, operation: str | None = None) -> Member:
        self._life.check()
        if self._failover is not None:
            if operation is not None:
                self._failover.router.check_operation(operation)
            return self._failover.member
        if self._member is None:
            raise NotInitialized("used before initialize()")
        return self._member

    def _current(self) -> KeyVersion:
        if self._failover is not None:
            return self._failover.version
        if self._key is None:
            raise NotInitialized("used before initialize()")
        return self._key

    def _use(self, member: Member, key: KeyVersion) -> None:
        if self._failover is not None:
            self._failover.use(key)
            return
        engine = member.engine
        engine.clear_cache()
        self._ring.make_current(key.id)
        self._key = key
        self._key_index = key.index
        self._submit = engine.submit
