"""What a key manager shows of itself to whoever watches it: state and counters, read without I/O."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from hsmcore.audit import AuditLog
from hsmcore.config import Config, KeyManagerConfig
from hsmcore.errors import HsmError
from hsmcore.events import Events
from hsmcore.keyring import KeyRing, KeyVersion
from hsmcore.manager.lifecycle import Lifecycle
from hsmcore.members import cache_summary

if TYPE_CHECKING:
    from hsmcore.failover.service import FailoverService
    from hsmcore.manager.background import BackgroundServices
    from hsmcore.members import Member
    from hsmcore.rotation.service import RotationService


class Snapshot(NamedTuple):
    """References, no copies: whoever reads them in another thread than the event loop's changes and calls nothing that
    belongs to the loop."""

    config: Config
    open: bool
    member: Member | None
    failover: FailoverService | None
    rotation: RotationService | None
    audit: AuditLog
    key: KeyVersion | None


class Observable:
    """A part of KeyManager."""

    audit: AuditLog
    _rules: KeyManagerConfig
    _events: Events
    _life: Lifecycle
    _ring: KeyRing
    _member: Member | None
    _failover: FailoverService | None
    _background: BackgroundServices | None

    if TYPE_CHECKING:

        def _current(self) -> KeyVersion: ...

    def describe(self) -> dict[str, Any]:
        """How everything stands, as data that is ready for JSON but for the histograms, lists of (upper bound in ns,
        count since the start). Costs some 0.1 ms for each member; only in the event loop that initialized. Works in
        every state, also before initialize() and after close()."""
        life = self._life.state
        running = life == "open"
        shown: dict[str, Any] = {
            "name": self._rules.name,
            "life": life,
            "atNs": time.time_ns(),
            "failover": None,
            "members": [],
            "stats": {},
            "keys": [],
            "currentKey": None,
            "cache": None,
            "audit": self.audit.describe(),
            "auditConfigured": self.audit.enabled,
            "rotates": self._background is not None and self._background.rotation is not None,
        }
        if not running:
            return shown
        shown["keys"] = [_key(version) for version in self._ring]
        try:
            shown["currentKey"] = self._current().id
        except HsmError:
            shown["currentKey"] = None
        if self._failover is not None:
            state = self._failover.health.describe()
            shown["members"] = state.pop("members")
            levels = [level.name for level in self._failover.levels.levels]
            shown["failover"] = {**state, "levels": levels}
            engines = {endpoint.name: endpoint.signing for endpoint in self._failover.running()}
        elif self._member is not None:
            engines = {self._member.name: self._member.engine}
            shown["members"] = [self._alone(self._member)]
        else:
            return shown
        shown["stats"] = {name: engine.stats() for name, engine in engines.items()}
        shown["cache"] = cache_summary(engines.values(), self._rules.max_cache_size)
        return shown

    async def operator_action(self, action: str, *, result: str, **fields: Any) -> int | None:
        """Record what a person asked for through an operator's console, also when it was refused, and tell who listens
        (event "operator-action"). Returns the record's number, once it is kept. Raises AuditUnavailable."""
        number = self.audit.record("operator-action", command=action, result=result, **fields)
        await self.audit.durable(number)
        self._events.emit("operator-action", action=action, result=result, **fields)
        return number

    def _alone(self, member: Member) -> dict[str, Any]:
        """A member without failover, in the words of HealthMonitor.describe."""
        engine = member.engine
        down = bool(engine.stats()["down"])
        return {
            "member": member.name,
            "level": member.level,
            "condition": "open" if down else "ready",
            "reason": "the module fails, and recovery is under way" if down else "",
            "publicKey": self._current().public_key.hex(),
            "inFlight": engine.in_flight + engine.waiting,
            "breakers": {},
            "nextProbeSeconds": None,
        }


def _key(version: KeyVersion) -> dict[str, Any]:
    return {
        "id": version.id,
        "label": version.label,
        "algorithm": version.algorithm,
        "publicKey": version.public_key.hex(),
        "state": version.state,
    }
