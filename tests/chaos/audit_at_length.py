"""The audit log at length: 2,000 tamperings, 200 and 500 kills, ten million records. `make audit-long`."""

from __future__ import annotations

import random
import resource
import time

import pytest
from tests.support.audit_kills import kill_again_and_again, kill_at_segment_ends
from tests.support.audit_tampering import World, tamper
from tests.support.audit_volume import BEGIN_NS, write_volume
from tests.support.signing_kills import kill_signers

from hsmcore.audit.check.prove import inclusion_proof
from hsmcore.audit.check.verify import verify
from hsmcore.audit.query import Query

pytestmark = [pytest.mark.slow("thousands of tamperings and kills"), pytest.mark.timeout(1800)]

RECORDS = 10_000_000
HOUR = 3600.0


def test_two_thousand_tamperings_are_found_and_located(tmp_path):
    world = World(tmp_path)
    for number in range(1000, 3000):
        tamper(world, tmp_path, number)


def test_two_hundred_kills_leave_a_log_that_verifies(tmp_path):
    kill_again_and_again(tmp_path / "audit.log", 200, seed=2)


def test_five_hundred_kills_at_the_ends_of_files_leave_logs_that_verify(tmp_path):
    assert kill_at_segment_ends(tmp_path, 500, seed=4) == 500


def test_two_hundred_kills_let_no_signature_out_unrecorded(world, tmp_path, capsys):
    out, records = kill_signers(tmp_path, world.config(maxCacheSize=1000), kills=200, seed=3)
    with capsys.disabled():
        print(f"\n200 kills: {out} signatures got out, {records} records")  # noqa: T201


def test_ten_million_records(tmp_path, capsys):
    """The times are printed, and asserted only by the order of magnitude: the machine may be busy."""
    layout = write_volume(tmp_path / "audit.log", RECORDS)
    report = verify(layout)
    assert report.ok, report.findings
    rate = RECORDS / report.seconds

    dice, proofs = random.Random(1), []
    for _ in range(50):
        begun = time.perf_counter()
        inclusion_proof(layout, dice.randrange(1, RECORDS + 1))
        proofs.append(time.perf_counter() - begun)
    proof = sorted(proofs)[len(proofs) // 2]

    start = BEGIN_NS / 1e9 + 10 * HOUR
    queries = {}
    for name, match in (("all", {}), ("logins", {"operation": "login"})):
        begun = time.perf_counter()
        found = sum(len(block) for block in Query(layout, start, start + HOUR, match).blocks())
        queries[name] = (found, time.perf_counter() - begun)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    with capsys.disabled():
        print(f"\nverify {rate:,.0f} records/s; proof {proof * 1e3:.1f} ms; hour {queries}; {memory} MiB")  # noqa: T201
    assert rate > 100_000
    assert proof < 0.5
    assert queries["all"][0] == pytest.approx(360_000, abs=2)
    assert max(seconds for _, seconds in queries.values()) < 10
