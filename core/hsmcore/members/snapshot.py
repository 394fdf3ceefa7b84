"""One member as applications and monitoring see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from hsmcore.errors import HsmError

if TYPE_CHECKING:
    from hsmcore.members.base import Member


class DescribedMember(TypedDict):
    """A member, as data for JSON: MemberSnapshot's fields."""

    member: str
    level: str
    condition: str
    reason: str
    publicKey: str | None
    inFlight: int
    breakers: dict[str, str]
    nextProbeSeconds: float | None


@dataclass(frozen=True, slots=True)
class MemberSnapshot:
    """A member of a key manager: its state at the time of KeyManager.members(). Any thread may read it.

    `host_pid` and `stats()` read the running member when they are used.
    """

    name: str
    level: str
    condition: str
    """"ready", "ramping", "open", "half-open", "fenced", "drained" or "stopped"; docs/FAILOVER.md explains them."""
    reason: str
    """Why the member is out of service; "" if it is in service."""
    signs: bool
    """Whether the next request may go to this member."""
    public_key: bytes | None
    """The key that the member signs with; None while it is stopped."""
    key_id: str | None
    in_flight: int
    """Requests that hold a slot, and requests that wait for one."""
    breakers: Mapping[str, str] = field(default_factory=dict)
    """Breakers that are not closed: kind of failure and state."""
    next_probe_seconds: float | None = None
    member: Member | None = field(default=None, repr=False, compare=False)
    """The running member, for internal use."""

    @property
    def running(self) -> bool:
        """Whether the member has started."""
        return self.member is not None

    @property
    def host_pid(self) -> int | None:
        """The process id of the host process; None if there is none at present."""
        return None if self.member is None else getattr(self.member.engine, "host_pid", None)

    def stats(self) -> dict[str, Any] | None:
        """Return counters and latency histograms (see Engine.stats); None if the member is not running."""
        try:
            return None if self.member is None else self.member.engine.stats()
        except HsmError:
            return None  # the engine is closing

    def to_json(self) -> DescribedMember:
        """Return the fields in the form of KeyManager.describe()."""
        return {
            "member": self.name,
            "level": self.level,
            "condition": self.condition,
            "reason": self.reason,
            "publicKey": None if self.public_key is None else self.public_key.hex(),
            "inFlight": self.in_flight,
            "breakers": dict(self.breakers),
            "nextProbeSeconds": self.next_probe_seconds,
        }


Rows = Iterable[tuple[int, int]]
"""(upper bound in ns, count since the start), ascending: Engine.stats()["hsm_ns"]."""


def added(before: Mapping[int, int], now: Mapping[int, int]) -> list[tuple[int, int]]:
    """Return the rows of the time between two readings. Counts are negative if the engine was restarted."""
    return [(upper, count - before.get(upper, 0)) for upper, count in now.items()]


def quantile(rows: Sequence[tuple[int, int]], permille: int) -> int:
    """Return the upper bound in ns of the quantile's bucket. The sum of counts must not be 0."""
    total, seen = sum(count for _, count in rows), 0
    for upper, count in rows:
        seen += count
        if seen * 1000 >= total * permille:
            return upper
    return rows[-1][0]
