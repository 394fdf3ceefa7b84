"""Finds records by time and content. The index says which blocks to read; lines that it does not cover yet are read
too."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson

from hsmcore.audit import index
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import Segment, segments
from hsmcore.errors import BadArgument

Moment = datetime | float | None
Record = dict[str, Any]
_MISSING = object()


class Query:
    """The records from `start` to `end` inclusive (aware datetimes or Unix seconds; None: unbounded) whose fields equal
    `match`; "via.pid" names a field in a field. Raises BadArgument."""

    def __init__(self, layout: Layout, start: Moment, end: Moment, match: Mapping[str, Any] | None) -> None:
        self._layout = layout
        self._first, self._last = _ns(start, 0), _ns(end, 1 << 64)
        self._match = dict(match or {})
        try:
            # Lines are compact JSON, so a matching record contains each of these; other lines need no parsing.
            self._needles = [
                b'"%s":%s' % (name.rpartition(".")[2].encode(), orjson.dumps(value))
                for name, value in self._match.items()
                if isinstance(value, (str, int, bool))
            ]
        except (TypeError, AttributeError):
            raise BadArgument("a filter must be a dict of names and JSON values") from None

    def blocks(self) -> Iterator[list[Record]]:
        """Yield the records, oldest first, in lists that are not empty. Reads the disk. Raises SegmentError,
        OSError."""
        for segment in segments(self._layout):
            for text, inside in self._texts(segment):
                if found := self._found(text, inside):
                    yield found

    def latest(self, most: int) -> list[Record]:
        """Return the last `most` records, oldest first. Reads no file that is older than these. Raises SegmentError,
        OSError."""
        found: list[Record] = []
        for segment in reversed(segments(self._layout)):
            newest = deque[Record](maxlen=most - len(found))
            for text, inside in self._texts(segment):
                newest.extend(self._found(text, inside))
            found[:0] = newest
            if len(found) == most:
                break
        return found

    def _texts(self, segment: Segment) -> Iterator[tuple[bytes, bool]]:
        """Yield the parts of a segment that may hold matches, and whether each part lies within the time range."""
        offset = 0
        for block in index.blocks(self._layout, segment):
            offset = block.offset + block.length
            if self._may_be_in(block):
                inside = self._first <= block.min_time_ns and block.max_time_ns <= self._last
                yield segment.read(block.offset, block.length), inside
        for text in segment.chunks(offset):
            yield text, False

    def _may_be_in(self, block: index.Block) -> bool:
        return (
            block.min_time_ns <= self._last
            and block.max_time_ns >= self._first
            and block.may_have(self._match.get("operation"), self._match.get("key_id"))
            and (type(seq := self._match.get("seq")) is not int or block.first <= seq < block.first + block.count)
        )

    def _found(self, text: bytes, inside: bool) -> list[Record]:
        if self._needles:
            lines = text.split(b"\n")
            for needle in self._needles:
                lines = [line for line in lines if needle in line]
            text = b"\n".join(lines)
        found = _records(text) if text else []
        if not inside:
            found = [record for record in found if self._first <= record["time_ns"] <= self._last]
        if self._match:
            found = [
                record for record in found if all(_at(record, name) == value for name, value in self._match.items())
            ]
        return found


def _at(record: Any, name: str) -> Any:
    """The value of a field; "via.pid": that of a field in another one."""
    for part in name.split("."):
        record = record.get(part, _MISSING) if isinstance(record, dict) else _MISSING
    return record


def _records(text: bytes) -> list[Record]:
    text = text.removesuffix(b"\n")
    try:
        # Parsing all lines at once takes half the time, but fails if one line is not a record.
        found = orjson.loads(b"[" + text.replace(b"\n", b",") + b"]")
        if len(found) == text.count(b"\n") + 1 and all(map(_is_record, found)):
            return list(found)
    except orjson.JSONDecodeError:
        pass
    return list(filter(None, map(parsed, text.split(b"\n"))))


def _is_record(value: object) -> bool:
    return type(value) is dict and type(value.get("seq")) is int and type(value.get("time_ns")) is int


def parsed(line: bytes) -> Record | None:
    """Return the record of a line; None for a line that is not a record (cut off by a crash)."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return record if _is_record(record) else None


def _ns(moment: Moment, default: int) -> int:
    if moment is None:
        return default
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise BadArgument("a datetime without a time zone says no moment; use datetime.now(timezone.utc)")
        return int(moment.timestamp() * 1e9)
    return int(moment * 1e9)


def find(layout: Layout, seq: int) -> bytes | None:
    """Return the line of a record, without its newline; None if it is missing. Raises SegmentError, OSError."""
    holding = [segment for segment in segments(layout) if 0 < segment.first <= seq]
    if not holding:
        return None
    segment = holding[-1]
    offset = 0
    prefix = b'{"seq":%d,' % seq
    for block in index.blocks(layout, segment):
        offset = block.offset
        if seq < block.first + block.count:
            return _line(segment.read(block.offset, block.length), prefix)
        offset += block.length
    for text in segment.chunks(offset):
        if (line := _line(text, prefix)) is not None:
            return line
    return None


def _line(text: bytes, prefix: bytes) -> bytes | None:
    begin = 0 if text.startswith(prefix) else text.find(b"\n" + prefix) + 1
    if begin == 0 and not text.startswith(prefix):
        return None
    return text[begin:].partition(b"\n")[0]
