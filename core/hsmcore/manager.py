"""The key manager: what an application holds. Policy only; bytes are the native core's business."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from hsmcore.audit import AuditLog
from hsmcore.config import Config, KeyManagerConfig, load
from hsmcore.config.load import Source
from hsmcore.errors import HsmError, LoginError, NotInitialized
from hsmcore.events import Callback, Events
from hsmcore.keyring import KeyRing, KeyVersion
from hsmcore.lifecycle import Lifecycle
from hsmcore.log import get_logger
from hsmcore.members import Member, make_member
from hsmcore.receipt import Receipt
from hsmcore.verification import VerifierPool

T = TypeVar("T")
Signed = bytes | asyncio.Future[bytes]


def create_key_manager(config: Source) -> KeyManager:
    """Check a configuration and make the key manager for it; nothing is opened before `initialize()`.

    `config` is a dict, the path of a JSON file, or a Config. Raises ConfigurationError, which names each fault by its
    JSON path.
    """
    return KeyManager(load(config))


def _not_initialized(*_args: object, **_kwargs: object) -> Any:
    raise NotInitialized("used before initialize()")


class KeyManager:
    """Signs with the current key of a key ring on an HSM.

    It belongs to the event loop that runs `initialize()` and is for that loop only: every other use raises
    WrongEventLoop, and EngineForked in a forked child. All coroutines may run concurrently. No call blocks the loop;
    every signature has a deadline. All errors are HsmError.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.audit = AuditLog(config.key_manager.audit_log_file)
        self._rules: KeyManagerConfig = config.key_manager
        self._life = Lifecycle(self._open, self._refuse, self._close)
        self._ring = KeyRing()
        self._changing_keys = asyncio.Lock()
        self._events = Events()
        self._verifiers = VerifierPool()
        self._member: Member | None = None
        self._key: KeyVersion | None = None
        self._refused: LoginError | None = None
        # Bound once, so that a signature costs no look-up through the member and its engine.
        self._submit: Callable[[object, float | None, int], Signed] = _not_initialized
        self._key_index = 0
        self._audited = self.audit.enabled

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
        if self._refused is not None:
            raise type(self._refused)(
                "an earlier initialize() was refused; another attempt could lock the PIN",
                status=self._refused.status,
                member=self._rules.name,
                hint=f"{self._refused.hint} Then make a new key manager.",
            )
        self._warn_of_what_is_missing()
        try:
            await self.audit.open()
            member = make_member(self._rules, self._rules, "primary", self.config.secret_variables)
            key = await self._start(member)
        except BaseException as error:
            if isinstance(error, LoginError):
                self._refused = error.with_traceback(None)
            self.audit.record("open", result="error", error=type(error).__name__, member=self._rules.name)
            await self.audit.close()
            raise
        self._member = member
        self._ring = KeyRing()
        self._ring.add(key)
        self._use(member, key)
        self.audit.record("open", result="ok", member=member.name, key_id=key.id)
        self._events.emit("initialized", member=member.name, key_id=key.id)

    async def _start(self, member: Member) -> KeyVersion:
        try:
            member.require_ready()  # before the blanks of an example: what to install comes first
            self.config.require_complete()
            return await member.start()
        except BaseException:
            await member.stop()
            raise

    def _refuse(self) -> None:
        if self._member is not None:
            self._member.engine.refuse()

    async def _close(self) -> None:
        member = self._member
        if member is None:
            return
        self._refuse()  # an opening that was cancelled too late comes here at once
        await member.engine.idle()
        self.audit.record("close", member=member.name)
        await member.stop()
        await self.audit.close()
        self._verifiers.close()
        self._events.emit("closed", member=member.name)

    def _warn_of_what_is_missing(self) -> None:
        for name, part in (("failover", self._rules.failover), ("keyRotation", self._rules.key_rotation)):
            if part is not None and part.enabled:
                path = f"{self._rules.where}.{name}"
                get_logger().warning(f"{name}.enabled has no effect in this version", path=path)

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ---- signing ----

    async def sign(self, message: bytes | bytearray | memoryview, timeout: float | None = None) -> bytes:
        """Sign one message with the current key.

        `timeout` in seconds; None: `requestTimeoutMs`. Returns 64 bytes. Raises DeadlineExceeded, KeyDeactivated,
        InvalidMessage, MessageTooLarge, InvalidTimeout, MemberDown and other HsmErrors; `.retryable` says whether
        the same call can succeed later. When the queue is full, it waits for its turn within the timeout.
        """
        if self._audited:
            return (await self.sign_with_receipt(message, timeout)).signature
        signed = self._submit(message, timeout, self._key_index)
        if isinstance(signed, bytes):
            return signed
        try:
            return await signed
        except asyncio.CancelledError:
            self._abandon(signed)
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
        messages = [m if isinstance(m, bytes) or not self._audited else _copied(m) for m in messages]
        begun = time.perf_counter_ns()
        member = self._opened()
        key = self._current()
        try:
            results = await self._awaited(member.engine.submit_many(messages, timeout, return_exceptions, key.index))
        except (HsmError, asyncio.CancelledError) as error:
            self._record_failure("sign-many", None, error)
            raise
        if self._audited:
            for message, result in zip(messages, results, strict=True):
                self._record(member, key, message, result, False, time.perf_counter_ns() - begun)
        return results

    async def sign_with_receipt(self, message: bytes | bytearray | memoryview, timeout: float | None = None) -> Receipt:
        """Sign one message and say who did it. Errors as `sign`."""
        begun = time.perf_counter_ns()
        member = self._opened()
        key = self._current()
        if self._audited:
            message = _copied(message)  # the record is of what was signed, whatever becomes of the buffer
        try:
            signed = self._submit(message, timeout, key.index)
            cached = isinstance(signed, bytes)
            signature = signed if isinstance(signed, bytes) else await self._awaited(signed)
        except (HsmError, asyncio.CancelledError) as error:
            self._record_failure("sign", message, error)
            raise
        latency = time.perf_counter_ns() - begun
        sequence = self._record(member, key, message, signature, cached, latency)
        return Receipt(signature, key.id, key.public_key, member.name, member.level, cached, latency, sequence)

    async def _awaited(self, future: asyncio.Future[T]) -> T:
        try:
            return await future
        except asyncio.CancelledError:
            self._abandon(future)
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
        return await self._verifiers.verify(versions, message, signature)

    # ---- keys ----

    @property
    def public_key(self) -> bytes:
        """The current key's public key: 32 bytes (Ed25519) or 65 (0x04 || X || Y)."""
        return self._current().public_key

    async def get_current_key_id(self) -> str:
        """The id (CKA_ID in hexadecimal) of the key that signs."""
        return self._current().id

    async def set_current_key_id(self, key_id: str) -> None:
        """Sign with another key from now on; it may be one of the ring or any other on the token. Requests that are
        queued already keep their key. The cache is wiped. Raises KeyNotFound, KeyDeactivated."""
        member = self._opened()
        async with self._changing_keys:
            if key_id not in self._ring and (identity := _bytes_of(key_id)):
                self._ring.add(await member.load_key(identity))
            previous = self._current().id
            current = self._ring.make_current(key_id)
            self._use(member, current)
        self.audit.record("set-current-key", result="ok", key_id=current.id, previous=previous, member=member.name)
        self._events.emit("key-changed", key_id=current.id, previous=previous)

    async def generate_key(self) -> str:
        """Make a new key pair of the current key's algorithm on the token. Returns its id; the current key stays."""
        member = self._opened()
        current = self._current()
        rotation = self._rules.key_rotation
        record = await member.control.generate_key(
            current.algorithm,  # type: ignore[arg-type]  # an algorithm of the engine is one of the control plane
            f"{_stem(current.label)}-{os.urandom(4).hex()}",
            extractable=rotation is not None and rotation.backup_enabled,
        )
        version = self._ring.add(await member.load_key(bytes.fromhex(record.id)))
        self.audit.record("generate-key", result="ok", key_id=version.id, member=member.name)
        self._events.emit("key-generated", key_id=version.id, public_key=version.public_key)
        return version.id

    async def deactivate_key(self, key_id: str) -> None:
        """Never sign with this key again; requests queued for it are refused. If it is the current one, signing fails
        with KeyDeactivated until another is made current. Tokens that can are made to refuse it too. Raises
        KeyNotFound."""
        member = self._opened()
        async with self._changing_keys:
            version = self._ring.get(key_id)
            member.engine.retire_key(version.index)
            self._ring.deactivate(version.id)
            enforced = (await member.control.deactivate(version.id)).enforced
        self.audit.record("deactivate-key", result="ok", key_id=version.id, enforced=enforced, member=member.name)
        self._events.emit("key-deactivated", key_id=version.id, enforced=enforced)

    async def export_key_backup(self, key_id: str) -> bytes:
        """The private key wrapped by the HSM; its plain value never leaves it. Raises KeyNotExportable when the key or
        the token does not allow it."""
        member = self._opened()
        try:
            blob = await member.control.export_wrapped(key_id)
        except HsmError as error:
            self.audit.record("backup", result="error", error=error.status, key_id=key_id, member=member.name)
            raise
        self.audit.record("backup", result="ok", key_id=key_id, member=member.name)
        return blob

    def keys(self) -> list[KeyVersion]:
        """The key ring, oldest version first."""
        return list(self._ring)

    # ---- what goes on ----

    def on(self, event: str, callback: Callback) -> Callable[[], None]:
        """Call `callback(details)` in the event loop for each `event`; see events.EVENTS. Returns what ends it."""
        return self._events.on(event, callback)

    def get_cache_stats(self) -> dict[str, Any]:
        """Counters of the signature cache: size, max_size, hits, misses, joined, evictions, bytes, hit_rate."""
        member = self._opened()
        stats = member.engine.cache_stats()
        asked = stats["hits"] + stats["misses"] + stats["joined"]
        return {
            "size": stats["entries"],
            "max_size": self._rules.max_cache_size,
            "hits": stats["hits"],
            "misses": stats["misses"],
            "joined": stats["joined"],
            "evictions": stats["evictions"],
            "bytes": stats["bytes"],
            "hit_rate": (stats["hits"] + stats["joined"]) / asked if asked else 0.0,
        }

    def get_stats(self) -> dict[str, Any]:
        """Counters and latency histograms of the workers, by member; see Engine.stats."""
        member = self._opened()
        return {member.name: member.engine.stats()}

    # ---- inside ----

    def _opened(self) -> Member:
        self._life.check()
        if self._member is None:
            raise NotInitialized("used before initialize()")
        return self._member

    def _current(self) -> KeyVersion:
        if self._key is None:
            raise NotInitialized("used before initialize()")
        return self._key

    def _use(self, member: Member, key: KeyVersion) -> None:
        engine = member.engine
        engine.clear_cache()
        self._ring.make_current(key.id)
        self._key = key
        self._key_index = key.index
        self._submit = engine.submit

    def _record(
        self, member: Member, key: KeyVersion, message: Any, result: bytes | HsmError, cached: bool, latency: int
    ) -> int | None:
        if not self._audited:
            return None
        if isinstance(result, HsmError):
            return self._record_failure("sign", message, result)
        return self.audit.record(
            "sign",
            message=bytes(message),
            result="ok",
            signature=result.hex(),
            key_id=key.id,
            public_key=key.public_key.hex(),
            member=member.name,
            level=member.level,
            cached=cached,
            latency_ns=latency,
        )

    def _record_failure(self, operation: str, message: Any, error: BaseException) -> int | None:
        if not self._audited:
            return None
        return self.audit.record(
            operation,
            message=bytes(message) if isinstance(message, (bytes, bytearray, memoryview)) else None,
            result="error",
            error=error.status if isinstance(error, HsmError) else "CANCELLED",
            member=self._rules.name,
        )


def _copied(message: object) -> Any:
    return bytes(message) if isinstance(message, (bytearray, memoryview)) else message


def _stem(label: str) -> str:
    """So much of a label that its successor's, which adds nine bytes, fits every token: YubiHSM 2 has 40 bytes."""
    return label.encode()[:31].decode(errors="ignore")


def _bytes_of(key_id: str) -> bytes:
    try:
        return bytes.fromhex(key_id)
    except ValueError:
        return b""
