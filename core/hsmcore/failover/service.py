"""Failover as a key manager uses it: the levels of a configuration, opened, kept and closed as one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from hsmcore.audit import AuditLog
from hsmcore.config import Config, Failover
from hsmcore.errors import ConfigFault, ConfigurationError, HsmError, KeyMismatch, KeyNotFound
from hsmcore.events import Events
from hsmcore.failover.budget import Emergency, Limits
from hsmcore.failover.events import ALARMING, Event
from hsmcore.failover.health import Keeper, Verify
from hsmcore.failover.history import History
from hsmcore.failover.levels import EMERGENCY, Levels
from hsmcore.failover.plan import seats_and_levels
from hsmcore.failover.router import Router
from hsmcore.failover.seat import Seat
from hsmcore.keyring import KeyVersion
from hsmcore.log import get_logger
from hsmcore.members import Member
from hsmcore.members.base import SIGN_SECONDS
from hsmcore.state import Desired, Store

# A member whose token is not there may come back; what else keeps one from starting is for a person to mend.
SURVIVABLE = frozenset({"TOKEN_NOT_FOUND"})
_EMITTED = frozenset({"failover", "failback"})


class FailoverService:
    """Levels, router, keeper and state store of one key manager. Belongs to the event loop that opens it."""

    def __init__(
        self, config: Config, levels: Levels[Seat], store: Store, verify: Verify, audit: AuditLog, events: Events
    ) -> None:
        rules = config.key_manager
        failover = rules.failover or Failover()
        limits = failover.emergency_mode_restrictions
        self._audit, self._events = audit, events
        self._store = store
        self.history = History(store)
        self.budget = Emergency(store, Limits(limits.max_transactions, limits.max_time_seconds))
        self.levels = levels
        self.router = Router(
            levels,
            default_timeout=rules.request_timeout_ms / 1e3,
            sink=self._tell,
            budget=self.budget,
            operations=frozenset(limits.allowed_operations),
            hedging=failover.hedging,
            on_emergency=self._emergency_operation,
        )
        self._desired = Desired(store)
        self.keeper = Keeper(
            self.router, verify, self._desired, rules.name, failover.emergency_mode_enabled, self._audit_resets
        )
        self._unwritten: list[tuple[int, Event]] = []
        self._writing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, config: Config, verify: Verify, audit: AuditLog, events: Events) -> Self:
        """Open the store and start the members of all levels but the emergency one. A member that does not answer is
        left out and tried again later, if another one can sign. Raises HsmError, and leaves nothing open then."""
        store = await Store.open(config.key_manager.state_path)
        try:
            service = cls(config, seats_and_levels(config), store, verify, audit, events)
        except BaseException:
            await store.close()
            raise
        try:
            await service._start()
            await service.keeper.begin()
        except BaseException:
            await service.close()
            raise
        return service

    @property
    def seats(self) -> Sequence[Seat]:
        """Every member, in the order of the levels."""
        return self.levels.members

    async def _start(self) -> None:
        seats = [seat for seat in self.seats if seat.level_name != EMERGENCY]
        await self._check_emergency()
        done = await asyncio.gather(*(seat.start() for seat in seats), return_exceptions=True)
        failures = [result for result in done if isinstance(result, BaseException)]
        for failure in failures:
            survivable = isinstance(failure, HsmError) and (failure.retryable or failure.status in SURVIVABLE)
            if not survivable or len(failures) == len(seats):
                raise failure
        now = time.monotonic_ns()
        self._require_consent([seat for seat in seats if seat.version is not None])
        self.router.current = next(result for result in done if isinstance(result, KeyVersion))
        for seat, result in zip(seats, done, strict=True):
            if isinstance(result, KeyVersion):
                self.levels.started(seat, result.public_key, now)
        for seat, result in zip(seats, done, strict=True):
            if isinstance(result, HsmError):
                self.levels.failed(seat, "down", f"it did not start: {result.args[0]}", now)
        self.router.settle()

    async def _check_emergency(self) -> None:
        """Better known now than in the emergency: software that its members need and that is not there."""
        for seat in self.seats:
            if seat.level_name == EMERGENCY:
                member = seat.make()
                try:
                    member.require_ready()
                finally:
                    await member.stop()

    def _require_consent(self, started: list[Seat]) -> None:
        first = started[0]
        key = first.key_version.public_key
        faults = []
        for seat in started[1:]:
            own = seat.key_version.public_key
            if own != key and not self.levels.levels[seat.level].other_keys:
                problem = (
                    f"the key of {seat.name} ({own.hex()}) is another one than that of {first.name} ({key.hex()}): "
                    f'configure the same key, or list "{seat.level_name}" in failover.acceptOtherKeys if the chain '
                    "accepts both"
                )
                faults.append(ConfigFault(seat.where, problem))
        if faults:
            raise ConfigurationError.of(faults)

    # ---- for the key manager ----

    @property
    def version(self) -> KeyVersion:
        """The key that signs now. Raises KeyNotFound."""
        found = self.router.version
        if found is None:
            raise KeyNotFound("no member has started")
        return found

    @property
    def member(self) -> Member:
        """The member for rare work on keys: the first one that signs now."""
        for seat in (*self.levels.ready, *self.seats):
            if seat.member is not None:
                return seat.member
        raise HsmError("no member has started", status="TOKEN_LOST")

    def running(self) -> list[Seat]:
        """The members that have started."""
        return [seat for seat in self.seats if seat.member is not None]

    async def load_key(self, identity: bytes) -> KeyVersion:
        """Have every member that holds a key find it. Raises KeyNotFound if none does, KeyMismatch if that id does not
        mean the same key everywhere."""
        found: list[KeyVersion] = []
        missing = KeyNotFound(f"no member holds a key with id {identity.hex()}")
        for seat in self.running():
            if seat.level_name == EMERGENCY or seat.member is None:
                continue
            try:
                version = await seat.member.load_key(identity)
            except KeyNotFound as error:
                missing = error
                continue
            seat.versions[version.public_key] = version
            found.append(version)
        if not found:
            raise missing
        if len({version.public_key for version in found}) > 1:
            raise KeyMismatch(f"key {identity.hex()} is not the same one on all members")
        return found[0]

    def use(self, version: KeyVersion) -> None:
        """Sign with this key from now on, where a member holds it."""
        self.router.use(version)
        for seat in self.running():
            own = seat.versions.get(version.public_key)
            if own is not None:
                seat.use(own)
            seat.signing.clear_cache()
        self.levels.use_key(version.public_key, time.monotonic_ns())
        self.router.settle()

    def holders(self) -> list[Member]:
        """The running members that hold the current key, in the order of the levels; no emergency key is one."""
        key = self.version.public_key if self.router.current is None else self.router.current.public_key
        return [
            seat.member
            for seat in self.running()
            if seat.member is not None and seat.level_name != EMERGENCY and key in seat.versions
        ]

    async def sign_as(self, version: KeyVersion, message: bytes) -> bytes:
        """Sign with a key that need not be the current one, on the first member that has loaded it."""
        for seat in self.running():
            own = seat.versions.get(version.public_key)
            if own is not None and seat.level_name != EMERGENCY:
                signed = seat.signing.submit(message, SIGN_SECONDS, own.index)
                return signed if isinstance(signed, bytes) else await signed
        raise KeyNotFound(f"no running member has loaded key {version.id}")

    def forget(self, version: KeyVersion) -> None:
        """A key that never was current is gone: nobody signs with it."""
        for seat in self.running():
            own = seat.versions.pop(version.public_key, None)
            if own is not None:
                seat.signing.retire_key(own.index)

    def retire(self, version: KeyVersion) -> None:
        """Nobody signs with a key any more, nor do members that start later."""
        self.router.retired.add(version.public_key)
        for seat in self.running():
            own = seat.versions.get(version.public_key)
            if own is not None:
                seat.signing.retire_key(own.index)

    async def deactivate(self, version: KeyVersion) -> bool:
        """Retire a key on every member that holds it. Whether all their tokens refuse it, too: one that does not answer
        now will not have been told."""
        self.retire(version)
        holders = [(seat, own) for seat in self.running() if (own := seat.versions.get(version.public_key)) is not None]
        enforced = all(seat.member is not None for seat in self.seats if seat.level_name != EMERGENCY)
        for seat, own in holders:
            if seat.member is None:
                continue
            try:
                enforced &= (await seat.member.control.deactivate(own.id)).enforced
            except HsmError as error:
                enforced = False
                get_logger().error("the token was not told to refuse a key", member=seat.name, error=str(error))
        return enforced

    # ---- closing ----

    def refuse(self) -> None:
        """Take no further requests; those that wait for a member end with EngineClosed."""
        self.router.closing = True
        if not self._audit.needs_member:  # else one of them signs the last checkpoint, and stopping refuses
            for seat in self.running():
                seat.signing.refuse()
        self.router.wake()

    async def close(self) -> None:
        """Answer everybody, end what goes on, close members and store."""
        self.refuse()
        try:
            await self.keeper.end()
            for seat in self.running():
                await seat.signing.idle()
                if seat.level_name == EMERGENCY:
                    await self.keeper.emergency.destroy(seat)
            await asyncio.gather(*(seat.stop() for seat in self.running()))
            await self.budget.close()
            await self._write()
            if self._writing is not None:
                await asyncio.wait((self._writing,))
        finally:
            await self._store.close()

    # ---- telling ----

    def _tell(self, event: Event) -> None:
        log = get_logger()
        details = {name: value for name, value in vars_of(event).items() if value not in (None, "")}
        (log.warning if event.kind in ALARMING else log.info)(event.kind, **details)
        self._unwritten.append((time.time_ns(), event))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_safely())
        self._audit.note(event.kind, result="ok", **details)
        if event.kind in _EMITTED:
            self._events.emit(event.kind, **details)

    def _emergency_operation(self, operation: str, seat: Seat) -> None:
        key = seat.version
        self._events.emit(
            "emergency-operation",
            operation=operation,
            member=seat.name,
            key_id=key.id if key else None,
            public_key=key.public_key if key else None,
        )

    async def _audit_resets(self) -> None:
        """Budgets are reset from outside: copy what was, and was not copied yet, into the audit log."""
        if not self._audit.enabled:
            return
        seen = next((r for r in await self._desired.reports() if "auditedReset" in r), {"auditedReset": 0})
        for row in await self.history.query(after=seen["auditedReset"], kinds=("emergency-reset",)):
            self._audit.record("emergency-reset", result="ok", reason=row["reason"], **row["details"])
            await self._audit.flush()
            await self._desired.report("audit", {"auditedReset": row["id"]})

    async def _write(self) -> None:
        taken, self._unwritten = self._unwritten, []
        await self.history.append(taken)

    async def _write_safely(self) -> None:
        try:
            while self._unwritten:
                await self._write()
        except HsmError as error:
            get_logger().error("events were not written to the state store", error=str(error))


def vars_of(event: Event) -> dict[str, Any]:
    """An event's fields and details in one."""
    return {"from_level": event.level_from, "to_level": event.level_to, "member": event.member,
            "reason": event.reason, **event.details}  # fmt: skip


def told_apart(version: KeyVersion, others: Sequence[KeyVersion], member: str) -> KeyVersion:
    """The version under a name of its own, if another key has the same id on another member."""
    same_id = any(other.id == version.id and other.public_key != version.public_key for other in others)
    return replace(version, id=f"{version.id}@{member}") if same_id else version
