"""What the checks of one module share: what the earlier ones found, and the calls."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from hsmcore._native import Module
from hsmcore.control.quirks import Quirks
from hsmcore.control.records import TokenSelector
from hsmcore.doctor.calls import Calls, ModuleInfo, TokenInfo

_ULONG: Final = ctypes.sizeof(ctypes.c_ulong)


@dataclass(frozen=True, slots=True)
class Question:
    """What the probe's child is asked about; plain data, so that it can be sent. Secrets are no part of it."""

    member: str
    module_path: str
    module_args: str | None
    quirks: str | None
    token: dict[str, Any]
    key_label: str | None
    key_id: str | None
    key_handle: int | None
    algorithm: str | None
    public_key: str | None
    sessions: int
    isolation: str
    has_pin: bool
    rotates: bool = False
    """Whether keys are to be made by this login (keyRotation)."""
    backs_up: bool = False
    """Whether keys are to be wrapped (keyRotation.backupEnabled)."""
    backup_is_required: bool = True
    """Whether a key that cannot be wrapped stops a rotation (keyRotation.backupPolicy)."""
    seals: bool = False
    """Whether new keys are made and sealed outside of the token (keyRotation.keyCeremony)."""
    force_login: bool = False
    seconds: float = 10.0
    """How long one signature may take."""

    @property
    def selector(self) -> TokenSelector:
        return TokenSelector(**self.token)


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
class Context:
    """What is known so far. A field without a value is set by a check, and there for those that
    need that check."""

    question: Question
    announce: Callable[[str], None]
    pin: bytearray = field(default_factory=bytearray)
    """For the check that logs in, and wiped after it."""
    holder: Module | None = None
    session: int = 0
    """The session that is logged in; closing the last one would log out."""
    hung: bool = False
    """Whether a call did not return: then nothing is closed any more, the process just ends."""
    calls: Calls = field(init=False)
    info: ModuleInfo = field(init=False)
    quirks: Quirks = field(init=False)
    token: TokenInfo = field(init=False)
    key: FoundKey = field(init=False)

    def number(self, item: int, kind: int) -> int | None:
        """A CK_ULONG attribute."""
        raw = self.calls.attribute(self.session, item, kind, _ULONG)
        return int.from_bytes(raw, sys.byteorder) if raw is not None and len(raw) == _ULONG else None

    def flag(self, item: int, kind: int) -> bool | None:
        """A CK_BBOOL attribute."""
        raw = self.calls.attribute(self.session, item, kind, 1)
        return None if raw is None or len(raw) != 1 else raw != b"\0"

    def close(self) -> None:
        """Let the module go."""
        holder, self.holder = self.holder, None
        if holder is not None:
            if self.session:
                self.calls.close(self.session)
                self.session = 0
            self.announce("C_Finalize")
            holder.close()
