"""The contents of the state store: history of failovers, rotations, wishes, budget. Read only, in a dedicated
thread."""

from __future__ import annotations

import time
from typing import Any, Final

from hsmcore.config import Config
from hsmcore.errors import HsmError
from hsmcore.failover.budget import Emergency
from hsmcore.failover.history import History
from hsmcore.manager.rotation.schedule import Schedule
from hsmcore.manager.rotation.store import Rotations
from hsmcore.state import Approvals, Desired, Keys, Store
from hsmcore.state.approvals import METHOD

EVENTS: Final = 200
"""Events of the history that a console gets at first."""
_ROTATIONS: Final = 20


class Ledger:
    """Reads one store, as soon as its file exists."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store: Store | None = None
        self.problem = ""
        """Why the last read failed."""

    @property
    def used(self) -> bool:
        """Return whether the configuration needs a store at all."""
        return self._config.key_manager.keeps_state

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    async def _opened(self) -> Store:
        if self._store is None:
            self._store = await Store.open_to_read(self._config.key_manager.state_place)
        return self._store

    async def events(self, after: int) -> list[dict[str, Any]]:
        """Return the history after an event's id; after 0, the latest EVENTS."""
        if not self.used:
            return []
        try:
            store = await self._opened()
            rows = await History(store).query(after=after or None, limit=EVENTS)
        except HsmError as error:
            self.problem = str(error)
            return []
        return rows

    async def view(self) -> dict[str, Any]:
        """Return wishes, rotations, versions of the key, and the emergency budget."""
        if not self.used:
            return {}
        try:
            store = await self._opened()
            found = await self._view(store)
        except HsmError as error:
            self.problem = str(error)
            return {}
        self.problem = ""
        return found

    async def _view(self, store: Store) -> dict[str, Any]:
        rules = self._config.key_manager
        wishes = await Desired(store).all()
        found: dict[str, Any] = {
            "wishes": {
                name: {"value": wish.value, "reason": wish.reason}
                for name, wish in wishes.items()
                if not name.startswith("readmit:")
            }
        }
        if rules.has_levels:
            status = await Emergency.of(self._config, store).status()
            found["budget"] = {
                "left": status.left,
                "maxTransactions": status.max_transactions,
                "maxTimeSeconds": status.max_seconds,
                "expiresNs": status.expires_ns,
                "usable": status.usable,
            }
        if rules.active_rotation is not None:
            found["rotation"] = await self._rotation(store, Schedule.of(rules.active_rotation))
        return found

    async def _rotation(self, store: Store, schedule: Schedule) -> dict[str, Any]:
        keys, rotations = Keys(store), Rotations(store)
        current = await keys.current()
        coming = [] if current is None else schedule.plan(current.counts_from_ns, time.time_ns(), 1)
        past = await rotations.last(_ROTATIONS)
        under_way = [rotation for rotation in past if rotation.run.status in ("running", "undoing")]
        steps = [step for each in under_way for step in await rotations.steps(each.id)]
        return {
            "next": coming[0] if coming else None,
            "dueNs": None if current is None else schedule.due_ns(current.counts_from_ns),
            "waits": bool(steps) and steps[-1]["outcome"] == "waiting",
            "failedInARow": (await rotations.failures_in_a_row())[0],
            "approvals": {str(each.id): await _approvers(store, each.id) for each in under_way},
            "history": [each.to_json() for each in past],
            "steps": [{name: step[name] for name in ("rotation_id", "time_ns", "step", "outcome")} for step in steps],
            "keys": [key.to_json() for key in await keys.all()],
        }


async def _approvers(store: Store, rotation: int) -> list[dict[str, str]]:
    """Without the proofs: a signature is not shown."""
    return [{"approver": each.approver, "method": METHOD} for each in await Approvals(store).of(rotation)]
