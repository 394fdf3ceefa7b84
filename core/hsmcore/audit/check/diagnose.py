"""Finds where a log was changed: compares its lines with the leaf hashes that the checkpoint's signature covers.

A tile is genuine if the tile above holds its hash, up to the tiles at the right edge, which together give the signed
root. A line is genuine if it hashes to the leaf of its own sequence number.
"""

from __future__ import annotations

from collections.abc import Iterator

from hsmcore._native import MerkleTree
from hsmcore.audit.check.findings import Finding
from hsmcore.audit.genuine import Genuine
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import Segment, SegmentError, seq_of

MAX_FINDINGS = 100


def _lines(
    ordered: list[Segment], start: tuple[int, int], broken: list[Finding]
) -> Iterator[tuple[Segment, int, bytes]]:
    number, offset = start
    for segment in ordered[number:]:
        try:
            for chunk in segment.chunks(offset):
                for line in chunk.splitlines(keepends=True):
                    yield segment, offset, line
                    offset += len(line)
        except SegmentError as error:
            broken.append(Finding("unreadable", str(error), where=str(error.path)))
        offset = 0


class _Walk:
    """The walk along the lines. `next`: the record that comes next; `_strange`: lines since the last genuine one."""

    def __init__(self, genuine: Genuine, size: int, first: int) -> None:
        self.genuine, self.size, self.next = genuine, size, first
        self.findings: list[Finding] = []
        self.gaps: list[tuple[int, int]] = []
        self._strange: list[tuple[str, int]] = []
        self._hasher = MerkleTree()

    def take(self, segment: Segment, offset: int, line: bytes) -> None:
        seq = seq_of(line)
        leaf = self.genuine.leaf(seq)
        body = line.removesuffix(b"\n")
        where = f"{segment.path} at byte {offset}"
        genuine = seq == self.next if leaf is None and 1 <= seq <= self.size else self._hasher.leaf(body) == leaf
        if genuine and seq >= self.next:
            self._pass(seq)
            self.next = seq + 1
        elif genuine:
            self._settle()
            self._earlier(seq, where)
        elif seq <= self.size or self.next <= self.size:
            self._strange.append((where, seq))

    def _pass(self, seq: int) -> None:
        """Explain the gap before a genuine record `seq`: lines in it were changed or inserted, or records were
        removed."""
        gap = seq - self.next
        for index, (where, claimed) in enumerate(self._strange):
            if index < gap:
                record = self.next + index
                self.findings.append(Finding("changed", f"record {record} was changed", record, record, where))
            else:
                self.findings.append(_inserted(where, claimed, self.next + gap))
        if gap > len(self._strange):
            self.gaps.append((self.next + len(self._strange), seq - 1))
        self._strange.clear()

    def _settle(self) -> None:
        for where, claimed in self._strange:
            self.findings.append(_inserted(where, claimed, self.next))
        self._strange.clear()

    def _earlier(self, seq: int, where: str) -> None:
        for index, (first, last) in enumerate(self.gaps):
            if first <= seq <= last:
                parts = [(first, seq - 1), (seq + 1, last)]
                self.gaps[index : index + 1] = [part for part in parts if part[0] <= part[1]]
                self.findings.append(
                    Finding("reordered", f"record {seq} stands after record {self.next - 1}", seq, seq, where)
                )
                return
        text = f"a copy of record {seq} was inserted before record {self.next}"
        self.findings.append(Finding("inserted", text, self.next, self.next, where))

    def end(self) -> list[Finding]:
        gap = self.size + 1 - self.next
        if gap > 0:
            left = gap - len(self._strange)
            self._pass(self.size + 1)
            if left > 0:
                self.gaps.pop()
                first = self.size + 1 - left
                text = f"records {first} to {self.size} are cut off at the end"
                self.findings.append(Finding("truncated", text, first, self.size))
        for first, last in self.gaps:
            text = f"record {first} was removed" if first == last else f"records {first} to {last} were removed"
            self.findings.append(Finding("removed", text, first, last))
        return self.findings


def _inserted(where: str, claimed: int, before: int) -> Finding:
    what = f"a line that calls itself record {claimed}" if claimed else "a line that is no record"
    return Finding("inserted", f"{what} was inserted before record {before}", before, before, where)


def diagnose(
    layout: Layout, ordered: list[Segment], size: int, root: bytes, start: tuple[int, int], first: int
) -> list[Finding]:
    """Return what was done to the first `size` records, whose root is `root`; empty if that cannot be said. The records
    before `first`, which begins at `start` (index in `ordered`, byte), are genuine. Raises OSError."""
    genuine = Genuine(layout, size, root)
    if not genuine.any:
        return []
    broken: list[Finding] = []
    walk = _Walk(genuine, size, first)
    for segment, offset, line in _lines(ordered, start, broken):
        walk.take(segment, offset, line)
        if len(walk.findings) > MAX_FINDINGS or (walk.next > size and not walk.gaps):
            break
    return [*broken, *walk.end()][:MAX_FINDINGS]
