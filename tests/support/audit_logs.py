"""Making audit logs for tests, and taking them apart."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hsmcore.audit import AuditLog, index
from hsmcore.audit.layout import Layout
from hsmcore.audit.open_log import OpenLog
from hsmcore.audit.segment import Segment, compress, segments
from hsmcore.base import steady
from hsmcore.config import AuditSettings
from hsmcore.tlog.note import VerifierKey

SMALLEST_SEGMENT = 1 << 16


def settings(**more: Any) -> AuditSettings:
    """Small files and frequent checkpoints; the kernel's cache is durable enough for a test."""
    return AuditSettings.model_validate(
        {"durability": "write", "rotateBytes": SMALLEST_SEGMENT, "checkpointEveryRecords": 400, **more}
    )


async def write_log(path: Path, records: int, *, batch: int = 100, begin: int = 0, **more: Any) -> Layout:
    """Open a log, make it `records` longer, close it."""
    log = AuditLog(str(path), settings(**more))
    await log.open()
    for n in range(begin, begin + records):
        operation = "login" if n % 500 == 499 else "sign"
        log.record(operation, message=b"%d" % n, result="ok", key_id=f"{n % 7:032x}", signature=n.to_bytes(64, "big"))
        if n % batch == batch - 1:
            await log.flush()
    await log.close()
    return Layout(path)


def turn_clock(to_ns: int, patch: Callable[[object, str, object], None] = setattr) -> None:
    """Set the clock of this process's audit logs; it has held for as long as it must."""
    put = OpenLog._put
    patch(steady, "HELD_NS", 0)
    patch(time, "time_ns", lambda: to_ns)
    patch(OpenLog, "_put", lambda log, _now, *record: put(log, to_ns, *record))


def keys_of(layout: Layout) -> list[VerifierKey]:
    """The log's own keys."""
    return [VerifierKey.parse(line) for line in layout.keys.read_text().splitlines()]


def copy_of(layout: Layout, folder: Path) -> Layout:
    """A plain copy of what an auditor is given."""
    folder.mkdir()
    shutil.copytree(layout.folder, folder / layout.folder.name)
    shutil.copy(layout.log, folder / layout.log.name)
    return Layout(folder / layout.log.name)


def text_of(segment: Segment) -> bytes:
    """The lines of a segment."""
    return b"".join(segment.chunks())


def put_text(layout: Layout, segment: Segment, text: bytes) -> None:
    """Replace the lines of a segment as an attacker does that knows the format: compressed again where it was."""
    if not segment.compressed:
        segment.path.write_bytes(text)
        return
    plain = layout.archived(segment.first, compressed=False)
    plain.write_bytes(text)
    segment.path.unlink()
    lengths, left = [], len(text)
    for block in index.read(layout.index(segment.first)):
        lengths.append(min(block.length, left))
        left -= lengths[-1]
    lengths[-1] += left
    compress(layout, segment.first, lengths)


def line_places(layout: Layout) -> list[tuple[Segment, int]]:
    """The segment of each record, and its number among the segment's lines."""
    return [(segment, n) for segment in segments(layout) for n in range(text_of(segment).count(b"\n"))]


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `size`: a full disk, as far as the writer can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
