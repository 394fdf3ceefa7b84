"""Audit records of what the engines do not record themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hsmcore._native import freeze
from hsmcore.audit import AuditLog
from hsmcore.errors import AuditUnavailable, HsmError, InvalidMessageType, LoginError
from hsmcore.keyring import KeyVersion
from hsmcore.members.snapshot import MemberSnapshot


class Recorder:
    """Writes into the audit log, if there is one. `name`: the key manager's."""

    def __init__(self, audit: AuditLog, name: str) -> None:
        self._audit = audit
        self._name = name
        self.enabled = audit.enabled

    def opened(self, members: Iterable[MemberSnapshot], key: KeyVersion) -> None:
        """Opening succeeded: record the members that were logged in to, and the key that signs."""
        running = [member for member in members if member.running]
        for member in running:
            self._audit.note("login", result="ok", member=member.name, level=member.level)
        self._audit.note("open", result="ok", member=running[0].name, key_id=key.id)

    def not_opened(self, error: BaseException) -> None:
        """Opening failed."""
        if isinstance(error, LoginError):
            self._audit.note("login", result="error", error=error.status, member=self._name)
        self._audit.note("open", result="error", error=type(error).__name__, member=self._name)

    def verification(self, message: Any, signature: bytes, key_id: str | None, valid: bool) -> bool:
        """A verification that was asked for. Returns `valid`."""
        if self.enabled:
            self._audit.note("verify", message=freeze(message), signature=signature, key_id=key_id, valid=valid)
        return valid

    def failure(self, operation: str, message: Any, error: BaseException) -> int | None:
        """A request that failed without a member having tried it, or on all levels. What a member makes of a request,
        its engine records."""
        if not self.enabled or isinstance(error, AuditUnavailable):
            return None
        try:
            shown = freeze(message)
        except InvalidMessageType:
            shown = None
        return self._audit.note(
            operation,
            message=shown,
            result="error",
            error=error.status if isinstance(error, HsmError) else "CANCELLED",
            member=self._name,
        )
