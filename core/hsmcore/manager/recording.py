"""Audit records that the engines do not write: opening, verification, failures before any member tried."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hsmcore._native import Digest, freeze
from hsmcore.audit import AuditLog
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.config import KeyManagerConfig
from hsmcore.config.policy import PREHASHED
from hsmcore.config.root import STATE_FILE
from hsmcore.errors import AuditUnavailable, DoubleSign, HsmError, InvalidMessageType, LoginError, PolicyRefused
from hsmcore.members.snapshot import MemberSnapshot


class AuditNotes:
    """Writes to the audit log, if there is one. `name`: the key manager's name."""

    def __init__(self, audit: AuditLog, name: str) -> None:
        self._audit = audit
        self._name = name
        self.enabled = audit.enabled

    def opened(self, members: Iterable[MemberSnapshot], key: KeyVersion, store: Mapping[str, Any]) -> None:
        """Record the members that logged in, the key that signs, and the state store, as `named_store` has it."""
        running = [member for member in members if member.running]
        for member in running:
            self._audit.note("login", result="ok", member=member.name, level=member.level)
        self._audit.note("open", result="ok", member=running[0].name, key_id=key.id, **store)

    def evidence(self, key_id: str, public_key: bytes, digest: bytes, member: str) -> None:
        """Record what a device said of a key: the digest of the document that is kept."""
        fields: dict[str, Any] = {"key_id": key_id, "public_key": public_key, "evidence_sha256": digest}
        self._audit.note("key-evidence", result="ok", member=member, **fields)

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

    def outcome(self, message: Any, asked: asyncio.Future[Any]) -> None:
        """Record a request that has ended, if it failed: `failure`."""
        if not asked.cancelled() and (error := asked.exception()) is not None:
            self.failure("sign", message, error)

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
            **({"kind": PREHASHED} if isinstance(shown, Digest) else {}),
        )


def named_store(rules: KeyManagerConfig, number: int = 0) -> dict[str, Any]:
    """Return the fields of a record that name the state store, as people know it; `number`: the id of its file, if it
    is known."""
    if not rules.keeps_state:
        return {}
    return {"state_store": rules.state_name, **({"state_store_id": number} if number else {})}


async def found_store(rules: KeyManagerConfig) -> dict[str, Any]:
    """As named_store, with the id that is in the file before the store is opened."""
    number = 0
    if rules.keeps_state and rules.fleet is None:
        from hsmcore.state.sqlite import number_of

        number = await asyncio.to_thread(number_of, rules.state_path)
    return named_store(rules, number)


def say_where(rules: KeyManagerConfig) -> None:
    """Name the files of a key manager in the log that people read."""
    log = get_logger()
    state = rules.state_name if rules.keeps_state else None
    audit = None if rules.audit_log_file is None else str(Path(rules.audit_log_file).absolute())
    log.info("key manager opens", name=rules.manager or rules.name, state_store=state, audit_log=audit)
    if rules.fleet is None and state is not None and rules.state_file is None and rules.state_path.name == STATE_FILE:
        hint = "Name it with stateFile, in the configuration that its key ring belongs to."
        log.warning("the state store has the name that all configurations shared", path=state, hint=hint)
