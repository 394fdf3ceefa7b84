"""Writing so that it is still there after a crash."""

from __future__ import annotations

import os
from pathlib import Path


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


def write_new(path: Path, data: bytes, *, mode: int = 0o600, flags: int = 0) -> None:
    """Write a whole file, without making it durable."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | flags, mode)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Put a new content in the place of the old one: after a crash it is one or the other, whole."""
    beside = path.with_name(path.name + ".new")
    write_new(beside, data)
    sync(beside)
    beside.replace(path)
    sync(path.parent)
