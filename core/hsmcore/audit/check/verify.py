"""Verifies a whole log from a plain copy of its files: every record, tile, checkpoint and index row.

One pass hashes all lines and compares the root at the size of every checkpoint that was ever signed. Only if a root
differs, `diagnose` looks for the place. Memory use does not grow with the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final

from hsmcore._native import MerkleTree
from hsmcore.audit import index
from hsmcore.audit.check.diagnose import diagnose
from hsmcore.audit.check.findings import Finding, Kind, Report
from hsmcore.audit.check.tilecheck import TileCheck, TileProblem
from hsmcore.audit.check.trust import Trust, Trusted
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import parsed
from hsmcore.audit.retention import Prunes
from hsmcore.audit.segment import Segment, SegmentError, newest_segment, segments
from hsmcore.audit.tiles import TileError, Tiles
from hsmcore.tlog.checkpoint import Checkpoint

Progress = Callable[[int, int], None]
"""Called with the number of records verified and of records in all."""
_ALL: Final = 1 << 62
_ATTEMPTS: Final = 10
"""Most attempts to read a log whose files are pruned while it is read."""
_ADOPTED: Final = b'"operation":"audit-adopted"'


def verify(layout: Layout, trust: Trust | None = None, progress: Progress | None = None) -> Report:
    """Verify a log, also one that a key manager writes: what it renames, compresses or prunes was not changed. Raises
    OSError if a file cannot be read; the report has everything else."""
    begun, attempts = time.perf_counter(), 0
    while True:
        attempts += 1
        before, report = segments(layout)[:1], Report()
        trusted, ordered = Trusted(layout, trust or Trust(), report), segments(layout)
        try:
            if before == ordered[:1]:  # else the checkpoint that was read may not cover what was pruned since
                _Pass(trusted, ordered, progress or (lambda _done, _all: None)).run()
                break
        except FileNotFoundError:  # pruned since it was listed
            if attempts == _ATTEMPTS:
                raise
    report.seconds = time.perf_counter() - begun
    return report


class _Pass:
    """The pass over all lines."""

    def __init__(self, trusted: Trusted, ordered: list[Segment], progress: Progress) -> None:
        self.trusted, self.ordered, self.report, self.progress = trusted, ordered, trusted.report, progress
        self.size = trusted.latest.size if trusted.latest is not None else 0
        self.roots: dict[int, list[tuple[Checkpoint, bool]]] = {}
        signed = trusted.sound if trusted.latest is None else [*trusted.sound, trusted.latest]
        for one, known in [*((one, False) for one in signed), *((one, True) for one in trusted.known)]:
            self.roots.setdefault(one.size, []).append((one, known))
        self.stops = sorted(self.roots)
        self.tree = MerkleTree()
        self.good = (0, 0, 1)
        self.broken = False
        self.failure: tuple[Kind, str, object] = ("changed", "the records do not give the signed root", None)
        self.tiles = TileCheck(trusted.layout, self.size)
        self.prunes, self.unsealed_prunes = Prunes(), Prunes()
        self.oldest_ns: int | None = None
        """The time of the oldest record that is left."""

    def run(self) -> None:
        self.begin()
        self.check_roots()
        for number, segment in enumerate(self.ordered):
            if self.broken:
                break
            try:
                self.segment(number, segment)
            except SegmentError as error:
                self.fail("unreadable", str(error), segment.path)
        if self.broken or self.tree.size < self.size:
            self.locate()
        self.finish()

    def begin(self) -> None:
        """Take the hashes of pruned records from the tiles."""
        first = self.ordered[0].first if self.ordered else 1
        if first <= 1 or first - 1 > self.size:
            return
        layout, pruned = self.trusted.layout, first - 1
        try:
            self.tree = Tiles(layout, pruned).tree()
            self.tiles.begin(pruned)
            for size in [size for size in self.stops if size < pruned]:
                self.compare(size, Tiles(layout, size).root())
        except TileError as error:
            self.trusted.find("tile", str(error), 1, pruned, error.path)
        self.report.pruned = pruned
        self.good = (0, 0, first)

    def check_roots(self) -> None:
        if self.tree.size in self.roots:
            self.compare(self.tree.size, self.tree.root())

    def compare(self, size: int, root: bytes) -> None:
        for checkpoint, known in self.roots[size]:
            if checkpoint.root == root:
                continue
            if known:
                text = f"the first {size} records are not those of the checkpoint to compare with"
                self.trusted.find("rewritten", text, 1, size)
            else:
                self.broken = True

    def fail(self, kind: Kind, text: str, where: object) -> None:
        self.broken = True
        self.failure = (kind, text, where)

    def segment(self, number: int, segment: Segment) -> None:
        if segment.first != self.tree.size + 1 and (segment.first or segment.path != self.trusted.layout.log):
            self.fail("removed", f"record {self.tree.size + 1} should be first in it", segment.path)
            return
        if not segment.first:  # it may have records since it was listed
            segment = newest_segment(self.trusted.layout, self.tree.size + 1)
        builder = index.IndexBuilder(self.tree.size + 1)
        # Before the text: of a segment that grows, the index may have rows later for which this has no text.
        rows = index.read(self.trusted.layout.index(segment.first))
        offset = 0
        for text in prefetched(segment.chunks()):
            used = sealed = 0
            if self.oldest_ns is None and (oldest := parsed(text.partition(b"\n")[0])) is not None:
                self.oldest_ns = oldest["time_ns"]
            while used < len(text):
                why, consumed, leaves, rows_here = self.tree.scan(text, used, self.tree.size + 1, self.to_stop())
                self.take(leaves)
                builder.add(rows_here)
                used += consumed
                offset += consumed
                sealed = used if self.tree.size <= self.size else sealed
                if self.tree.size in self.roots and leaves:
                    self.check_roots()
                    if not self.broken:
                        self.good = (number, offset, self.tree.size + 1)
                        self.tile_problems(self.tiles.partial(newest=self.tree.size == self.size))
                if why not in ("end", "limit"):
                    self.bad_line(why, segment, offset, text[used : used + 70000])
                    self.take_own(text, sealed, used)
                    return
                if self.broken:
                    return
            self.take_own(text, sealed, used)
            self.progress(self.tree.size, max(self.size, self.tree.size))
        self.check_index(segment, rows, builder.end())

    def to_stop(self) -> int:
        size = self.tree.size
        while self.stops and self.stops[0] <= size:
            self.stops.pop(0)
        return self.stops[0] - size if self.stops else _ALL

    def take(self, leaves: bytes) -> None:
        if self.tree.size <= self.size:  # only sealed records have tiles
            self.tile_problems(self.tiles.append(leaves))

    def tile_problems(self, problems: Iterator[TileProblem]) -> None:
        for problem in problems:
            self.trusted.find("tile", problem.problem, problem.first, problem.last, problem.path, derived=True)

    def take_own(self, text: bytes, sealed: int, used: int) -> None:
        """Take the log's records about itself. Only prune records that a checkpoint covers explain missing records: any
        process that can write the file can append others."""
        self.prunes.take(text, 0, sealed)
        self.unsealed_prunes.take(text, sealed, used)
        if _ADOPTED in text:
            for record in filter(None, map(parsed, text[:sealed].split(b"\n"))):
                if record.get("operation") == "audit-adopted":
                    self.adopted(record)

    def adopted(self, record: Mapping[str, Any]) -> None:
        """Judge a record that says that records had no checkpoint when a key manager started."""
        count = record.get("records")
        text = (
            f"record {record['seq']} ({_origin(record)}): the first {count} records were in the log before its first "
            "checkpoint, or that was taken away; only a checkpoint kept from before vouches for them"
        )
        if type(count) is int and count <= self.trusted.trust.adopted:
            self.report.notes.append(f"as expected, {text}")
        else:
            self.trusted.find("adopted", text, 1, count if type(count) is int else record["seq"])

    def pruned(self, last: int) -> None:
        """Judge that the first records, up to `last`, are gone."""
        record = self.prunes.of(last)
        if record is None:
            text = f"records 1 to {last} are gone, and no sealed record says that they were pruned"
            self.trusted.find("removed", text, 1, last)
            return
        text = f"records 1 to {last} were pruned, by record {record['seq']} ({_origin(record)})"
        if self.trusted.trust.expects_prune(last, record["time_ns"], self.oldest_ns or record["time_ns"]):
            self.report.notes.append(f"as expected, {text}")
        else:
            self.trusted.find("pruned", f"{text}, which no retention that is expected explains", 1, last)

    def bad_line(self, why: str, segment: Segment, offset: int, line: bytes) -> None:
        """Report a line that is not the next record."""
        if self.tree.size < self.size:
            self.fail("changed", f"byte {offset} does not begin record {self.tree.size + 1}", segment.path)
        elif why == "torn" and segment.path == self.trusted.layout.log:
            self.report.notes.append(
                f"{segment.path} ends in an unfinished line of {len(line)} bytes: a crash, or a copy of a log in use"
            )
        else:
            text = f"after the checkpoint, byte {offset} does not begin record {self.tree.size + 1}"
            self.trusted.find("unsealed", text, self.tree.size + 1, None, segment.path)

    def check_index(self, segment: Segment, rows: list[index.Block], blocks: list[index.Block]) -> None:
        path = self.trusted.layout.index(segment.first)
        growing = segment.path == self.trusted.layout.log or self.tree.size >= self.size
        # In a segment that grows, or with which the checkpoint ends, each complete block that the checkpoint covers
        # has a row, and later blocks may have one: the sealer has not reached the segment's end.
        sealed = sum((b.first + b.count - 1) % index.BLOCK == 0 and b.first + b.count - 1 <= self.size for b in blocks)
        expected = blocks[: max(len(rows), sealed)] if growing else blocks
        if rows != expected:
            same = 0
            while same < min(len(rows), len(expected)) and rows[same] == expected[same]:
                same += 1
            first = expected[same].first if same < len(expected) else segment.first
            self.trusted.find("index", f"row {same} is not what the records give", first, None, path, derived=True)

    def locate(self) -> None:
        """Report where the records differ."""
        latest = self.trusted.latest
        number, offset, first = self.good
        found: list[Finding] = []
        if latest is not None:
            found = diagnose(self.trusted.layout, self.ordered, self.size, latest.root, (number, offset), first)
        if found:
            self.report.findings += found
            return
        kind, text, where = self.failure
        last = next((size for size in sorted(self.roots) if size >= first), self.size)
        self.trusted.find(kind, f"between records {first} and {last}: {text}", first, last, where)

    def finish(self) -> None:
        report, size = self.report, self.tree.size
        report.records = self.size
        report.unsealed = max(0, size - self.size)
        report.root = self.trusted.latest.root if self.trusted.latest is not None else b""
        report.checkpoints = len(self.trusted.past)
        if report.pruned and not self.broken:
            self.pruned(report.pruned)
        for seq, last in self.unsealed_prunes.items():
            report.notes.append(
                f"record {seq} says that records up to {last} are to be pruned; it counts for nothing, as no "
                "checkpoint covers it"
            )
        for known in self.trusted.known:
            if known.size > max(size, self.size):
                text = (
                    f"the log has {max(size, self.size)} records, but had {known.size}: it is an older copy, or was cut"
                )
                self.trusted.find("older", text, max(size, self.size) + 1, known.size)


def _origin(record: Mapping[str, Any]) -> str:
    """Return when, where and by which user a record was written."""
    source = record.get("source")
    host = source.get("hostname") if isinstance(source, dict) else None
    try:
        moment = datetime.fromtimestamp(record["time_ns"] // 10**9, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        moment = f"{record['time_ns']} ns"
    return f"{moment}, user {record.get('user')!r} on {host!r}"


def prefetched(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the chunks; a thread reads and decompresses the next one ahead."""
    with ThreadPoolExecutor(1, thread_name_prefix="hsmcore-audit-read") as thread:
        ahead = thread.submit(next, chunks, None)
        while (chunk := ahead.result()) is not None:
            ahead = thread.submit(next, chunks, None)
            yield chunk
