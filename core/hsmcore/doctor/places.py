"""The checks of what a key manager writes to: the folders of the audit log and of the backups. They make nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hsmcore.base.ownership import EXPOSED_HINT, exposed
from hsmcore.config import Config
from hsmcore.doctor.report import Step, fail, ok, warn
from hsmcore.recovery.own_store import register

_HOME_HINT: Final = "Set XDG_STATE_HOME to a folder that lasts: an edited configuration is told apart by it."
_HINT: Final = "Name another place, or make the folder for the key manager's user (mkdir, chown)."


def check_places(config: Config) -> Iterator[Step]:
    """Check that this user could write each of them. Object stores are not asked: the first backup does."""
    rules, rotation = config.key_manager, config.key_manager.active_rotation
    if rules.audit_log_file is not None:
        yield _folder("audit-log", Path(rules.audit_log_file).parent)
    if rotation is not None and rotation.backup_enabled and rotation.backup_location is not None:
        scheme, separator, rest = rotation.backup_location.partition("://")
        if not separator or scheme == "file":
            yield _folder("backup-location", Path(rest if separator else scheme))
    if rules.fleet is None and rules.keeps_state and (problem := _unremembered()):
        yield warn("state-register", f"which store keeps a key's promises is not remembered: {problem}", _HOME_HINT)


def _unremembered() -> str:
    """Return why this user's state folder cannot be written, or ""."""
    folder = register().folder
    if folder is None:
        return "this user has no state folder"
    step = _folder("state-register", folder)
    return step.found if step.outcome == "fail" else ""


def _folder(name: str, folder: Path) -> Step:
    found = folder.absolute()
    while not found.exists() and found != found.parent:  # the key manager makes the missing ones
        found = found.parent
    if not found.is_dir():
        return fail(name, f"{found} is no folder", _HINT)
    if not os.access(found, os.W_OK | os.X_OK):
        return fail(name, f"this user cannot write {found}", _HINT)
    if found == folder.absolute() and (problem := exposed(found)):
        return fail(name, problem, EXPOSED_HINT)
    return ok(name, f"{folder} can be written" if found == folder.absolute() else f"{folder} can be made")
