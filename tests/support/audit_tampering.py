"""Tampering with an audit log at random, and judging whether verification found it where it was."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from tests.support.audit_logs import copy_of, keys_of, line_places, put_text, settings, text_of, write_log

from hsmcore.audit import AuditLog, record
from hsmcore.audit.check.adopt import adopt
from hsmcore.audit.check.findings import Report
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.recover import rebuild
from hsmcore.audit.segment import segments
from hsmcore.errors import AuditUnavailable

RECORDS = 1500


class World:
    """A log, an older copy of it, and what the auditor knows: the key and the newest checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "log" / "audit.log"
        layout = asyncio.run(write_log(path, RECORDS // 2))
        self.older = copy_of(layout, folder / "older")
        self.layout = asyncio.run(write_log(path, RECORDS - RECORDS // 2, begin=RECORDS // 2))
        self.trust = Trust(keys_of(self.layout), against=[self.layout.checkpoint.read_bytes()], retain_days=30)
        self.places = line_places(self.layout)

    def verify(self, layout: Layout, *, kept: bool = True) -> Report:
        """Verify a copy; `kept`: the auditor has kept a checkpoint."""
        return verify(layout, self.trust if kept else replace(self.trust, against=()))


def flipped(data: bytes, dice: random.Random) -> bytes:
    place = dice.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]


# ---- what may be done to records: (lines, place, dice) -> lines ----------------------------------------------------


def flip(lines: list[bytes], at: int, dice: random.Random) -> list[bytes]:
    return [*lines[:at], flipped(lines[at], dice), *lines[at + 1 :]]


def delete(lines: list[bytes], at: int, dice: random.Random) -> list[bytes]:
    return lines[:at] + lines[at + dice.choice([1, 1, 5]) :]


def swap(lines: list[bytes], at: int, _dice: random.Random) -> list[bytes]:
    other = at + 1 if at + 1 < len(lines) else at - 1
    lines = lines[:]
    lines[at], lines[other] = lines[other], lines[at]
    return lines


def insert(lines: list[bytes], at: int, dice: random.Random) -> list[bytes]:
    number = lines[at].partition(b":")[2].partition(b",")[0]
    new = dice.choice(
        [
            b"",
            b"no record",
            dice.choice(lines),
            lines[at].replace(b'"result":"ok"', b'"result":"no"'),
            b'{"seq":%s,"time_ns":1,"operation":"mint"}' % number,
        ]
    )
    return [*lines[:at], new, *lines[at:]]


def edit(lines: list[bytes], at: int, _dice: random.Random) -> list[bytes]:
    return [*lines[:at], lines[at].replace(b'"result":"ok"', b'"result":"error"'), *lines[at + 1 :]]


ON_LINES = (flip, delete, swap, insert, edit)


def change_lines(world: World, copy: Layout, dice: random.Random) -> int:
    """Tamper with the records; returns the sequence number of the first that is concerned."""
    seq = dice.randrange(1, RECORDS + 1)
    segment_of, at = world.places[seq - 1]
    segment = next(s for s in segments(copy) if s.path.name == segment_of.path.name)
    lines = text_of(segment).splitlines()
    changed = dice.choice(ON_LINES)(lines, at, dice)
    put_text(copy, segment, b"".join(line + b"\n" for line in changed))
    if dice.random() < 0.3:  # by an attacker that makes tiles that fit
        shutil.rmtree(copy.folder / "tile")
        try:
            rebuild(copy, RECORDS)
        except Exception:  # noqa: BLE001  # the lines do not make a tree any more
            return seq
    return seq


def cut_off(world: World, copy: Layout, dice: random.Random) -> int:
    """Cut the log off somewhere; returns the first record that is concerned."""
    seq = dice.randrange(1, RECORDS + 1)
    segment_of, at = world.places[seq - 1]
    for segment in segments(copy):
        if segment.first > segment_of.first:
            segment.path.write_bytes(b"") if segment.path == copy.log else segment.path.unlink()
        elif segment.path.name == segment_of.path.name:
            lines = text_of(segment).splitlines(keepends=True)
            part = lines[at][: dice.choice([0, 0, 1, 20, len(lines[at]) - 1])]
            put_text(copy, segment, b"".join(lines[:at]) + part)
    return seq


def replay(world: World, copy: Layout, _dice: random.Random) -> int:
    """Put an older copy, with its own checkpoint, in the place of the log."""
    shutil.rmtree(copy.log.parent)
    copy_of(world.older, copy.log.parent)
    return RECORDS // 2 + 1


def change_file(_world: World, copy: Layout, dice: random.Random) -> None:
    """Flip a bit in any file that is not only there by the way."""
    files = sorted(path for path in copy.folder.rglob("*") if path.is_file() and path.name != "lock")
    path = dice.choice([path for path in files if path.stat().st_size])
    path.write_bytes(flipped(path.read_bytes(), dice))


def remove_file(_world: World, copy: Layout, dice: random.Random) -> None:
    """Delete any file but those that the standard lets go."""
    files = sorted(path for path in copy.folder.rglob("*") if path.is_file() and path.name != "lock")
    needed = [path for path in files if ".p" not in path.parent.suffix and path.stat().st_size]
    dice.choice(needed).unlink()


def forge_prune(world: World, copy: Layout, dice: random.Random) -> int:
    """Delete the oldest segments and say behind the last checkpoint, as the log itself would, that they were pruned."""
    *full, _newest = segments(copy)
    gone = dice.randrange(1, len(full) + 1)
    last = segments(copy)[gone].first - 1
    for segment in full[:gone]:
        segment.path.unlink()
        if dice.random() < 0.5:
            copy.index(segment.first).unlink()
    with copy.log.open("ab") as file:
        file.write(prune_line(world.layout, RECORDS + 1, last))
    return dice.randrange(1, last + 1)


def seal_prune(world: World, copy: Layout, dice: random.Random) -> int:
    """Delete the oldest segments, none of them old enough, and have the log itself say and seal that they were
    pruned, as an attacker in the process can."""

    async def seal(last: int) -> None:
        log = AuditLog(str(copy.log), settings())
        await log.open()
        seq = log.record("audit-prune", first=1, last=last, records=last)
        log._open._own_prunes[seq] = last
        await log.close()

    *full, _newest = segments(copy)
    gone = dice.randrange(1, len(full) + 1)
    last = segments(copy)[gone].first - 1
    shutil.copy(world.layout.default_key, copy.log.parent)
    asyncio.run(seal(last))
    for segment in full[:gone]:
        segment.path.unlink()
        copy.index(segment.first).unlink()
    return dice.randrange(1, last + 1)


def drop_checkpoints(world: World, copy: Layout, dice: random.Random) -> None:
    """Change a record and delete all checkpoints, perhaps also the tiles; a start refuses that."""
    changed = change_record(world, copy, dice)
    for path in (copy.checkpoint, copy.history):
        path.unlink()
    if dice.random() < 0.5:
        shutil.rmtree(copy.tiles)
    before = copy.log.read_bytes()
    with pytest.raises(AuditUnavailable, match="its checkpoints are missing"):
        asyncio.run(write_log(copy.log, 1))
    assert copy.log.read_bytes() == before, f"record {changed} was sealed"


def have_adopted(world: World, copy: Layout, dice: random.Random) -> int:
    """Change a record, delete the checkpoints, and have an operator and the next start adopt the log and sign it."""
    seq = change_record(world, copy, dice)
    for path in (copy.checkpoint, copy.history):
        path.unlink()
    adopt(copy)
    shutil.copy(world.layout.default_key, copy.log.parent)
    asyncio.run(write_log(copy.log, 1))
    return seq


def change_record(world: World, copy: Layout, dice: random.Random) -> int:
    """Change a record into another one; returns its sequence number."""
    seq = dice.randrange(1, RECORDS + 1)
    segment_of, at = world.places[seq - 1]
    segment = next(s for s in segments(copy) if s.path.name == segment_of.path.name)
    changed = edit(text_of(segment).splitlines(), at, dice)
    put_text(copy, segment, b"".join(line + b"\n" for line in changed))
    return seq


def prune_line(layout: Layout, seq: int, last: int) -> bytes:
    """What retention would record as number `seq`."""
    [newest] = layout.log.read_bytes().splitlines()[-1:]
    origin = {name: value for name, value in orjson.loads(newest).items() if name in ("user", "source")}
    return record.line(seq, time.time_ns(), "audit-prune", {"first": 1, "last": last, "records": last}, origin)


KINDS = (
    *(change_lines, change_lines, change_lines, cut_off, change_file, remove_file, replay),
    *(forge_prune, seal_prune, drop_checkpoints, have_adopted),
)


def tamper(world: World, folder: Path, number: int) -> None:
    dice = random.Random(number)
    copy = copy_of(world.layout, folder / "copy")
    before = [text_of(segment) for segment in segments(copy)]
    kind = KINDS[number % len(KINDS)]
    seq = kind(world, copy, dice)
    # A kept checkpoint alone would reveal a log that was signed again.
    report = world.verify(copy, kept=kind is not have_adopted)
    if kind is change_file and report.ok:
        # Zstandard's format has bits that mean nothing.
        assert [text_of(segment) for segment in segments(copy)] == before
    else:
        assert not report.ok, f"tampering {number} ({kind.__name__}) was not found"
    if seq is not None:
        near = [
            finding
            for finding in report.findings
            if finding.first is not None and finding.first - 1 <= seq <= (finding.last or finding.first) + 1
        ]
        assert near, f"tampering {number} ({kind.__name__}) of record {seq} was not located: {report.findings}"
    shutil.rmtree(folder / "copy")
