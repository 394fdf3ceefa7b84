"""The state that the checks of one module share: the question, the findings of earlier checks, and the C_* calls."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hsmcore._native import Module
from hsmcore.members.control.calls import Calls, ModuleInfo, TokenInfo
from hsmcore.members.control.quirks import Quirks
from hsmcore.members.control.records import TokenSelector

_ULONG: Final = ctypes.sizeof(ctypes.c_ulong)


@dataclass(frozen=True, slots=True)
class ProbeQuestion:
    """The parent's question to its child. Plain data, serialized as JSON, without secrets."""

    member: str
    module_path: str
    module_args: str | None
    quirks: str | None
    token: TokenSelector
    key_label: str | None
    key_id: str | None
    key_handle: int | None
    algorithm: str | None
    public_key: str | None
    sessions: int
    sessions_given: bool
    """Whether the configuration says how many."""
    isolation: str
    has_pin: bool
    rotates: bool
    """Whether this login makes keys (keyRotation)."""
    backs_up: bool
    """Whether keys are wrapped for backups (keyRotation.backupEnabled)."""
    backup_is_required: bool
    """Whether a rotation fails if the new key cannot be wrapped (keyRotation.backupPolicy)."""
    seals: bool
    """Whether new keys are made and sealed outside of the token (keyRotation.keyCeremony)."""
    shares: bool
    """Whether a new key has to get to other tokens too (keyRotation, with several PKCS#11 members)."""
    force_login: bool
    seconds: float
    """Timeout of one signature."""


@dataclass(frozen=True, slots=True)
class FoundKey:
    """The private key that the configuration names."""

    handle: int
    label: str
    id: str
    algorithm: str | None
    key_type: int | None
    public_key: bytes | None


@dataclass(slots=True)
class ProbeContext:
    """The findings so far. A check sets the fields without a value; only checks that need that check may read them."""

    question: ProbeQuestion
    announce: Callable[[str], None]
    pin: bytearray = field(default_factory=bytearray)
    """The PIN for the login check, wiped after it."""
    holder: Module | None = None
    session: int = 0
    """The session that is logged in. Closing a token's last session logs out."""
    hung: bool = False
    """Whether a call did not return. If so, nothing is closed: the process just ends."""
    calls: Calls = field(init=False)
    info: ModuleInfo = field(init=False)
    quirks: Quirks = field(init=False)
    token: TokenInfo = field(init=False)
    key: FoundKey = field(init=False)

    def number(self, item: int, kind: int) -> int | None:
        """Return a CK_ULONG attribute."""
        raw = self.calls.attribute(self.session, item, kind, _ULONG)
        return int.from_bytes(raw, sys.byteorder) if raw is not None and len(raw) == _ULONG else None

    def flag(self, item: int, kind: int) -> bool | None:
        """Return a CK_BBOOL attribute."""
        raw = self.calls.attribute(self.session, item, kind, 1)
        return None if raw is None or len(raw) != 1 else raw != b"\0"

    def close(self) -> None:
        """Close the session and finalize the module. Idempotent."""
        holder, self.holder = self.holder, None
        if holder is not None:
            if self.session:
                self.calls.close(self.session)
                self.session = 0
            self.announce("C_Finalize")
            holder.close()
