"""Verification finds and locates every change of a log."""

from __future__ import annotations

import pytest
from tests.support.audit_logs import copy_of
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


@pytest.mark.parametrize("part", range(4))
def test_tampering_is_found_and_located(world, tmp_path, part):
    for number in range(part, FEW, 4):
        tamper(world, tmp_path, number)
