"""Rotation as a key manager uses it: keeps the ring, rotates on schedule or on request, follows other processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from hsmcore.base.keyring import KeyVersion, successor_label
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope, log_failure
from hsmcore.config import Config, KeyRotation, Pkcs11Settings, members_of
from hsmcore.errors import BadArgument, EngineClosed, HsmError, InternalError, KeyMismatch
from hsmcore.handover.base import Handover
from hsmcore.manager.rotation import machine
from hsmcore.manager.rotation.clock import RotationClock
from hsmcore.manager.rotation.context import Announce, Context, ManagerPort, ceremony_for
from hsmcore.manager.rotation.pinned import aliases, configured_as, current_of, pinned, require_same_key
from hsmcore.manager.rotation.runner import Runner
from hsmcore.manager.rotation.schedule import SECOND, Schedule, moment, nanoseconds, retry_at
from hsmcore.manager.rotation.steps import handover
from hsmcore.manager.rotation.steps.backups import without_copies_hint
from hsmcore.manager.rotation.store import Rotation, Rotations
from hsmcore.members.control import ControlPlane
from hsmcore.members.tokens import why_no_backup
from hsmcore.state import Approvals, Backups, Desired, Keys, RoleLost, Store, StoreBusy, StoredKey, StoreNotGenuine
from hsmcore.state.desired import own_report, withdraw
from hsmcore.state.keys import active_of
from hsmcore.state.schema import FORGET_SECONDS

ROLE: Final = "rotation"
"""The store's role: one process rotates, the others follow."""
ROTATE: Final = "rotate"
"""The wish to rotate now."""
ABORT: Final = "rotate-abort"
"""The wish to end the rotation that is under way."""
LOOK_SECONDS: Final = 1.0
_FAILED: Final = "rotation is held up"
_FAILED_HINT: Final = "The old key signs on; `hsmcore rotate history` names the step, and it is tried again later."
_LEAST_PAUSE: Final = 0.01
_REPORT_NS: Final = 5 * SECOND


@dataclass(slots=True)
class _Asked:
    """A caller in this process that waits for a rotation; `rotation` is its number once it has begun."""

    reason: str
    answer: asyncio.Future[str]
    rotation: int | None = None


@dataclass(frozen=True, slots=True)
class KeyDates:
    """The current key and its dates, for monitoring. Times are Unix nanoseconds; None: never."""

    created_ns: int
    due_ns: int
    running: bool
    failures: int
    """Failures in a row."""
    backups: bool
    """Whether rotations are configured."""
    backup_ns: int | None
    drill_ns: int | None


