"""Whether a key manager runs on a store's file, and on which file: each holds a shared lock on a file in the store's
folder. A report in the store may be old, or be in another file."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hsmcore.base.ownership import open_or_make
from hsmcore.state.errors import StoreError
from hsmcore.state.sqlite import OWNER_HINT

_END = ".running.lock"
_TRIES, _TRY_SECONDS = 20, 0.005
_HINT = "Stop the key managers; docs/RECOVERY.md says how to put a store in the place of another."


class Presence:
    """A key manager of this process. It ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        """Begin. Waits for a command that looks. Raises StoreError."""
        lock = _lock_of(path)
        try:
            self._file = open_or_make(lock)
            fcntl.flock(self._file, fcntl.LOCK_SH)
            os.pwrite(self._file, _identity(path), 0)
        except OSError as error:
            raise StoreError(f"state store {path}: {lock}: {error.strerror}", hint=OWNER_HINT) from None

    def end(self) -> None:
        """Release the lock. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def is_attended(path: Path) -> bool:
    """Return whether a key manager runs on the store at a path. Raises StoreError if it runs on a file that is no
    longer there: what is written into the present one reaches none."""
    if not os.path.lexists(_lock_of(path)):
        return False
    with unattended(path) as free:
        return not free


@contextmanager
def unattended(path: Path) -> Iterator[bool]:
    """Yield whether no key manager runs on the store at a path, and let none begin within the block. Raises as
    `is_attended`."""
    try:
        lock = open_or_make(_lock_of(path))
    except OSError as error:
        raise StoreError(f"state store {path}: {_lock_of(path)}: {error.strerror}", hint=OWNER_HINT) from None
    try:
        yield _is_free(lock, path)
    finally:
        os.close(lock)


def _is_free(lock: int, path: Path) -> bool:
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_TRY_SECONDS)  # another command may have it, for a moment
    if os.pread(lock, 64, 0) != _identity(path):
        raise StoreError(f"state store {path}: a key manager runs on another file that was here before", hint=_HINT)
    return False


def _lock_of(path: Path) -> Path:
    return Path(os.path.realpath(path) + _END)


def _identity(path: Path) -> bytes:
    try:
        found = path.stat()
    except FileNotFoundError:
        return b"".ljust(48)
    return f"{found.st_dev} {found.st_ino}".encode().ljust(48)
