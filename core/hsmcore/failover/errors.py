"""The errors of failover: no level can sign, or the emergency level refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from hsmcore.errors import DeadlineExceeded, HsmError


class AllLevelsFailed(HsmError, status="TOKEN_LOST"):
    """No level can sign this request. `causes` has the last error of each level, by name."""

    default_hint = "See `hsmcore failover status`; signing goes on by itself when a member answers again."

    def __init__(self, message: str = "", *, causes: Mapping[str, HsmError] | None = None) -> None:
        super().__init__(message)
        self.causes: dict[str, HsmError] = dict(causes or {})

    @classmethod
    def of(cls, causes: Mapping[str, HsmError]) -> Self:
        """Make the error from its causes."""
        named = "; ".join(f"{level}: {str(error).rstrip('.')}" for level, error in causes.items())
        return cls(f"{cls.lead} ({named})" if named else cls.lead, causes=causes)

    lead: ClassVar[str] = "no level can sign"


class AllLevelsLate(AllLevelsFailed, DeadlineExceeded, status="DEADLINE_EXCEEDED"):
    """The deadline passed while no level could sign."""

    lead = "the deadline passed while no level could sign"


class EmergencyRefused(HsmError, status="REQUEST_REJECTED"):
    """The emergency level refuses: its budget or time is used up, or it does not allow the operation."""

    default_hint = 'See `hsmcore emergency status`; a new budget needs `hsmcore emergency reset --reason "…"`.'
