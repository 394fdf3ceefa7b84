"""An engine whose signatures are recorded from Python, for members that the native core does not serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from hsmcore._native import freeze
from hsmcore.errors import HsmError
from hsmcore.keyring import KeyVersion
from hsmcore.members.offload.engine import OffloadEngine

if TYPE_CHECKING:
    from hsmcore.audit import AuditLog

T = TypeVar("T")


class RecordedEngine:
    """A SigningEngine (see base.py) around an OffloadEngine. Records nothing before `record_in`."""

    def __init__(self, inner: OffloadEngine, member: str, level: str) -> None:
        self.inner = inner
        self._member, self._level = member, level
        self._audit: AuditLog | None = None
        self._keys: dict[int, KeyVersion] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.retire_key = inner.retire_key
        self.clear_cache = inner.clear_cache
        self.refuse = inner.refuse
        self.stats = inner.stats
        self.cache_stats = inner.cache_stats

    def name_key(self, version: KeyVersion) -> KeyVersion:
        """Name this key in its records. Returns `version`."""
        self._keys[version.index] = version
        return version

    def record_in(self, audit: AuditLog) -> None:
        """Record every signature from now on, and hand it out when its record is durable."""
        self._audit = audit

    @property
    def in_flight(self) -> int:
        return self.inner.in_flight

    @property
    def waiting(self) -> int:
        return self.inner.waiting

    def submit(
        self, message: object, timeout: float | None = None, key: int = 0, extra: bytes | None = None
    ) -> bytes | asyncio.Future[bytes]:
        signed = self.inner.submit(message, timeout, key)
        if self._audit is None or extra == b"":
            return signed
        return self._spawn(self._first(self._with_receipt(freeze(message), signed, key, extra)))

    def submit_with_receipt(
        self, message: object, timeout: float | None = None, key: int = 0, extra: bytes | None = None
    ) -> asyncio.Future[tuple[bytes, int | None, bool]]:
        signed = self.inner.submit(message, timeout, key)
        return self._spawn(self._with_receipt(freeze(message), signed, key, extra))

    def submit_many(
        self,
        messages: object,
        timeout: float | None = None,
        return_exceptions: bool = False,
        key: int = 0,
        extra: bytes | None = None,
    ) -> asyncio.Future[list[Any]]:
        if self._audit is None or extra == b"":
            return self.inner.submit_many(messages, timeout, return_exceptions, key)
        batch: Any = list(messages) if isinstance(messages, Iterable) else messages  # the engine refuses it below
        future = self.inner.submit_many(batch, timeout, True, key)
        data = [freeze(message) for message in batch]
        return self._spawn(self._batch(data, future, key, extra, return_exceptions))

    def abandon(self, future: asyncio.Future[Any]) -> bool:
        # Of a future of `_spawn` the engine knows nothing: cancelling it has abandoned the inner one.
        return self.inner.abandon(future)

    def idle(self) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._idle())

    async def _idle(self) -> None:
        await self.inner.idle()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Return a future of the coroutine's result. Settling the future ends the coroutine."""
        loop = asyncio.get_running_loop()
        outer: asyncio.Future[T] = loop.create_future()
        task = loop.create_task(work)
        self._tasks.add(task)

        def ended(_task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if outer.done():
                return
            if task.cancelled():
                outer.cancel()
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(task.result())

        task.add_done_callback(ended)
        outer.add_done_callback(lambda _outer: task.cancel())  # without effect if the task has ended
        return outer

    async def _first(self, receipt: Awaitable[tuple[bytes, int | None, bool]]) -> bytes:
        return (await receipt)[0]

    async def _awaited(self, future: asyncio.Future[T]) -> T:
        try:
            return await future
        except asyncio.CancelledError:
            self.inner.abandon(future)
            raise

    async def _with_receipt(
        self, message: bytes, signed: bytes | asyncio.Future[bytes], key: int, extra: bytes | None
    ) -> tuple[bytes, int | None, bool]:
        begun = time.perf_counter_ns()
        cached = isinstance(signed, bytes)
        try:
            signature = signed if isinstance(signed, bytes) else await self._awaited(signed)
        except HsmError as error:
            self._record(message, error, key, extra, False, begun)
            raise
        seq = self._record(message, signature, key, extra, cached, begun)
        if self._audit is not None and self._audit.waits:
            await self._audit.durable(seq)
        return signature, seq, cached

    async def _batch(
        self, messages: list[bytes], future: asyncio.Future[list[Any]], key: int, extra: bytes | None, keep_errors: bool
    ) -> list[Any]:
        begun = time.perf_counter_ns()
        results = await self._awaited(future)
        seq = None
        for message, result in zip(messages, results, strict=True):
            seq = self._record(message, result, key, extra, False, begun)
        if self._audit is not None and self._audit.waits:
            await self._audit.durable(seq)
        error = next((result for result in results if isinstance(result, HsmError)), None)
        if error is not None and not keep_errors:
            raise error
        return results

    def _record(
        self, message: bytes, result: bytes | HsmError, key: int, extra: bytes | None, cached: bool, begun: int
    ) -> int | None:
        if self._audit is None or extra == b"":
            return None
        version = self._keys.get(key)
        fields: dict[str, Any] = {
            "result": "ok" if isinstance(result, bytes) else "error",
            "error": result.status if isinstance(result, HsmError) else None,
            "signature": result if isinstance(result, bytes) else None,
            "key_id": version.id if version is not None else None,
            "public_key": version.public_key if version is not None else None,
            "member": self._member,
            "level": self._level,
            "cached": cached,
            "latency_ns": time.perf_counter_ns() - begun,
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        if extra is not None:
            fields |= orjson.loads(b"{" + extra[1:] + b"}")
        write = self._audit.record if isinstance(result, bytes) else self._audit.note
        return write("sign", message=message, **fields)
