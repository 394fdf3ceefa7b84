"""The state of a key manager, for monitoring: read without I/O."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict, cast

from hsmcore._native import Histogram, Leaves
from hsmcore.audit import AuditLog
from hsmcore.base.keyring import KeyRing, KeyVersion
from hsmcore.config import Config
from hsmcore.errors import HsmError
from hsmcore.failover.path import SigningPath
from hsmcore.manager.lifecycle import State
from hsmcore.manager.policy import Guard
from hsmcore.members import cache_summary
from hsmcore.members.snapshot import DescribedMember

if TYPE_CHECKING:
    from hsmcore.failover.service import FailoverService
    from hsmcore.fleet.membership import Membership
    from hsmcore.manager.publishing import PublicLogs
    from hsmcore.manager.rotation.service import RotationService
    from hsmcore.recovery.state_backup import StateBackups


class DescribedKey(TypedDict):
    """A version of the key ring: KeyVersion's fields."""

    id: str
    label: str
    algorithm: str
    publicKey: str
    state: str


class Described(TypedDict):
    """The state of a key manager, as data for JSON; docs/EMBEDDING.md says what each is."""

    name: str
    life: State
    atNs: int
    failover: dict[str, Any] | None
    members: list[DescribedMember]
    stats: dict[str, dict[str, Any]]
    """By member: Engine.stats. Histograms are lists of (upper bound in ns, count since the start)."""
    keys: list[DescribedKey]
    currentKey: str | None
    cache: dict[str, Any] | None
    audit: dict[str, Any] | None
    auditConfigured: bool
    rotates: bool
    storeNotGenuine: dict[str, str]
    fleet: dict[str, Any] | None
    publish: NotRequired[dict[str, Any]]


class Snapshot(NamedTuple):
    """References, no copies. Outside the event loop, read only, and call nothing that belongs to the loop."""

    config: Config
    life: State
    path: SigningPath
    ring: KeyRing
    rotation: RotationService | None
    audit: AuditLog
    store: Mapping[str, str] | None
    """Why the state store is not genuine, by scope; None: it has no seal."""
    guard: Guard | None = None
    """The policy; None: there is none."""
    fleet: Membership | None = None
    """This host in its fleet; None: there is none."""
    state_backups: StateBackups | None = None
    """The backups of the state store; None: there are none on schedule."""
    batches: BatchFigures | None = None
    """What is counted of batches; None: none are signed."""
    logs: PublicLogs | None = None
    """The public logs of positions; None: there are none."""

    @property
    def open(self) -> bool:
        return self.life == "open"

    @property
    def levels(self) -> FailoverService | None:
        """What only levels have: counters, budget, history; None: there is one member, or it is not open."""
        return cast("FailoverService", self.path) if self.path.has_levels else None

    @property
    def key(self) -> KeyVersion | None:
        """The key that signs, if there is one."""
        try:
            return self.path.version
        except HsmError:
            return None

    def describe(self) -> Described:
        """As KeyManager.describe."""
        shown: Described = {
            "name": self.config.key_manager.name,
            "life": self.life,
            "atNs": time.time_ns(),
            "failover": None,
            "members": [],
            "stats": {},
            "keys": [],
            "currentKey": None,
            "cache": None,
            "audit": self.audit.describe(),
            "auditConfigured": self.audit.enabled,
            "rotates": self.rotation is not None,
            "storeNotGenuine": dict(self.store or {}),
            "fleet": None if self.fleet is None else self.fleet.describe(),
        }
        if not self.open:
            return shown
        if self.logs is not None:
            shown["publish"] = self.logs.status()
        key, levels, members = self.key, self.levels, self.path.members()
        shown["keys"] = [_key(version) for version in self.ring]
        shown["currentKey"] = None if key is None else key.id
        if levels is not None:
            names = [level.name for level in levels.levels.levels]
            shown["failover"] = {**levels.health.describe_levels(), "levels": names}
        shown["members"] = [member.to_json() for member in members]
        engines = {member.name: member.member.engine for member in members if member.member is not None}
        shown["stats"] = {name: engine.stats() for name, engine in engines.items()}
        shown["cache"] = cache_summary(engines.values(), self.config.key_manager.max_cache_size)
        return shown


def _key(version: KeyVersion) -> DescribedKey:
    return {
        "id": version.id,
        "label": version.label,
        "algorithm": version.algorithm,
        "publicKey": version.public_key.hex(),
        "state": version.state,
    }


class BatchFigures:
    """Counts since the key manager was opened."""

    def __init__(self) -> None:
        self.closed: Counter[str] = Counter({"interval": 0, "full": 0, "close": 0})
        """Batches by why they were closed."""
        self.failed = 0
        """Batches whose messages have no proofs."""
        self.messages = 0
        """Messages that were in a batch whose root was signed."""
        self.open: Leaves | None = None
        """The batch that collects."""
        self.closed_waiting = 0
        """Messages of batches that are closed and not answered."""
        self.times = Histogram()
        """From a batch's first message until its root was signed; of good ones."""

    @property
    def waiting(self) -> int:
        """Messages of batches that are open, or not answered."""
        leaves = self.open
        return self.closed_waiting + (0 if leaves is None else leaves.count)