class RotationService:
    """Belongs to the event loop of one key manager. `trace` is called at each point of a rotation, `clock` returns Unix
    nanoseconds, `boot` those since the boot: all are for tests."""

    clock: Callable[[], int] = staticmethod(time.time_ns)
    boot: Callable[[], int] | None = None
    trace: Callable[[str], None] = staticmethod(lambda _point: None)

    def __init__(
        self, config: Config, rules: KeyRotation, store: Store, announce: Announce, before_ns: int, *, rotates: bool
    ) -> None:
        self._config, self._rules, self._rotates = config, rules, rotates
        self._store, self._announce, self._before_ns = store, announce, before_ns
        self.schedule = Schedule.of(rules)
        self.keys = Keys(store)
        self._time = RotationClock(store, self.clock, self.boot)
        self.rotations = Rotations(store, self._time.late)
        self._approvals, self._desired, self._backups = Approvals(store), Desired(store), Backups(store)
        self.handover: Handover | None = None
        self._grace_ns = config.key_manager.request_timeout_ms * 1_000_000
        self.sure = self._time.sure
        self._runner = Runner(self.rotations, self._context, self._failed, self.sure, self.trace, self._wants_abort)
        self._known: list[StoredKey] = []
        self._signed: set[str] = set()
        self._wake = asyncio.Event()
        self._asked: _Asked | None = None
        self._role = store.leading(ROLE)
        self._scope = Scope()
        self._scope.defer(self._role.leave)
        self._scope.defer(lambda: self._answer(EngineClosed("the key manager was closed during the rotation")))
        self._joined = False
        self._held: set[int] = set()
        self._lost: RoleLost | None = None
        self._drill: ControlPlane | None = None
        self._reported, self._name = 0, own_report("rotation")
        self.seen: KeyDates | None = None
        """The ring at the last look."""
        self._port: ManagerPort

    async def configured(self) -> tuple[Config, frozenset[str]]:
        """Return the configuration to start with: that of the current key, unless the configured key was changed; and
        the members that start with the current key."""
        try:
            current = await current_of(self._config, self.keys)
        except StoreNotGenuine:
            current = None  # `begin` compares its key with the ring's
        return (self._config, frozenset()) if current is None else pinned(self._config, current)

    async def begin(self, port: ManagerPort, started: KeyVersion) -> None:
        """Let the ring's current key sign, then continue an unfinished rotation. The members run and `started` signs
        already. Raises KeyMismatch if the ring does not have the configured key, StoreNotGenuine if the ring is not
        genuine and has another current key than the configuration."""
        self._port = port
        try:
            await self._join(started)
        except StoreNotGenuine:
            await require_same_key(self._store, started)
        if self._rotates and self._rules.require_handover and self.handover is None:
            text, hint = handover.NONE_REGISTERED, handover.NONE_REGISTERED_HINT
            get_logger().warning(f"no key is rotated here: {text}", hint=hint)
        self._scope.every(LOOK_SECONDS, self._look, _FAILED, wake=self._wake)
        failed = "old steps of rotations are not removed"
        self._scope.every(FORGET_SECONDS, lambda: self.rotations.forget(self._time.sure()), failed)

    async def _join(self, started: KeyVersion) -> None:
        """Find the key that signs in the ring, or begin the ring with it; then sign with the ring's current key."""
        holders = [member.name for member in self._port.holders(None)]
        current = await self.keys.begin(
            started.id, started.public_key, started.algorithm, started.label, holders, configured_as(self._config)
        )
        await self._follow()
        if current.public_key != started.public_key:
            self._port.switch(await self._port.load(current.key_id))
        # A member may have got a new name, or the key by hand. One that is away stays noted.
        added = [member.name for member in self._port.holders(None) if member.name not in current.members]
        if added:
            await self.keys.change(current.version, members=[*current.members, *added])
        self._joined = True
        await self._time.take_up()
        await self._look_at_backups(current)

    async def close(self) -> None:
        """Stop; a rotation under way continues at the next start. Idempotent."""
        if self._scope.is_open:
            self._scope.defer(self._report_end)
        await self._scope.close()

    async def _report_end(self) -> None:
        try:
            await self._desired.report(self._name, None)
        except HsmError as error:  # it keeps nothing open: the report is stale soon
            get_logger().error("the state store was not told of the end", error=str(error))

    async def _look_at_backups(self, current: StoredKey) -> None:
        """Log at the start what would make every rotation fail, or leave it without a backup."""
        holders = self._port.holders(None)
        shares = len(holders) > 1 and isinstance(holders[0].token, ControlPlane)
        if ceremony_for(self._rules, current.algorithm) is not None or not (self._rules.backup_enabled or shares):
            return
        why = await why_no_backup(holders[0], current.algorithm)
        if why is None:
            return
        if shares:
            what = "no rotation will succeed, unless all members reach the same token"
        elif self._rules.backup_policy == "require":
            what = "no rotation will succeed"
        else:
            what = "keys will be rotated without a backup"
        title = "keys cannot be copied to other members" if shares else "keys cannot be backed up"
        get_logger().error(f"{title}: {what}", reason=why, hint=without_copies_hint(shares=shares))
        await self._announce("failure", title, f"{why}: {what}", f"no-backup-{current.key_id}")

    async def rotate(self, reason: str) -> str:
        """Rotate now; return the new key's id once it signs. Raises the error that made it fail, StoreBusy if another
        process rotates, or if a rotation is under way."""
        if self._asked is not None:
            raise StoreBusy("a rotation is under way", hint="See `hsmcore rotate status`.")
        asked = self._asked = _Asked(reason, asyncio.get_running_loop().create_future())
        self._wake.set()
        try:
            return await asked.answer
        finally:
            self._asked = None

    async def chosen(self, version: KeyVersion) -> None:
        """Make a key current on request: durable before it signs. Raises StoreBusy during a rotation."""
        now = self._time.late()
        retire = max(self.schedule.overlap_ends_ns(now), now + self._grace_ns)
        holders = [member.name for member in self._port.holders(version.public_key)]  # those that have loaded it
        await self.rotations.choose(
            "chosen", version.id, version.public_key, version.algorithm, version.label, holders, retire
        )
        self._wake.set()

    async def calendar(self, count: int) -> list[dict[str, Any]]:
        """Return the coming rotations."""
        current = await self.keys.current()
        return [] if current is None else self.schedule.plan(current.counts_from_ns, self.clock(), count)

    async def _look(self) -> float:
        for part in (self._work, self._see):  # no finally: its own error would take the place of a cancellation
            try:
                await part()
            except StoreNotGenuine as error:
                self._answer(error)  # the store has told of it
            except Exception as error:  # noqa: BLE001  # a mistake of ours: no reason to rotate never again
                log_failure(error, _FAILED)
                self._answer(
                    error if isinstance(error, HsmError) else InternalError(f"{type(error).__name__}: {error}")
                )
                self._lost = error if isinstance(error, RoleLost) else self._lost
        return await self._pause()

    async def _work(self) -> None:
        self._store.require_genuine()
        if not self._joined:
            await self._join(self._port.signing()[0])
        why = self._lost or await self._must_follow()
        if why is not None:
            await self._step_down()
        if why is not None or not await self._lead():
            await self._follow()
            self._answer(why or StoreBusy("another process rotates the keys of this state store"))
            return
        await self._report()
        if await self._time.look():
            await self._redate(self._time.now())
        for rotation in await self.rotations.open():
            await self._advance(rotation)
        await self._follow()
        wishes = await self._desired.all()
        # Read after the wishes: an order that came while a rotation was advanced is followed at the next look.
        if ABORT in wishes and not any(machine.can_abort(each.run) for each in await self.rotations.open()):
            await self._desired.set(ABORT, None, "")  # what it meant has ended
        await self._begin_what_is_due(wishes[ROTATE].reason if ROTATE in wishes else None)

    async def _redate(self, now: int) -> None:
        days = self._rules.destroy_after_days or 0
        retire = max(self.schedule.overlap_ends_ns(now), now + self._grace_ns)
        if await self.rotations.redate(now, retire, now + days * 86_400 * SECOND):
            get_logger().warning("dates that a clock which was ahead had written count from now")
        self._runner.waited.clear()

    async def _pause(self) -> float:
        """Return the seconds until the next look."""
        try:
            rotations = await self.rotations.open() if self._role.held else []
        except HsmError:
            return LOOK_SECONDS
        if not rotations:
            return LOOK_SECONDS
        soonest = (min(map(self._runner.waits_until, rotations)) - self._time.sure()) / SECOND
        return min(LOOK_SECONDS, max(soonest, _LEAST_PAUSE))

    async def _must_follow(self) -> HsmError | None:
        """Return why this process does not lead: only a process that can end a rotation may lead it."""
        if self.handover is None:
            held = await handover.waiting(self.rotations)
            if held is not None:
                await self._tell_held(held)
                return handover.refusal(held)
        if not self._rotates:
            return BadArgument("this key manager only follows the key ring", hint="Rotate in the process that does.")
        if self._rules.require_handover and self.handover is None:
            return BadArgument(handover.NONE_REGISTERED, hint=handover.NONE_REGISTERED_HINT)
        return None

    async def _tell_held(self, rotation: Rotation) -> None:
        """Note it once, unless the role is taken: then a process with a handover is at work."""
        await self._step_down()
        if rotation.id in self._held:
            return
        try:
            async with self._store.exclusively(ROLE):
                self._held.add(rotation.id)
        except StoreBusy:
            return
        await handover.tell(rotation, self._announce)

    async def _step_down(self) -> None:
        """Let another process lead."""
        if self._role.held or self._lost is not None:
            self._lost = None
            await self._role.leave()
            await self._desired.report(self._name, None)

    async def _lead(self) -> bool:
        if not self._role.held:
            if not await self._role.take():
                return False
            await self.rotations.account_for_displaced(self._time.late())
        return True

    async def _begin_what_is_due(self, wish: str | None) -> None:
        current = await self.keys.current()
        if current is None or any(r.run.status != "overlap" for r in await self.rotations.open()):
            if self._asked is not None and self._asked.rotation is None:
                self._answer(StoreBusy("a rotation is under way") if current else BadArgument("no key signs"))
            return
        now, due = self._time.sure(), self.schedule.due_ns(current.counts_from_ns)
        asked = self._asked if self._asked is not None and self._asked.rotation is None else None
        by_hand = asked.reason if asked is not None else wish
        if by_hand is not None:
            await self._rotate(current, "manual", by_hand, None)
        elif now >= due and await self._may_retry():
            await self._rotate(current, "schedule", "", due)
        elif now >= due - self._before_ns:
            text = f"key {current.key_id} is replaced at {moment(due).isoformat()}"
            await self._announce("before", "a rotation is coming", text, f"before-{current.version}-{due}")

    async def _rotate(self, current: StoredKey, cause: str, reason: str, slot_ns: int | None) -> None:
        label = successor_label(current.label, os.urandom(4))
        fulfils = partial(withdraw, name=ROTATE) if cause == "manual" else None
        rotation = await self.rotations.begin(cause, current.version, label, slot_ns, reason, fulfils)
        if self._asked is not None and cause == "manual":
            self._asked.rotation = rotation.id
        self._port.tell("rotation-begun", rotation_id=str(rotation.id), trigger=cause, reason=reason)
        self.trace("begun")
        await self._advance(rotation)

    async def _may_retry(self) -> bool:
        failures, ended = await self.rotations.failures_in_a_row()
        now = self._time.late()
        return not failures or ended > now or now >= nanoseconds(retry_at(moment(ended), failures))

    async def _advance(self, rotation: Rotation) -> None:
        before = rotation.run.status
        rotation = await self._runner.advance(rotation)
        status = rotation.run.status
        if status in ("overlap", "done") and before in ("running", "undoing"):
            new = next(key for key in await self.keys.all() if key.version == rotation.new)
            title = f"rotation {rotation.id}: the new key signs"
            text = f"key {new.key_id} (public key {new.public_key.hex()}) signs"
            await self._announce("rotation", title, text, f"rotation-{rotation.id}-switched")
            self._answer(new.key_id)
        elif status in ("failed", "aborted"):
            self._port.tell(f"rotation-{status}", rotation_id=str(rotation.id), error=rotation.error)
            text = f"the rotation {status}: {rotation.error or 'somebody wanted it'}"
            self._answer(HsmError(text, status="SYSTEM", hint=_FAILED_HINT))

    def _answer(self, result: str | HsmError) -> None:
        if self._asked is None or self._asked.answer.done():
            return
        if isinstance(result, str):
            self._asked.answer.set_result(result)
        else:
            self._asked.answer.set_exception(result)

    async def _failed(self, rotation: Rotation, step: str, error: Exception) -> None:
        if rotation.run.tries <= 1:
            text = f"step {step}: {error.args[0] if error.args else type(error).__name__}"
            after = "it is tried again" if rotation.run.status == "overlap" else "the old key goes on signing"
            title, occasion = f"rotation {rotation.id} failed", f"rotation-{rotation.id}-failed-{step}"
            await self._announce("failure", title, f"{text}; {after}", occasion)

    async def _wants_abort(self, rotation: Rotation) -> bool:
        return machine.can_abort(rotation.run) and ABORT in await self._desired.all()

    async def _context(self, rotation: Rotation) -> Context:
        known = {key.version: key for key in await self.keys.all()}
        self._note_signed(known.values())
        return Context(
            rules=self._rules,
            schedule=self.schedule,
            port=self._port,
            keys=self.keys,
            rotations=self.rotations,
            rotation=rotation,
            old=known[rotation.old],
            new=known[rotation.new],
            approvals=self._approvals,
            announce=self._announce,
            handover=self.handover,
            aliases=aliases(self._config),
            configured=frozenset(member.name for _, member in self._config.key_manager.members()),
            drill=self._drill_token(),
            signed=frozenset(self._signed),
            grace_ns=self._grace_ns,
            late=self._time.late,
            clock=self._time.sure,
        )

    def _drill_token(self) -> ControlPlane | None:
        provider = self._rules.drill
        if provider is None or not isinstance(provider.config, Pkcs11Settings):
            return None
        if self._drill is None:
            [member] = members_of(provider)[:1]
            options: Any = {"isolated": provider.config.isolation == "process", "hidden": self._config.secret_variables}
            options |= {"member": member.name, "refused": self._config.key_manager.refused_logins}
            self._drill = ControlPlane.for_settings(provider.config, log_in=True, **options)
            self._scope.defer(self._drill.close)
        return self._drill

    async def _follow(self) -> None:
        """Learn the keys of the store's ring, and sign with its current key. A key that the ring has ended signs no
        more, also while the current one cannot be loaded."""
        found = await self.keys.all()
        if found == self._known:
            return
        self._note_signed(found)
        before, current = active_of(self._known), active_of(found)
        try:
            if current is not None and before is not None and current.version != before.version:
                version = await self._port.load(current.key_id)
                if version.public_key != current.public_key:
                    raise KeyMismatch(f"key {current.key_id} is not the one of the key ring")
                self._port.switch(version)
        finally:
            self._port.learn(found)  # after the switch: with no overlap, the key that signed here is retired by it
        self._known = found

    def _note_signed(self, keys: Iterable[StoredKey]) -> None:
        """Remember keys that have signed, also when the store says so no more."""
        for key in keys:
            if key.activated_ns is not None and key.public_key and key.state != "destroyed":
                self._signed |= {key.key_id, key.public_key.hex()}

    async def _see(self) -> None:
        current = await self.keys.current()
        if current is None:
            return
        backups = await self._backups.of(current.public_key)
        self.seen = KeyDates(
            created_ns=current.created_ns,
            due_ns=self.schedule.due_ns(current.counts_from_ns),
            running=any(rotation.run.status != "overlap" for rotation in await self.rotations.open()),
            failures=(await self.rotations.failures_in_a_row())[0],
            backups=self._rules.backup_enabled,
            backup_ns=max((row.made_ns for row in backups), default=None),
            drill_ns=max((row.drilled_ns for row in backups if row.drilled_ns is not None), default=None),
        )

    async def _report(self) -> None:
        now = time.monotonic_ns()
        if now - self._reported >= _REPORT_NS:
            self._reported = now
            await self._desired.report(self._name, {"rotation": True, "process": os.getpid()})
