"""The levels of a configuration as one signing path of a key manager."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from hsmcore._native import Lease, Waiter
from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.keyring import KeyRing, KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.base.receipt import Receipt
from hsmcore.base.scope import Scope
from hsmcore.base.steady import SteadyClock
from hsmcore.config import Config, Failover
from hsmcore.errors import ConfigFault, ConfigurationError, HsmError, KeyNotFound
from hsmcore.failover.batch import sign_many
from hsmcore.failover.bindings import KeyBindings, StoredBindings
from hsmcore.failover.breaker import kind_of
from hsmcore.failover.budget import Emergency
from hsmcore.failover.endpoint import Endpoint, require_ready, start_all
from hsmcore.failover.events import ALARMING, Event
from hsmcore.failover.health import HealthMonitor, Verify
from hsmcore.failover.history import History
from hsmcore.failover.levels import EMERGENCY, Levels
from hsmcore.failover.path import Ask, SigningPath
from hsmcore.failover.plan import endpoints_and_levels
from hsmcore.failover.router import Router
from hsmcore.failover.started import Started
from hsmcore.members import Member
from hsmcore.members.base import refuse_closed
from hsmcore.members.snapshot import MemberSnapshot
from hsmcore.state import Desired, Store
from hsmcore.state.schema import FORGET_SECONDS

_EMITTED = frozenset({"failover", "failback", "outage", "recovered", "member-down", "member-up"})
MOST_UNWRITTEN = 1000
"""Events that are kept while the store cannot be written; older ones are in the log only."""


class FailoverService(SigningPath):
    """Levels, router, health monitor and state store of one key manager. Belongs to the event loop that opens it."""

    answers_recorded = False
    has_levels = True

    def __init__(
        self,
        config: Config,
        levels: Levels[Endpoint],
        store: Store,
        verify: Verify,
        audit: AuditLog,
        events: Events,
        pinned: frozenset[str] = frozenset(),
        configured: Config | None = None,
    ) -> None:
        rules = config.key_manager
        failover = rules.active_failover or Failover()
        limits = failover.emergency_mode_restrictions
        super().__init__(levels.members, audit)
        self._events = events
        self._store, self._pinned = store, pinned
        self.history = History(store)
        self.budget = Emergency.of(config, store)
        self.levels = levels
        other_keys = any(level.other_keys for level in levels.levels)
        self.bindings = KeyBindings(StoredBindings(store) if other_keys else None)
        self.router = Router(
            levels,
            default_timeout=rules.request_timeout_ms / 1e3,
            sink=self._tell,
            budget=self.budget,
            operations=frozenset(limits.allowed_operations),
            hedging=failover.hedging,
            on_emergency=self._emergency_operation,
            bindings=self.bindings,
        )
        self._desired = Desired(store)
        self._started = Started(self._desired, configured or config)
        self.health = HealthMonitor(
            self.router, verify, self._desired, rules.name, failover.emergency_mode_enabled, self._each_second
        )
        self.submit, self.receipt = self.router.routes.submit, self.router.routes.ask
        self._unwritten: list[tuple[int, Event]] = []
        self._looked_at = 0
        """The newest event of which it is known whether it is a reset to be audited."""
        self._writing, self._forgetting = Scope(), Scope()

    @classmethod
    async def open(
        cls,
        config: Config,
        verify: Verify,
        audit: AuditLog,
        events: Events,
        pinned: frozenset[str] = frozenset(),
        configured: Config | None = None,
    ) -> Self:
        """Open the store and start the members of all levels but the emergency level. While another one can sign, one
        is only out of service that has started before as it is `configured`, may come, or is `pinned` and lacks the
        key ring's key, which `config` names. Raises HsmError, and leaves nothing open then."""
        store = await Store.open(config.key_manager.state_place, config.state_secret)
        try:
            service = cls(config, endpoints_and_levels(config), store, verify, audit, events, pinned, configured)
        except BaseException:
            await store.close()
            raise
        try:
            await service._start()
            await service.health.begin()
            clock = SteadyClock()
            service._forgetting.every(
                FORGET_SECONDS, lambda: service.history.forget(clock.sure()), "old events are not removed"
            )
        except BaseException:
            await service.close()
            raise
        return service

    async def _start(self) -> None:
        endpoints = [endpoint for endpoint in self.endpoints if endpoint.level_name != EMERGENCY]
        await require_ready([endpoint for endpoint in self.endpoints if endpoint.level_name == EMERGENCY])
        await self.bindings.restore(self._audit)
        await self._started.read()
        done = await start_all(endpoints)
        failures = [result for result in done if isinstance(result, BaseException)]
        for endpoint, result in zip(endpoints, done, strict=True):
            endpoint.lacks_key = endpoint.name in self._pinned and isinstance(result, KeyNotFound)
            if isinstance(result, BaseException):
                survivable = isinstance(result, HsmError) and (result.may_pass or self._started.has(endpoint.name))
                if not (survivable or endpoint.lacks_key) or len(failures) == len(endpoints):
                    raise result
        now = time.monotonic_ns()
        self._require_consent([endpoint for endpoint in endpoints if endpoint.version is not None])
        self.router.current = next(result for result in done if isinstance(result, KeyVersion))
        for endpoint, result in zip(endpoints, done, strict=True):
            if isinstance(result, KeyVersion):
                self.levels.started(endpoint, result.public_key, now)
        for endpoint, result in zip(endpoints, done, strict=True):
            if isinstance(result, HsmError):
                self._out_of_service(endpoint, result, now)
        self.router.settle()

    def _out_of_service(self, endpoint: Endpoint, error: HsmError, now: int) -> None:
        kind = "down" if endpoint.lacks_key else kind_of(error) or "down"
        self.levels.failed(endpoint, kind, f"it did not start: {error.args[0]}", now)
        details: dict[str, Any] = {"member": endpoint.name, "reason": endpoint.reason, "details": {"failure": kind}}
        self._tell(Event("member-down", endpoint.level_name, **details))
        if endpoint.lacks_key:
            hint = "Give it the key: `hsmcore keys replicate`, or restore a backup."
            get_logger().error("a member lacks the current key and signs nothing", member=endpoint.name, hint=hint)

    def _require_consent(self, started: list[Endpoint]) -> None:
        first = started[0]
        key = first.key_version.public_key
        faults = []
        for endpoint in started[1:]:
            own = endpoint.key_version.public_key
            if own != key and not self.levels.levels[endpoint.level].other_keys:
                problem = (
                    f"the key of {endpoint.name} ({own.hex()}) is another one than that of {first.name} ({key.hex()}): "
                    f'configure the same key, or list "{endpoint.level_name}" in failover.acceptOtherKeys if the chain '
                    "accepts both"
                )
                faults.append(ConfigFault(endpoint.where, problem))
        if faults:
            raise ConfigurationError.of(faults)

    def begin(self, ring: KeyRing, check: Callable[[], object], lease: Lease | None = None) -> None:
        """As SigningPath.begin, and the same for each member that starts later."""
        self.router.check = check
        self.router.on_key = self._learn_key
        super().begin(ring, check, lease)

    def retire_key(self, version: KeyVersion) -> None:
        """As SigningPath, also on members that start later."""
        self.router.retired.add(version.public_key)
        super().retire_key(version)

    def ask(self, asked: Ask, waiter: Waiter | None = None) -> asyncio.Future[Receipt]:
        """As Way."""
        router = self.router
        if router.closing:
            refuse_closed()
        sharing = router.levels.sharing
        message, timeout, extra, only, any_key, gather = asked
        if any_key or (only is not None and any(one.key_version.public_key != only for one in sharing)):
            return asyncio.ensure_future(router.ask(message, timeout, extra, only, any_key))
        return asyncio.ensure_future(router.routes.ask(message, timeout, 0, extra, gather, only, waiter))

    def submit_many(
        self,
        messages: Sequence[Any],
        timeout: float | None,
        return_exceptions: bool,
        extra: bytes | None,
        only: bytes | None = None,
    ) -> Awaitable[list[Any]]:
        """As Way."""
        return sign_many(self.router, messages, timeout, return_exceptions, extra, only)

    def abandon(self, asked: Any, message: Any) -> None:
        """As Way: no other key may sign the message, unless nobody has begun with it."""
        self.router.resumed.abandon(asked, message)

    def keep(self, message: Any, public_key: bytes) -> None:
        """As Way."""
        self.router.bind((message,), public_key)

    def check_operation(self, operation: str) -> None:
        """As SigningPath."""
        self.router.check_operation(operation)

    def members(self) -> tuple[MemberSnapshot, ...]:
        """As SigningPath."""
        return self.health.members()

    @property
    def version(self) -> KeyVersion:
        """The key that signs now, or that signed last. Raises KeyNotFound."""
        found = self.router.version
        if found is None:
            raise KeyNotFound("no member has started")
        return found

    @property
    def member(self) -> Member:
        """As SigningPath: the first one that signs now."""
        return next((one.member for one in self.levels.ready if one.member is not None), None) or super().member

    def use(self, version: KeyVersion) -> None:
        """Sign with this key from now on, where a member holds it."""
        self.router.use(version)
        super().use(version)
        self.levels.use_key(version.public_key, time.monotonic_ns())
        self.router.settle()

    def signing(self) -> list[KeyVersion]:
        """As ManagerPort.signing."""
        levels = self.levels.levels
        others = [one.version for one in self.running() if one.version is not None and levels[one.level].other_keys]
        return [self.router.current or self.version, *others]

    def refuse(self) -> None:
        """As SigningPath; requests that wait for a member end with EngineClosed."""
        super().refuse()
        self.router.closing = True
        self.router.wake()

    async def idle(self) -> None:
        """As SigningPath. The emergency key is destroyed."""
        async with AsyncExitStack() as rest:  # from the last line to the first, whatever one of them raises
            for endpoint in self.running():
                emergency = endpoint.level_name == EMERGENCY
                rest.push_async_callback(self.health.emergency.destroy if emergency else _idle, endpoint)
            rest.push_async_callback(self.health.end)
            rest.push_async_callback(self.router.resumed.idle)

    async def close(self) -> None:
        """Answer every request, then close members and store. Idempotent; called again after an error, it closes the
        rest."""
        self.refuse()
        async with AsyncExitStack() as rest:  # from the last line to the first, whatever one of them raises
            rest.push_async_callback(self._store.close)
            rest.push_async_callback(self._report_end)
            rest.push_async_callback(self._stop_members)
            rest.push_async_callback(self.idle)
            rest.push_async_callback(self._forgetting.close)

    async def _stop_members(self) -> None:
        done = await asyncio.gather(*(endpoint.stop() for endpoint in self.endpoints), return_exceptions=True)
        for error in done:
            if error is not None:
                raise error

    async def _report_end(self) -> None:
        """Leave in the store what it should know. What it does not take keeps nothing open: units of the emergency
        budget stay spent, events are in the log."""
        try:
            await self._writing.finish()
            await self.bindings.close()
            await self.budget.close()
            await self._write()
            await self.health.report_end()
        except HsmError as error:
            get_logger().error("the state store was not told of the end", error=str(error))

    def _tell(self, event: Event) -> None:
        log = get_logger()
        details = event.described()
        (log.warning if event.kind in ALARMING else log.info)(event.kind, **details)
        self._unwritten.append((time.time_ns(), event))
        if not self._writing.is_open:
            self._writing.start(self._write_safely())
        self._audit.note(event.kind, result="ok", **details)
        if event.kind in _EMITTED:
            self._events.emit(event.kind, **details)

    def _emergency_operation(self, operation: str, endpoint: Endpoint) -> None:
        key = endpoint.version
        self._events.emit(
            "emergency-operation",
            operation=operation,
            member=endpoint.name,
            key_id=key.id if key else None,
            public_key=key.public_key if key else None,
        )

    async def _each_second(self) -> None:
        if self._unwritten and not self._writing.is_open:
            await self._write()
        await self._started.note(endpoint.name for endpoint in self.running())
        await self._audit_resets()

    async def _audit_resets(self) -> None:
        """Copy resets of the budget by other processes to the audit log, each once."""
        if not self._audit.enabled:
            return
        newest = await self.history.newest()
        if newest == self._looked_at:
            return
        seen = next((r for r in await self._desired.reports() if "auditedReset" in r), {"auditedReset": 0})
        since = self._looked_at if newest > self._looked_at else 0  # a fleet's database may have gone back
        after = max(seen["auditedReset"], since)
        for row in await self.history.query(after=after, kinds=("emergency-reset",)):
            self._audit.record("emergency-reset", result="ok", reason=row["reason"], **row["details"])
            await self._audit.flush()
            await self._desired.report("audit", {"auditedReset": row["id"]})
        self._looked_at = newest

    async def _write(self) -> None:
        taken, self._unwritten = self._unwritten, []
        try:
            await self.history.append(taken)
        except HsmError:
            self._unwritten = [*taken, *self._unwritten][-MOST_UNWRITTEN:]
            raise

    async def _write_safely(self) -> None:
        try:
            while self._unwritten:
                await self._write()
        except HsmError as error:
            get_logger().error("events were not written to the state store", error=str(error))


async def _idle(endpoint: Endpoint) -> None:
    if endpoint.member is not None:
        await endpoint.member.engine.idle()
