"""Audit records of signatures."""

from __future__ import annotations

from typing import Any

from hsmcore.audit import AuditLog
from hsmcore.errors import HsmError
from hsmcore.keyring import KeyVersion


class Recorder:
    """Writes what became of requests into the audit log, if there is one. `name`: the key manager's."""

    def __init__(self, audit: AuditLog, name: str) -> None:
        self._audit = audit
        self._name = name
        self.enabled = audit.enabled

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
