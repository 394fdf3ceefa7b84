"""OffloadEngine: the native request table, cache, rings and counters for members that sign with coroutines or in
software. Read runners.py next."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from hsmcore._native import Digest, Guest
from hsmcore.base.keyring import KeyVersion
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.offload.runners import Backend, InstantBackend, InstantRunner, TaskRunner

if TYPE_CHECKING:
    from hsmcore.audit import AuditLog


class OffloadEngine(Guest):
    """A SigningEngine (see base.py) in front of a back end. All methods belong to one event loop."""

    @classmethod
    def before(
        cls, backend: Backend | InstantBackend, *, queue_size: int, verify_every: int = 0, **rules: Any
    ) -> OffloadEngine:
        """Make an engine before a back end. At most `queue_size` requests are in flight, of which at most the back
        end's `concurrency` are with it; others wait within their timeouts. `rules` are those of MemberSpec."""
        runners = 1 if isinstance(backend, InstantBackend) else min(backend.concurrency, queue_size)
        engine = cls(slots=queue_size, max_workers=runners, coalesce_seconds=0.0, **rules)
        engine.recoveries = Counter()
        engine._versions = []
        engine._audit = None
        engine._lost = ""
        engine._member_name = rules["member"]
        engine._runner = (
            InstantRunner(engine, backend)
            if isinstance(backend, InstantBackend)
            else TaskRunner(engine, backend, runners, rules["member"], engine.look_again)
        )
        engine.serve(runners, verify_every, engine._runner.pump)
        return engine

    recoveries: Counter[str]
    """Recoveries of the back end without the engine, by error class."""
    _versions: list[KeyVersion]
    _audit: tuple[AuditLog, str] | None
    _lost: str
    _member_name: str
    _runner: TaskRunner | InstantRunner

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve the running `loop`: from now on `submit` works, in this loop only."""
        self.attach(loop, self._runner.expire)

    def add_key(
        self, algorithm: Algorithm, public_key: bytes, max_message: int | None = None, limit: str = "its limit"
    ) -> int:
        """Add a key to the table. Returns its index, which the back end gets with each message. `max_message` is the
        back end's own limit in bytes, and `limit` its name."""
        return self.pin(algorithm, public_key, max_message, limit)

    def name_key(self, version: KeyVersion) -> KeyVersion:
        """Name this key in its records. Returns `version`."""
        self._versions = [known for known in self._versions if known.index != version.index] + [version]
        self._name_in_records(version)
        return version

    def record(self, audit: AuditLog, level: str) -> None:
        """Record every signature from now on, and hand it out when its record is durable."""
        journal = audit.journal
        if journal is not None:
            self._audit = audit, level
            self.record_in(journal)
            for version in self._versions:
                self._name_in_records(version)

    def _name_in_records(self, version: KeyVersion) -> None:
        if self._audit is not None:
            audit, level = self._audit
            self.set_tail(version.index, audit.tail(version, self._member_name, level))

    def lose(self, status: str) -> None:
        """The back end cannot be reached: fail requests immediately with `status`, and the queued ones. "": it can be
        reached again."""
        self._lost = status
        self.look_again()
        if status:
            self.refuse_queued(status)

    def look_again(self) -> None:
        """Decide whether requests are taken: not while the back end is lost, or while every runner is stuck."""
        self.set_down(bool(self._lost) or self._runner.clogged, self._lost or "TOKEN_LOST")

    def unsigned(self, key: int, message: bytes | Digest) -> bool:
        """Whether a request that has just ended at its deadline has certainly left no signature."""
        return self._runner.unsigned(key, message)

    def stats(self) -> dict[str, Any]:
        """Return counters, and histograms of time with the back end and in the queue, as the native Engine's."""
        counted = super().stats()
        recoveries = Counter(counted["recoveries"]) + self.recoveries
        return {**counted, "recoveries": dict(recoveries), "down": bool(self._lost) or self._runner.clogged}

    async def stop(self, timeout: float) -> int:
        """End every call to the back end, and answer every caller that waits then with EngineClosed. Returns how many
        calls did not end within `timeout` seconds. Idempotent."""
        self.refuse()
        left = await self._runner.stop(timeout, lambda: self.idle().done())
        self.detach()
        self.release()
        return left
