"""Records of commands that cannot write the log, because a key manager holds its lock: files in `spool/`.

Before it acts, a command makes its file (`.pending`, locked while the command runs); afterwards it completes the file
(`.json`). So a command that is killed is recorded with the result "unknown", and a command that cannot record does
nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import orjson

from hsmcore.audit.layout import Layout
from hsmcore.audit.record import cleaned, this_process
from hsmcore.base.files import write_all
from hsmcore.base.log import get_logger
from hsmcore.base.ownership import make_folder, owns, sync, user_name

OPERATION: Final = "command"
MAX_BYTES: Final = 1 << 16
_MODE: Final = 0o644
"""The folder is open to its owner only; in it, the owner must be able to read another user's file."""
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def _made(path: Path) -> int:
    # The file keeps its own owner, unlike others in the folder: the record names that owner as the user.
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


class Intention:
    """A command's record before the command acts, on the disk. Blocks; for the command's own thread."""

    def __init__(self, layout: Layout, command: str, fields: Mapping[str, object]) -> None:
        """Make the file, durably. Raises OSError."""
        make_folder(layout.log.parent, parents=True)
        make_folder(layout.folder)
        make_folder(layout.spool)
        self._begun = time.time_ns()
        self._fields = {"command": command, **fields}
        name = f"{self._begun:020d}-{os.getpid()}-{secrets.token_hex(4)}"
        self._pending = layout.spool / f"{name}.pending"
        self.path = layout.spool / f"{name}.json"
        self.may_append = owns(layout.folder)
        """Whether the command may record the file's content itself. Only the folder's owner writes the log: the owner
        could perhaps not use files that another user makes there."""
        self._file = _made(self._pending)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._fill(self._file, {"result": "unknown"})
            sync(layout.spool)
        except BaseException:
            os.close(self._file)
            self._pending.unlink(missing_ok=True)
            raise

    def _fill(self, file: int, more: Mapping[str, object]) -> None:
        whole = {"at_ns": self._begun, "fields": cleaned({**self._fields, **more}), **this_process()}
        os.fchmod(file, _MODE)
        write_all(file, orjson.dumps(whole))
        os.fsync(file)

    def complete(self, fields: Mapping[str, object]) -> None:
        """Record how the command ended. Raises OSError; then its result is recorded as unknown."""
        try:
            beside = self._pending.with_suffix(".new")
            file = _made(beside)
            try:
                self._fill(file, fields)
            finally:
                os.close(file)
            beside.replace(self._pending)
            with suppress(FileNotFoundError):  # the key manager has recorded it since the replacement
                self._pending.rename(self.path)
                sync(self.path.parent)
        finally:
            os.close(self._file)


@dataclass(frozen=True, slots=True)
class Spooled:
    """A command's record that the log does not have yet."""

    path: Path
    fields: dict[str, Any]
    origin: dict[str, Any]

    def done(self) -> None:
        """Delete the file once the log has the record. Raises OSError."""
        self.path.unlink(missing_ok=True)
        sync(self.path.parent)


def spooled(layout: Layout) -> list[Spooled]:
    """Return the records that are ready, oldest first. The folder's content is not trusted: a record names its file's
    owner as user, and a file that is not a record becomes one with the result "unreadable". Raises OSError."""
    try:
        paths = sorted(path for path in layout.spool.iterdir() if path.suffix in (".json", ".pending"))
    except FileNotFoundError:
        return []
    found = map(_read, paths)
    return [each for each in found if each is not None]


def _read(path: Path) -> Spooled | None:
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None
    except PermissionError:
        _say_once(path)
        return None
    except OSError:  # a link or a socket
        return Spooled(path, _unreadable(path, b""), this_process())
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return Spooled(path, _unreadable(path, b""), this_process())
        if path.suffix == ".pending" and not _is_abandoned(descriptor):
            return None
        text = os.read(descriptor, MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    origin = this_process() | {"user": user_name(status.st_uid)}
    value = _parsed(text)
    if value is None:
        return Spooled(path, _unreadable(path, text), origin)
    fields = {**value["fields"], "at_ns": value.get("at_ns"), "file": path.name}
    source = value.get("source")
    if isinstance(source, dict):
        origin["source"] = cleaned({name: source.get(name) for name in ("hostname", "pid", "ip")})
    return Spooled(path, fields, origin)


@lru_cache(maxsize=1024)
def _say_once(path: Path) -> None:
    get_logger().error("a command's record cannot be read, and stays in the spool", file=str(path))


def _is_abandoned(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text) if len(text) <= MAX_BYTES else None
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("fields"), dict) else None


def _unreadable(path: Path, text: bytes) -> dict[str, Any]:
    return {"result": "unreadable", "file": path.name, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
