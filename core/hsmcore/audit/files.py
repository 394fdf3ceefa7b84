"""Writing so that it is still there after a crash, and so that the owner of the log's folder can use it."""

from __future__ import annotations

import os
from pathlib import Path

from hsmcore.state.ownership import make


def sync(path: Path) -> None:
    """Have a file, or the entries of a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of it."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def write_new(path: Path, data: bytes) -> None:
    """Write a whole new file, without making it durable. Raises FileExistsError if anything is there, OSError."""
    descriptor = make(path)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def write_beside(path: Path, data: bytes) -> Path:
    """The same as <name>.new, which is to take the place of `path`; returns it. One that a crash left is deleted."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    write_new(beside, data)
    return beside


def replace(path: Path, data: bytes) -> None:
    """Put a new content in the place of the old one: after a crash it is one or the other, whole."""
    beside = write_beside(path, data)
    sync(beside)
    beside.replace(path)
    sync(path.parent)
