"""As mutants.py, for the world `levels`: faults of rotation, budgets and restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import update

from hsmcore.failover.budget import Emergency
from hsmcore.manager.rotation import machine, runner
from hsmcore.manager.rotation.context import skipped
from hsmcore.manager.rotation.schedule import Schedule
from hsmcore.manager.rotation.steps import handover
from hsmcore.state.schema import EMERGENCY_EPISODE as EPISODE

_EFFECTS: Any = runner.EFFECTS


async def _nothing(_context: Any) -> Any:
    return skipped("left out")


async def _none(_context: Any) -> None:
    return None


def _unasked() -> None:
    """A failed rotation destroys its new key without asking the chain, which may obey it."""
    _EFFECTS["handover"] = replace(_EFFECTS["handover"], undo=_nothing)
    handover.give_back = handover.why_not_settled = _none


def _unannounced() -> None:
    """The new key signs before the chain has heard of it."""
    _EFFECTS["handover"] = replace(_EFFECTS["handover"], do=_nothing)


def _no_overlap() -> None:
    """The overlap of the old key is left out."""
    Schedule.overlap_ends_ns = lambda _self, activated_ns: activated_ns


def _not_taken_up() -> None:
    """A step that a killed process had begun is waited for."""
    following = machine.next_action

    def wait(run: machine.Run, now_ns: int) -> machine.Action:
        if run.begun and run.status in ("running", "undoing"):
            return machine.Action("wait", run.step, now_ns + machine.MOST_WAIT_NS)
        return following(run, now_ns)

    machine.next_action = wait


def _budget_begins_again() -> None:
    """A process that ends gives its whole budget back."""
    close = Emergency.close

    async def all_back(self: Emergency) -> None:
        await close(self)
        await self._store.run(lambda connection: connection.execute(update(EPISODE).values(reserved=0)))

    Emergency.close = all_back


def _in_a_loop() -> None:
    """What still waits, as it is recorded, is looked at again at once."""
    runner.Runner.waits_until = lambda _self, rotation: rotation.run.wait_ns


MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "unasked": (_unasked, "destroyed_in_time"),
    "unannounced": (_unannounced, "obeyed"),
    "no-overlap": (_no_overlap, "destroyed_in_time"),
    "not-taken-up": (_not_taken_up, "taken_up"),
    "in-a-loop": (_in_a_loop, "asked_in_peace"),
    "budget-begins-again": (_budget_begins_again, "within_budget"),
}
