"""Readers of a log in step with its writer: between any two calls by which a reader asks the kernel, the writer goes on
by some of its steps, which create, fill, rename, compress and remove files. No answer may lack a record that was there
when its reader began, or have one twice."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count, islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from tests.support.size import FULL

from hsmcore.audit.backwards import newest_first
from hsmcore.audit.check.overview import overview
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query, find
from hsmcore.audit.segment import compress, segments
from hsmcore.audit.shipping.follow import Follower, last_seq
from hsmcore.cli.app import run

pytestmark = pytest.mark.integration

ASKS: Final = {"access", "fstat", "listdir", "open", "pread", "read", "scandir", "stat"}
"""The C functions by which Python reads files and folders."""
PER_FILE: Final = 2
STEPS: Final = PER_FILE + 5
"""Of the writer, from one file to the next."""
WINDOW: Final = 2 * PER_FILE
ALL: Final = 1 << 30
MOST_POINTS: Final = 150
"""Points of a reader at which the writer goes on: then it rests, for a reader that would follow it for ever."""
EACH: Final = 1 if FULL else 18
"""Of how many schedules one is tried."""


def line(seq: int) -> bytes:
    return b'{"seq":%d,"time_ns":%d,"operation":"sign","position":1}\n' % (seq, seq)


def text(first: int) -> bytes:
    return b"".join(map(line, range(first, first + PER_FILE)))


@cache
def compressed(first: int) -> bytes:
    """Return what `compress` makes of a full file."""
    with TemporaryDirectory() as folder:
        layout = Layout(Path(folder) / "audit.log")
        layout.segments.mkdir(parents=True)
        layout.archived(first, compressed=False).write_bytes(text(first))
        compress(layout, first, [len(text(first))])
        return layout.archived(first, compressed=True).read_bytes()


class Writer:
    """A log, and what its writer does to its files. `kept`: the newest record."""

    def __init__(self, folder: Path, begun: int) -> None:
        """`begun`: steps that are done."""
        shutil.rmtree(folder, ignore_errors=True)
        self.layout, self.kept = Layout(folder / "audit.log"), 0
        self.layout.segments.mkdir(parents=True)
        self._steps = self._all()
        self.go(begun)

    def go(self, steps: int) -> None:
        for _ in islice(self._steps, steps):
            pass

    def _all(self) -> Iterator[None]:
        """Yield after each step: those of journal.c for the newest file, those of `compress` for the one before."""
        log, archived = self.layout.log, self.layout.archived
        for first in count(1, PER_FILE):
            log.touch()
            yield
            for seq in range(first, first + PER_FILE):
                with log.open("ab") as file:
                    file.write(line(seq))
                self.kept = seq
                yield
            if first > 1:
                beside, before = self.layout.segments / "new", first - PER_FILE
                beside.write_bytes(compressed(before))
                yield
                beside.rename(archived(before, compressed=True))
                yield
                archived(before, compressed=False).unlink()
                yield
            log.rename(archived(first, compressed=False))
            yield


@contextmanager
def stepping(writer: Writer, pace: Callable[[int], int]) -> Iterator[None]:
    """Have the writer do `pace(n)` steps before the n-th call by which this thread reads a file or folder."""
    points = count()

    def profile(_frame: object, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in ASKS and (point := next(points)) < MOST_POINTS:
            writer.go(pace(point))

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


MODES: Final[tuple[Callable[[list[str], list[str]], list[str]], ...]] = (
    lambda _gone, _new: [],
    lambda gone, new: [*gone, *new],
    lambda gone, _new: gone,
    lambda _gone, new: new[-1:],
)
"""Which names a listing has of those that came or went while it was made: POSIX leaves that open."""


def blocks(layout: Layout, _: int) -> list[int]:
    return [record["seq"] for block in Query(layout, None, None, None).blocks() for record in block]


def latest(layout: Layout, _: int) -> list[int]:
    return [record["seq"] for record in Query(layout, None, None, None).latest(WINDOW)]


def backwards(layout: Layout, _: int) -> list[int]:
    return [record["seq"] for block in newest_first(layout, b'"position":', ALL) for record in block][::-1]


def found(layout: Layout, kept: int) -> list[int]:
    return [seq for seq in (1, kept) if find(layout, seq) == line(seq)[:-1]]


def shown(layout: Layout, _: int) -> list[int]:
    summary = overview(layout)
    return [summary["firstSeq"], summary["lastSeq"]]


def followed(layout: Layout, kept: int) -> list[int]:
    follower = Follower(layout, 0)
    try:
        lines: list[bytes] = []
        while taken := follower.take(kept, ALL, ALL):
            lines += taken
        assert follower.missing == []
        return [seq for seq in range(1, kept + 1) if line(seq)[:-1] in lines]
    finally:
        follower.close()


def newest(layout: Layout, _: int) -> list[int]:
    return [last_seq(layout)]


def is_right(reader: Callable[..., list[int]], seqs: list[int], kept: int) -> bool:
    """Return whether an answer is right for a log that had `kept` records when it was asked for."""
    last = max(seqs, default=0)
    if reader in (found, shown):  # they say where the records begin and end
        return seqs == [1, last] and last >= kept
    first = {latest: max(last - WINDOW + 1, 1), newest: last}.get(reader, 1)
    return seqs == list(range(first, last + 1)) and last >= kept


def schedules() -> Iterator[tuple[int, Callable[[int], int]]]:
    """Yield the steps that the writer has done when the reader begins, and those that it does at each point of the
    reader: some at one point, and none or one at each that follows; or some at each point that is a multiple."""
    begun = range(STEPS + PER_FILE + 2, 2 * STEPS + PER_FILE + 2)
    for start, at, steps, then in product(begun, range(30), range(1, 2 * STEPS), (0, 1)):
        yield start, lambda point, at=at, steps=steps, then=then: steps if point == at else then if point > at else 0
    for start, every, steps in product(begun, range(1, 12), range(1, STEPS)):
        yield start, lambda point, every=every, steps=steps: 0 if point % every else steps


@pytest.mark.parametrize("reader", [blocks, latest, backwards, found, shown, followed, newest])
def test_no_step_of_the_writer_makes_an_answer_wrong(tmp_path, monkeypatch, reader):
    real, wrong, mode = os.listdir, [], MODES[0]

    def listed(path: str) -> list[str]:
        before, after = real(path), real(path)
        gone, new = (sorted({*one} - {*other}) for one, other in ((before, after), (after, before)))
        return [*(name for name in before if name in after), *mode(gone, new)]

    monkeypatch.setattr("os.listdir", listed)
    for number, (start, pace) in enumerate(islice(schedules(), 0, None, EACH)):
        mode, writer = MODES[number % len(MODES)], Writer(tmp_path / "log", start)
        kept = writer.kept
        with stepping(writer, pace):
            answer = reader(writer.layout, kept)
        if not is_right(reader, answer, kept):
            wrong.append((number, kept, answer))
    assert wrong == []


def test_a_newest_file_without_a_record_stays_empty_while_it_is_read(tmp_path):
    """The writer is one file further when it is opened: that one is empty, too, and has a record before it is read."""
    writer = Writer(tmp_path, 2 * STEPS - 2)
    listed = segments(writer.layout)[-1]
    writer.go(STEPS)
    assert (listed.first, writer.layout.log.read_bytes()) == (0, b"")
    with listed.opened() as file:
        writer.go(1)
        assert (file.read(), writer.layout.log.read_bytes()) == (b"", line(writer.kept))


def test_a_command_line_may_name_a_log_in_the_moment_of_a_rotation(tmp_path, monkeypatch, capsys):
    """`audit.log` was there for the first look of the command line's parser, and renamed at the second."""
    layout = Writer(tmp_path, 2 * STEPS + 2).layout
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path) != layout.log)
    assert run(["audit", "query", "--limit", "3", "--folder", str(layout.log), "--json"]) == 0
    assert [json.loads(shown)["seq"] for shown in capsys.readouterr().out.splitlines()] == [4, 5, 6]
    assert run(["audit", "verify", str(layout.log), "--json"]) == 1  # it has no checkpoint
    assert json.loads(capsys.readouterr().out)["ok"] is False
