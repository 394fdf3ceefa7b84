"""Events of levels and members."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

EventKind = Literal[
    "failover",
    "failback",
    "outage",
    "recovered",
    "member-down",
    "member-up",
    "member-drained",
    "member-resumed",
    "member-readmitted",
    "level-forced",
    "level-released",
    "emergency-entered",
    "emergency-left",
    "emergency-exhausted",
    "emergency-enabled",
    "emergency-disabled",
    "emergency-reset",
]

ALARMING: Final = frozenset({"failover", "outage", "member-down", "emergency-entered", "emergency-exhausted"})
"""These are logged as warnings, the others as information."""


@dataclass(frozen=True, slots=True)
class Event:
    """One transition. `level_from` and `level_to` are levels' names, or None where no level could sign. Holds no
    secret: `details` has public keys in hexadecimal, counts and texts of errors."""

    kind: EventKind
    level_from: str | None = None
    level_to: str | None = None
    member: str | None = None
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """Return the fields that have a value, and the details, as one mapping."""
        fields = {
            "from_level": self.level_from,
            "to_level": self.level_to,
            "member": self.member,
            "reason": self.reason,
        }
        return {name: value for name, value in (fields | self.details).items() if value not in (None, "")}
