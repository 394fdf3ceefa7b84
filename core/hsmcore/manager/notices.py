"""Notices to operators: written to the state store first, delivered when the targets can be reached."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.base.steady import SteadyClock
from hsmcore.config import Notices, Secret
from hsmcore.config.targets import problem_of, send
from hsmcore.errors import HsmError
from hsmcore.state import Outbox, Store
from hsmcore.state.outbox import Delivery
from hsmcore.state.schema import FORGET_SECONDS

SECOND: Final = 1_000_000_000
GIVE_UP: Final = 81
"""Attempts, about three days, after which an undelivered notice is given up, and logged. A clock would lose one."""
_FIRST_RETRY_NS: Final = 5 * SECOND
_LAST_RETRY_NS: Final = 3600 * SECOND
_LOOK_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 10.0
"""How long closing waits for the store to take notices."""


class NoticeService:
    """Puts notices into the outbox and delivers them, one at a time, in its own thread. Belongs to the event loop. A
    failure is logged and does not affect signing."""

    clock: Callable[[], int] = staticmethod(time.time_ns)

    def __init__(self, store: Store, rules: Notices | None) -> None:
        self.outbox = Outbox(store)
        self._rules = rules
        self._scope = Scope()
        self._wake: asyncio.Event | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._noting = Scope()
        self._targets: dict[str, Secret] | None = None

    def begin(self) -> None:
        """Start to deliver."""
        if self._rules is not None and self._wake is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hsmcore-notices")
            self._wake = self._scope.every(_LOOK_SECONDS, self._deliver, "notices are not delivered")
            clock = SteadyClock(self.clock)
            self._scope.every(FORGET_SECONDS, lambda: self.outbox.forget(clock.sure()), "old notices are not removed")

    async def close(self) -> None:
        """Stop delivering, after the attempt under way (some seconds at most). Undelivered notices stay in the outbox;
        one that the store does not take within CLOSE_SECONDS is lost, with a line in the log. Idempotent."""
        await self._scope.close()
        if lost := await self._noting.finish(CLOSE_SECONDS):
            get_logger().error("the state store does not take notices", lost=lost)
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await asyncio.get_running_loop().run_in_executor(None, thread.shutdown)

    async def announce(self, kind: str, title: str, body: str, occasion: str) -> bool:
        """Add a notice, once for each occasion. Returns whether it was new."""
        rules = self._rules
        if rules is None or kind not in rules.kinds:
            return False
        new = await self.outbox.add(kind, occasion, f"hsmcore: {title}", body, await self._names())
        if new and self._wake is not None:
            self._wake.set()
        return new

    def note(self, kind: str, event: str, details: Mapping[str, Any]) -> None:
        """As `announce`, from a callback of Events: an event and its details."""
        lines = [f"{name}: {value.hex() if isinstance(value, bytes) else value}" for name, value in details.items()]
        announced = self.announce(kind, event, "\n".join(lines) or event, f"{event}-{time.time_ns()}")
        self._noting.start(announced, failed="a notice was not written")

    async def _names(self) -> list[str]:
        """The targets' fingerprints. Resolving a secret may block, so it runs in a thread."""
        if self._targets is None and self._rules is not None:
            secrets = self._rules.targets
            self._targets = await asyncio.get_running_loop().run_in_executor(
                None, lambda: {_looked_at(secret): secret for secret in secrets}
            )
        return list(self._targets or ())

    async def _deliver(self) -> None:
        await self._names()
        while due := await self.outbox.due(self.clock(), _LAST_RETRY_NS):
            for delivery in due:
                await self._attempt(delivery, (self._targets or {}).get(delivery.target))

    async def _attempt(self, delivery: Delivery, target: Secret | None) -> None:
        if target is None:
            error = "the configuration does not have this target any more"
        else:
            loop = asyncio.get_running_loop()
            error = await loop.run_in_executor(self._thread, send, target, delivery.title, delivery.body)
        now, attempts = self.clock(), delivery.attempts + 1
        values: dict[str, Any] = {"attempts": attempts, "error": error}
        if not error:
            values["done_ns"] = now
        elif attempts >= GIVE_UP or target is None:
            values["given_up_ns"] = now
            get_logger().error("a notice was given up", title=delivery.title, target=delivery.target, error=error)
        else:
            values["next_ns"] = now + min(_FIRST_RETRY_NS * 2 ** min(attempts - 1, 12), _LAST_RETRY_NS)
            get_logger().warning("a notice was not taken", title=delivery.title, target=delivery.target, error=error)
        await self.outbox.change(delivery.id, **values)


def _fingerprint(secret: Secret) -> str:
    """A name for a target that does not reveal its address, and is stable while the address is."""
    try:
        value = secret.resolve()
    except HsmError:
        return f"unresolved-{secret.where}"
    try:
        return hashlib.sha256(b"hsmcore notice target\x00" + value).hexdigest()[:16]
    finally:
        value[:] = bytes(len(value))


def _looked_at(target: Secret) -> str:
    """Return a target's fingerprint; log it if nothing can be sent there. Blocks."""
    if problem := problem_of(target):
        get_logger().error("notices cannot be sent to a target", path=target.where, problem=problem)
    return _fingerprint(target)
