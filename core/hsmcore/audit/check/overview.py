"""A summary of a log, from its index and its newest checkpoint."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from hsmcore.audit import index
from hsmcore.audit.check.prove import latest
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import parsed
from hsmcore.audit.segment import segments
from hsmcore.errors import BadArgument


def overview(layout: Layout) -> dict[str, Any]:
    """Return the summary as JSON-ready data. Nothing is verified. Raises SegmentError, OSError."""
    times: list[int] = []
    first = last = stored = 0
    ordered = segments(layout)
    for segment in ordered:
        with segment.opened() as file:
            stored += os.fstat(file.fileno()).st_size
        offset = 0
        for block in index.blocks(layout, segment):
            first, last = first or block.first, block.first + block.count - 1
            times += [block.min_time_ns, block.max_time_ns]
            offset = block.offset + block.length
        for text in segment.chunks(offset):
            for record in filter(None, map(parsed, text.splitlines())):
                first, last = first or record["seq"], record["seq"]
                times.append(record["time_ns"])
            times = [min(times), max(times)] if times else []
    try:
        newest = latest(layout)
        sealed, origin = newest.size, newest.origin
    except BadArgument:
        sealed, origin = 0, layout.origin.read_text().strip() if layout.origin.exists() else ""
    return {
        "log": str(layout.log),
        "origin": origin,
        "firstSeq": first,
        "lastSeq": last,
        "sealed": sealed,
        "from": _iso(min(times)) if times else None,
        "to": _iso(max(times)) if times else None,
        "segments": len(ordered),
        "compressed": sum(segment.compressed for segment in ordered),
        "bytes": stored,
        "keys": layout.keys.read_text().split() if layout.keys.exists() else [],
    }


def _iso(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat()
