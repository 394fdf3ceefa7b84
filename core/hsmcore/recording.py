"""Audit records of signatures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hsmcore.audit import AuditLog
from hsmcore.errors import HsmError, LoginError
from hsmcore.keyring import KeyVersion


class Recorder:
    """Writes what became of requests into the audit log, if there is one. `name`: the key manager's."""

    def __init__(self, audit: AuditLog, name: str) -> None:
        self._audit = audit
        self._name = name
        self.enabled = audit.enabled

    def opened(self, members: Iterable[tuple[str, str]], key: KeyVersion) -> None:
        """The key manager is open: the members (name, level) that were logged in to, and the key that signs."""
        first = None
        for name, level in members:
            first = first or name
            self._audit.note("login", result="ok", member=name, level=level)
        self._audit.note("open", result="ok", member=first, key_id=key.id)

    def not_opened(self, error: BaseException) -> None:
        """Opening failed."""
        if isinstance(error, LoginError):
            self._audit.note("login", result="error", error=error.status, member=self._name)
        self._audit.note("open", result="error", error=type(error).__name__, member=self._name)

    def verification(self, message: Any, signature: bytes, key_id: str | None, valid: bool) -> bool:
        """A verification that was asked for. Returns `valid`."""
        if self.enabled:
            self._audit.note("verify", message=bytes(message), signature=signature, key_id=key_id, valid=valid)
        return valid

    def signature(
        self,
        member: str,
        level: str,
        key: KeyVersion | None,
        message: Any,
        result: bytes | HsmError,
        cached: bool,
        latency: int,
    ) -> int | None:
        """A request that a member answered; `latency` in nanoseconds. Returns the record's number."""
        if not self.enabled:
            return None
        if isinstance(result, HsmError):
            return self.failure("sign", message, result)
        return self._audit.record(
            "sign",
            message=bytes(message),
            result="ok",
            signature=result.hex(),
            key_id=key.id if key else None,
            public_key=key.public_key.hex() if key else None,
            member=member,
            level=level,
            cached=cached,
            latency_ns=latency,
        )

    def failure(self, operation: str, message: Any, error: BaseException) -> int | None:
        """A request that ended in an error, or was cancelled: its caller learns that, also if it cannot be recorded."""
        if not self.enabled:
            return None
        return self._audit.note(
            operation,
            message=bytes(message) if isinstance(message, (bytes, bytearray, memoryview)) else None,
            result="error",
            error=error.status if isinstance(error, HsmError) else "CANCELLED",
            member=self._name,
        )

    async def settled(self, sequence: int | None) -> None:
        """Wait for a record, as far as the configuration wants that: a signature that is not recorded is not handed
        out. Raises AuditUnavailable."""
        if self._audit.waits:
            await self._audit.durable(sequence)
