"""The checkpoint of the audit log that a backup of a state store is bound to: what it must say, and what the log must
say of it. If they contradict each other, one of them was changed or cut off, or belongs to another store."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from typing import Any, Final

from hsmcore.audit.layout import Layout
from hsmcore.audit.tiles import TileError, Tiles
from hsmcore.config import Config
from hsmcore.state import StoreError
from hsmcore.state.backup import BackupUnusable
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import Note, NoteError, VerifierKey

_FIELDS: Final = {"origin": str, "size": int, "root": str, "note": str}
_HINT: Final = (
    "Find out which of the two is right: `hsmcore audit verify`, and copies of the log. To restore the backup all the "
    "same, name whose it is: --from."
)

_LOG_HINT: Final = "Look at the audit log: `hsmcore audit verify`."


def last_of(config: Config) -> Checkpoint | None:
    """Return the last checkpoint of the audit log. Raises StoreError if it cannot be read."""
    file = config.key_manager.audit_log_file
    if file is None:
        return None
    try:
        return Checkpoint.parse(Layout(file).checkpoint.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, NoteError) as error:
        raise StoreError(f"the checkpoint of audit log {file} cannot be read: {error}", hint=_LOG_HINT) from None


def anchor_of(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    """Return a checkpoint as a backup has it."""
    if checkpoint is None:
        return None
    root = b64encode(checkpoint.root).decode()
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": root, "note": checkpoint.note.decode()}


def behind(config: Config, anchor: object, *, compares: bool) -> int | None:
    """Return how many records the log's last checkpoint covers and the backup's does not; None: the log is another one,
    or there is none. `compares`: whether log and backup must agree. Reads the disk. Raises BackupUnusable, StoreError.
    """
    checkpoint = _parsed(anchor)
    file = config.key_manager.audit_log_file
    if checkpoint is None or file is None:
        return None
    layout = Layout(file)
    try:
        same = layout.origin.read_text().strip() == checkpoint.origin
        keys = [VerifierKey.parse(line) for line in layout.keys.read_text().splitlines()]
    except FileNotFoundError:
        return None  # the log is gone, and its keys with it
    except (OSError, ValueError) as error:
        raise StoreError(f"the keys of audit log {file} cannot be read: {error}", hint=_LOG_HINT) from None
    if not _is_signed(checkpoint, keys) and same:
        raise BackupUnusable("the backup's checkpoint is signed by no key of the audit log")
    if not same:
        return None
    last = last_of(config)
    size = 0 if last is None else last.size
    if compares:
        _require_same(layout, checkpoint, size)
    return size - checkpoint.size


def _require_same(layout: Layout, checkpoint: Checkpoint, size: int) -> None:
    if size < checkpoint.size:
        raise BackupUnusable(
            f"the audit log is shorter than the backup says, {size} records and not {checkpoint.size}: it was cut, or "
            "is another one",
            hint=_HINT,
        )
    try:
        root = Tiles(layout, checkpoint.size).root()
    except (TileError, OSError) as error:
        raise StoreError(f"the tree of audit log {layout.log} cannot be read: {error}", hint=_LOG_HINT) from None
    if root != checkpoint.root:
        raise BackupUnusable(
            f"the first {checkpoint.size} records of the audit log are not those of the backup's checkpoint", hint=_HINT
        )


def _parsed(anchor: object) -> Checkpoint | None:
    """Return the checkpoint in a backup, whose note must say the same. Its signatures are not verified."""
    if anchor is None:
        return None
    form = type(anchor) is dict and {name: type(value) for name, value in anchor.items()} == _FIELDS
    try:
        checkpoint = Checkpoint.parse(anchor["note"].encode()) if form else None  # type: ignore[index]
    except (NoteError, UnicodeEncodeError) as error:
        raise BackupUnusable(f"the backup's checkpoint is none: {error}") from None
    if checkpoint is None or anchor_of(checkpoint) != anchor:
        raise BackupUnusable("the backup's checkpoint says other things than its signed note")
    return checkpoint


def _is_signed(checkpoint: Checkpoint, keys: list[VerifierKey]) -> bool:
    named = [*keys, *(replace(key, name=checkpoint.origin) for key in keys)]  # a key may have served another log
    try:
        return bool(Note.parse(checkpoint.note).signers(named))
    except NoteError as error:
        raise BackupUnusable(f"the backup's checkpoint is forged: {error}") from None
