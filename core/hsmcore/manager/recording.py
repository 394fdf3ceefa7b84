"""Audit records that the engines do not write: opening, verification, failures before any member tried."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hsmcore._native import freeze
from hsmcore.audit import AuditLog
from hsmcore.errors import AuditUnavailable, DoubleSign, HsmError, InvalidMessageType, LoginError, PolicyRefused
from hsmcore.keyring import KeyVersion
from hsmcore.members.snapshot import MemberSnapshot


class Recorder:
    """Writes to the audit log, if there is one. `name`: the key manager's name."""

    def __init__(self, audit: AuditLog, name: str) -> None:
        self._audit = audit
        self._name = name
        self.enabled = audit.enabled

    def opened(self, members: Iterable[MemberSnapshot], key: KeyVersion) -> None:
        """Record the members that logged in, and the key that signs."""
        running = [member for member in members if member.running]
        for member in running:
            self._audit.note("login", result="ok", member=member.name, level=member.level)
        self._audit.note("open", result="ok", member=running[0].name, key_id=key.id)

    def not_opened(self, error: BaseException) -> None:
        """Record a failed opening."""
        if isinstance(error, LoginError):
            self._audit.note("login", result="error", error=error.status, member=self._name)
        self._audit.note("open", result="error", error=type(error).__name__, member=self._name)

    def verification(self, message: Any, signature: bytes, key_id: str | None, valid: bool) -> bool:
        """Record a verification. Returns `valid`."""
        if self.enabled:
            self._audit.note("verify", message=freeze(message), signature=signature, key_id=key_id, valid=valid)
        return valid

    def failure(self, operation: str, message: Any, error: BaseException) -> int | None:
        """Record a request that failed before a member tried it, or on all levels. The engine records every attempt of
        its member. Returns the record's number."""
        if not self.enabled or isinstance(error, AuditUnavailable):
            return None
        try:
            shown = freeze(message)
        except InvalidMessageType:
            shown = None
        fields: dict[str, Any] = {}
        if isinstance(error, (PolicyRefused, DoubleSign)):
            fields["reason"] = error.args[0]
        return self._audit.note(
            operation,
            message=shown,
            result="error",
            error=error.status if isinstance(error, HsmError) else "CANCELLED",
            member=self._name,
            **fields,
        )
