"""`hsmcore rotate now` while it waits: it says for what, and how to go on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from hsmcore.base.scope import Scope
from hsmcore.cli.opened import in_state, rotates_somewhere, rotation_rules
from hsmcore.cli.output import note

if TYPE_CHECKING:
    from hsmcore.cli.invocation import Invocation
    from hsmcore.manager.rotation.store import Rotation, Rotations
    from hsmcore.state import Store


async def rotate(cli: Invocation, reason: str, seconds: float) -> dict[str, Any]:
    """Have a running key manager rotate, or do it here, and say what the rotation waits for. Returns the rotation, or
    that it is asked for."""
    from hsmcore.manager.rotation.service import ROTATE
    from hsmcore.manager.rotation.steps import handover
    from hsmcore.manager.rotation.store import Rotations
    from hsmcore.state import Desired

    async def ask(store: Store) -> dict[str, Any] | None:
        held = await handover.waiting(Rotations(store))
        if held is not None:
            raise handover.refusal(held)
        if not await rotates_somewhere(store):
            return None
        rotations, until = Rotations(store), time.monotonic() + seconds
        before = max((entry.id for entry in await rotations.last(1)), default=0)
        await Desired(store).set(ROTATE, "now", reason)
        while time.monotonic() < until:
            for entry in await rotations.last():
                if entry.id > before and entry.cause == "manual" and entry.run.status not in ("running", "undoing"):
                    return entry.to_json()
            await said.look(store)
            await asyncio.sleep(0.1)
        return {"status": "asked for", "reason": reason}

    config, said = cli.config, _Waits(cli)
    asked = await in_state(config, ask, absent="empty")
    if asked is not None:
        return asked
    from hsmcore.manager.key_managers import create_key_manager

    async with create_key_manager(config) as manager:
        watch = Scope()
        watch.start(in_state(config, said.watch, absent="empty"), failed="what the rotation waits for is not known")
        try:
            async with asyncio.timeout(seconds or None):
                await manager.rotate_key(reason)
        except TimeoutError:
            note("hsmcore: not done in time; it goes on when a key manager runs")
        finally:
            await watch.close()
    [done] = await in_state(config, lambda store: Rotations(store).last(1))
    return done.to_json()


async def waits_for(rotations: Rotations, entry: Rotation) -> str | None:
    """Return what the step of `entry` waits for that cannot be done yet, and why."""
    [*_, last] = [{"outcome": "", "details": {}}, *await rotations.steps(entry.id)]
    is_its = last["outcome"] == "waiting" and last["step"] == entry.run.step  # it may have gone on since it was read
    found = last["details"].get("waitsFor") if is_its else None
    why = last["details"].get("why")
    return f"{found}: {why}" if found and why else found


class _Waits:
    """Says each thing that rotations wait for once."""

    def __init__(self, cli: Invocation) -> None:
        self._cli, self._said = cli, ""

    async def watch(self, store: Store) -> None:
        """Look until this is cancelled."""
        while True:
            await self.look(store)
            await asyncio.sleep(0.1)

    async def look(self, store: Store) -> None:
        """Say what the rotation waits for that is under way, if that was not said."""
        from hsmcore.manager.rotation.store import Rotations

        rotations, rules = Rotations(store), rotation_rules(self._cli.config)
        waiting = [entry for entry in await rotations.open() if entry.run.status != "overlap"]
        for entry in waiting[:1]:
            what = await waits_for(rotations, entry)
            if rules.approvals and entry.run.step == "approve" and entry.run.begun:
                what = f"{rules.approvals} approvals"
            if what and what != self._said:
                self._said = what
                self._cli.note(f"rotation {entry.id} waits at step {entry.run.step} for {what}")
                self._cli.note(await self._how_to_go_on(store, entry))

    async def _how_to_go_on(self, store: Store, entry: Rotation) -> str:
        from hsmcore.manager.rotation.machine import can_abort
        from hsmcore.state import Desired

        wishes = await Desired(store).all()
        names = [member.name for level, member in self._cli.config.key_manager.members() if level != "emergency"]
        ways = [f"hsmcore failover drain {name} --undo" for name in names if f"drain:{name}" in wishes]
        if len(ways) < len(names):
            ways = []  # one of them signs
        if entry.run.step == "approve":
            ways.append(f"hsmcore rotate approve {entry.id}")
        if can_abort(entry.run):
            ways.append("hsmcore rotate abort")
        return f"to go on, or to end it: {', '.join(ways)}" if ways else ""
