"""Durable writes of files, which belong to the owner of the log's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from mmap import MADV_DONTNEED, mmap
from pathlib import Path
from typing import Final

from hsmcore.base.ownership import make, sync

_PIECE: Final = 1 << 22
"""A multiple of a page, in bytes."""


def pieces(data: bytes | mmap, begin: int = 0) -> Iterator[memoryview]:
    """Yield what is in `data` from `begin` on. The pages of a mapped file are given back piece by piece: they would
    count as memory of this process."""
    with memoryview(data) as view:
        for at in range(begin - begin % _PIECE, len(view), _PIECE):
            with view[max(at, begin) : at + _PIECE] as piece:
                yield piece
            if isinstance(data, mmap):
                data.madvise(MADV_DONTNEED, at, min(_PIECE, len(view) - at))


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def write_new(path: Path, data: bytes) -> None:
    """Make a file with this content, without flushing it. Raises FileExistsError if the name is taken, OSError."""
    os.close(_written(path, data))


def _written(path: Path, data: bytes) -> int:
    descriptor = make(path)
    try:
        write_all(descriptor, data)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write_beside(path: Path, data: bytes) -> tuple[Path, int]:
    """Make the file <name>.new, which is to replace `path`, without flushing it, instead of one that a crash left.
    Return its path and its descriptor. Raises OSError."""
    beside = path.with_name(path.name + ".new")
    try:
        return beside, _written(beside, data)
    except FileExistsError:
        beside.unlink()
        return beside, _written(beside, data)


def append(path: Path, data: bytes, *, durable: bool) -> None:
    """Append to an existing file; `durable`: return once the data is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Replace a file's content atomically and durably: after a crash it is the old or the new one. Raises OSError."""
    beside, descriptor = write_beside(path, data)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    beside.replace(path)
    sync(path.parent)
