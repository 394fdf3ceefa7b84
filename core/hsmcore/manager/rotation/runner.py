"""Drives one rotation from step to step: durable before the effect, durable after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hsmcore.base.log import get_logger
from hsmcore.errors import HsmError
from hsmcore.manager.rotation import machine
from hsmcore.manager.rotation.context import Context, Done, Effect, Pending, skipped
from hsmcore.manager.rotation.steps import backups, consent, generate, handover, pin, replicate, switch, telling
from hsmcore.manager.rotation.store import Rotation, Rotations
from hsmcore.state import StoreError


@dataclass(frozen=True, slots=True)
class Effects:
    """What a step does. `plan` returns what must be durable before the effect."""

    do: Effect
    undo: Effect | None = None
    plan: Callable[[Context], Awaitable[Done]] | None = None


EFFECTS: Final[Mapping[str, Effects]] = {
    "approve": Effects(consent.do),
    "backup-old": Effects(backups.back_up_old),
    "generate": Effects(generate.do, generate.undo, generate.plan),
    "pin": Effects(pin.do),
    "backup-new": Effects(backups.back_up_new),
    "drill": Effects(backups.drill, backups.end_drill, backups.plan_drill),
    "replicate": Effects(replicate.do),
    "notify": Effects(telling.do),
    "handover": Effects(handover.do, handover.undo, handover.plan),
    "activate": Effects(switch.activate),
    "deactivate": Effects(switch.deactivate),
    "destroy": Effects(switch.destroy),
}


@dataclass(frozen=True, slots=True)
class Runner:
    """Belongs to the event loop of a key manager that holds the store's role "rotation"."""

    rotations: Rotations
    context: Callable[[Rotation], Awaitable[Context]]
    failed: Callable[[Rotation, str, Exception], Awaitable[None]]
    clock: Callable[[], int]
    trace: Callable[[str], None]
    wants_abort: Callable[[Rotation], Awaitable[bool]]
    waited: dict[tuple[int, str, str], tuple[Any, int]] = field(default_factory=dict)
    """By rotation, status and step: the details of the wait that was last recorded, and until when it lasts now, in ns:
    one that goes on as it is recorded is not recorded again."""

    def waits_until(self, rotation: Rotation) -> int:
        """When to look at a rotation again, in ns of the clock."""
        return max(rotation.run.wait_ns, self._waited(rotation)[1])

    def _waited(self, rotation: Rotation) -> tuple[Any, int]:
        return self.waited.get((rotation.id, rotation.run.status, rotation.run.step), (None, 0))

    async def advance(self, rotation: Rotation) -> Rotation:
        """Do the steps that can be done now. Returns the rotation: ended, or waiting until `run.wait_ns`."""
        while True:
            if await self.wants_abort(rotation):
                run = machine.abort(rotation.run)
                rotation = await self.rotations.record(rotation.id, run, rotation.run.step, "aborted", {})
            action = machine.next_action(machine.pending(rotation.run, self.waits_until(rotation)), self.clock())
            if action.kind in ("wait", "end"):
                return rotation
            rotation = await self._step(rotation, action)

    async def _step(self, rotation: Rotation, action: machine.Action) -> Rotation:
        step, undoing, resumed = action.step, action.kind == "undo", rotation.run.begun
        effects = EFFECTS[step]
        effect = effects.undo if undoing else effects.do
        point = f"{action.kind}:{step}"
        try:
            if not resumed:
                self.trace(f"{point}:before")
                plan = Done() if undoing or effects.plan is None else await effects.plan(await self.context(rotation))
                begun = machine.begun(rotation.run)
                outcome = "undoing" if undoing else "begun"
                rotation = await self.rotations.record(rotation.id, begun, step, outcome, plan.details, also=plan.also)
                self.trace(f"{point}:begun")
            if effect is None:
                result: Done | Pending = skipped("nothing to undo")
            else:
                result = await effect(replace(await self.context(rotation), resumed=resumed))
            self.trace(f"{point}:effect")
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  # a handover is the application's code: whatever it raises
            return await self._fail(rotation, step, error)
        if isinstance(result, Pending):
            run = machine.pending(rotation.run, result.until_ns)
            before, _ = self._waited(rotation)
            self.waited[rotation.id, run.status, run.step] = result.details, result.until_ns
            if before == result.details:
                return replace(rotation, run=run)
            return await self.rotations.record(rotation.id, run, step, "waiting", result.details)
        run, outcome = machine.done(rotation.run, result.wait_ns), "undone" if undoing else "done"
        rotation = await self.rotations.record(rotation.id, run, step, outcome, result.details, also=result.also)
        if result.then is not None:
            result.then()
        self.trace(f"{point}:recorded")
        return rotation

    async def _fail(self, rotation: Rotation, step: str, error: Exception) -> Rotation:
        text = str(error.args[0]) if isinstance(error, HsmError) and error.args else f"{type(error).__name__}: {error}"
        get_logger().error("a step of a rotation failed", rotation=rotation.id, step=step, error=text)
        run = machine.failed(rotation.run, self.clock())
        details = {"error": text}
        rotation = await self.rotations.record(rotation.id, run, step, "failed", details, error=f"{step}: {text}")
        await self.failed(rotation, step, error)
        return rotation
