"""Audit records of commands that change something, in the log of their configuration."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from hsmcore.cli.output import problem
from hsmcore.errors import AuditUnavailable, HsmError

if TYPE_CHECKING:
    from hsmcore.audit.layout import Layout
    from hsmcore.audit.spool import Intention
    from hsmcore.config import KeyManagerConfig


@contextmanager
def recorded(rules: KeyManagerConfig, command: str, **fields: object) -> Iterator[dict[str, object]]:
    """Record the work of the block as `command`, such as "keys generate", with its result, `fields` and the content of
    the yielded dict. Raises AuditUnavailable before the block if it cannot be recorded and `onFailure` is "closed"."""
    more: dict[str, object] = {}
    intention = _announced(rules, command, fields)
    try:
        yield more
    except BaseException as error:
        _complete(rules, intention, {"result": "error", "error": _name(error), **more})
        raise
    _complete(rules, intention, {"result": "ok", **more})


@contextmanager
def spooled(layout: Layout, command: str) -> Iterator[None]:
    """Leave a record of the block's work for the log's next start. Raises OSError."""
    from hsmcore.audit.spool import Intention

    intention = Intention(layout, command, _sudo_user())
    try:
        yield
    except BaseException as error:
        intention.complete({"result": "error", "error": _name(error)})
        raise
    intention.complete({"result": "ok"})


def _sudo_user() -> dict[str, object]:
    sudo = os.environ.get("SUDO_USER")
    return {"sudo_user": sudo} if sudo else {}


def _announced(rules: KeyManagerConfig, command: str, fields: dict[str, object]) -> Intention | None:
    from hsmcore.audit.layout import Layout
    from hsmcore.audit.spool import Intention

    if rules.audit_log_file is None:
        return None
    layout = Layout(rules.audit_log_file)
    try:
        named = {} if rules.manager is None else {"manager": rules.manager}
        return Intention(layout, command, fields | named | _sudo_user())
    except OSError as error:
        what = f"audit log {layout.log}: the command cannot be recorded: {error.strerror}"
        if rules.audit is not None and rules.audit.on_failure == "open":
            problem(what)
            return None
        theirs = isinstance(error, PermissionError)
        remedy = "Run it as the user of the key manager" if theirs else "Free space or repair its folder"
        raise AuditUnavailable(what, hint=f'{remedy}; with "onFailure": "open" it goes on without a record.') from None


def _complete(rules: KeyManagerConfig, intention: Intention | None, fields: dict[str, object]) -> None:
    if intention is None:
        return
    try:
        intention.complete(fields)
        if intention.may_append:
            asyncio.run(_append(rules))
    except (HsmError, OSError) as error:
        # Not an exception: the command itself has succeeded, or raises its own error.
        problem(
            f"the command's record is not in the audit log yet: {error}",
            "It waits in the log's spool folder; the next key manager that can write the log takes it in.",
        )


async def _append(rules: KeyManagerConfig) -> None:
    """Move the record into the log now, unless another process holds the log: that one does so within a second."""
    from hsmcore.audit import AuditLog
    from hsmcore.audit.layout import Layout
    from hsmcore.audit.lock import FolderInUse

    log = AuditLog(rules.audit_log_file, rules.audit)
    if log.needs_member and not Layout(rules.audit_log_file or "").checkpoint.exists():
        return  # only a member can sign the first checkpoint, and records from before it would have to be adopted
    try:
        await log.open()
    except FolderInUse:
        return
    await log.close()


def _name(error: BaseException) -> str:
    if isinstance(error, HsmError):
        return error.status
    return "FAILED" if isinstance(error, typer.Exit) else type(error).__name__


def key_fields(record: Any) -> dict[str, object]:
    """Return the fields of a record about a key that was made or restored."""
    return {
        "key_id": record.id,
        "label": record.label,
        "algorithm": record.algorithm,
        "public_key": record.public_key,
        "extractable": record.extractable,
    }
