"""Verification finds and locates every change of a log."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from tests.support.audit_logs import copy_of, keys_of, write_log
from tests.support.audit_tampering import RECORDS, World, tamper
from tests.support.size import share

from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify

FEW = share(132)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("audit"))


def test_the_log_itself_is_good(world, tmp_path):
    report = world.verify(copy_of(world.layout, tmp_path / "copy"))
    assert report.ok, report.findings
    assert (report.records, report.unsealed, report.own_keys) == (RECORDS, 0, False)
    older = verify(world.older, Trust(keys=world.trust.keys))
    assert older.ok, older.findings
    found = world.verify(world.older).findings  # the auditor has a checkpoint of the whole
    assert [(one.kind, one.first, one.last) for one in found] == [("older", RECORDS // 2 + 1, RECORDS)]


@pytest.mark.parametrize("part", range(4))
def test_tampering_is_found_and_located(world, tmp_path, part):
    for number in range(part, FEW, 4):
        tamper(world, tmp_path, number)


def test_without_tiles_a_change_lies_between_the_checkpoints_around_it(tmp_path):
    """Also one of a record that a checkpoint has for itself."""
    ends, size = (1, 4, 5, 9), 0
    for end in ends:
        layout = asyncio.run(write_log(tmp_path / "log" / "audit.log", end - size, begin=size))
        size = end
    copy = copy_of(layout, tmp_path / "copy")
    shutil.rmtree(copy.tiles)
    lines = copy.log.read_bytes().splitlines(keepends=True)
    for seq, line in enumerate(lines, 1):
        changed = line.replace(b'"result":"ok"', b'"result":"no"')
        copy.log.write_bytes(b"".join([*lines[: seq - 1], changed, *lines[seq:]]))
        last = next(end for end in ends if end >= seq)
        first = max((end for end in ends if end < seq), default=0) + 1
        found = verify(copy, Trust(keys_of(layout))).findings
        assert [(one.kind, one.first, one.last) for one in found] == [("changed", first, last)]
