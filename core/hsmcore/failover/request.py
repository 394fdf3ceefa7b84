"""A request that is routed: an attempt failed, or no member could take it at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import monotonic_ns

from hsmcore._native import Digest
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError, KeyNotCurrent, MemberDown
from hsmcore.failover.endpoint import Endpoint
from hsmcore.failover.errors import AllLevelsFailed, AllLevelsLate, EmergencyRefused
from hsmcore.failover.levels import EMERGENCY, Levels
from hsmcore.failover.policy import Attempts


@dataclass(slots=True)
class Request:
    """`deadline`: monotonic ns. `message` never changes."""

    message: bytes | Digest
    deadline: int
    allow_other_key: bool
    extra: bytes | None = None
    """The caller's addition to the audit records."""
    begun: int = field(default_factory=monotonic_ns)
    """When it came, monotonic ns."""
    attempts: Attempts[Endpoint] = field(default_factory=Attempts)
    causes: dict[str, HsmError] = field(default_factory=dict)
    refused: tuple[Endpoint, HsmError] | None = None
    """The first member whose module refused the request itself."""
    maybe_signed: bool = False
    """Whether an attempt of it may have left a signature."""

    @property
    def bindable(self) -> tuple[bytes | Digest, ...]:
        """The message, unless its caller allows another key."""
        return () if self.allow_other_key else (self.message,)

    @property
    def unsure(self) -> bool:
        """Whether a signature may exist, also where the caller allows another key."""
        return self.maybe_signed or self.attempts.bound_to is not None

    def require_key(self, now: bytes | None) -> None:
        """Raise KeyNotCurrent if the key that the caller asks for is another one than the message is bound to, or than
        the one that signs now."""
        only, bound = self.attempts.only, self.attempts.bound_to
        found = bound or now
        if only is not None and found not in (None, only):
            raise KeyNotCurrent.of(only, found, bound=bound is not None)

    def fits(self, version: KeyVersion) -> bool:
        """Whether a key signs such a message: Ed25519 hashes by itself, so it signs no digest."""
        return version.algorithm != "ed25519" or not isinstance(self.message, Digest)

    def answered(self, receipt: Receipt) -> Receipt:
        """Return the receipt with the time that the whole request took."""
        return replace(receipt, latency_ns=monotonic_ns() - self.begun)

    def failed_at(self, endpoint: Endpoint, error: HsmError) -> None:
        """Note a failed attempt on this member."""
        self.attempts.tried.append(endpoint)
        self.causes[endpoint.level_name] = error


def failure_of(request: Request, levels: Levels[Endpoint], *, late: bool) -> AllLevelsFailed:
    """The error that names the cause of each level."""
    causes: dict[str, HsmError] = {}
    for index, level in enumerate(levels.levels):
        own = request.causes.get(level.name)
        causes[level.name] = own if own is not None else _cause(index, request, levels)
    error = (AllLevelsLate if late else AllLevelsFailed).of(causes)
    error.maybe_signed = request.unsure
    return error


def _cause(level: int, request: Request, levels: Levels[Endpoint]) -> HsmError:
    endpoints = [endpoint for endpoint in levels.members if endpoint.level == level]
    key = request.attempts.key
    if key is not None and any(endpoint.trusted and endpoint.key != key for endpoint in endpoints):
        if request.attempts.bound_to is None:
            return MemberDown("it holds another key than the one that was asked for", hint="")
        return MemberDown(
            "it holds another key, and a signature of this message may exist already",
            hint="Call again with allow_other_key=True if signing it under a second key does no harm.",
        )
    if levels.levels[level].name == EMERGENCY:
        if not levels.emergency_permitted:
            return EmergencyRefused("the emergency level is disabled", hint="")
        if levels.emergency_spent:
            return EmergencyRefused("its budget or time is used up")
        if levels.emergency_fault:
            return MemberDown(levels.emergency_fault, hint="")
    reasons = "; ".join(
        f"{one.name} is {one.condition}" + (f" ({one.reason})" if one.reason else "") for one in endpoints
    )
    return MemberDown(reasons or "it has no member", hint="")


def by_module(error: HsmError) -> bool:
    """Whether a module refused the request, not hsmcore: the module may be at fault."""
    return error.status == "REQUEST_REJECTED" and (error.call or "").startswith("C_")
