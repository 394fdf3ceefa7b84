"""What `hsmcore doctor` says of a fleet: its database, clocks, audit log and hosts."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from tests.integration.test_fleet_cli import BLOCKS, Site, hosts, row
from tests.support.postgres import cluster

from hsmcore.audit import AuditLog
from hsmcore.config import load
from hsmcore.doctor import fleet as doctor
from hsmcore.doctor.fleet import ASSUMPTION, check_fleet, clock_step

pytestmark = pytest.mark.integration
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def server():
    with cluster() as made:
        yield made


@pytest.fixture
def site(tmp_path, server, world, monkeypatch):
    monkeypatch.setattr(doctor, "CLOCK_SECONDS", 0.05)
    return Site(tmp_path, server, world)


def steps(site, name="config.json"):
    """The outcomes and texts of the checks, by name."""
    found = {}
    for step in check_fleet(load(site.folder / name)):
        found.setdefault(step.name, []).append(step)
    return found


def outcomes(site, name="config.json"):
    return {check: [step.outcome for step in found] for check, found in steps(site, name).items()}


def record(site, *positions):
    """Write an audit log as a signer of these positions does."""

    async def write():
        log = AuditLog(str(site.folder / "audit.log"))
        await log.open()
        for position in positions:
            log.record("sign", message=b"%d" % position, result="ok", domain=BLOCKS, position=position)
        await log.close()

    asyncio.run(write())


def test_without_a_fleet_there_is_nothing_to_check(site):
    assert steps(site, "file.json") == {}


def test_a_database_that_is_new_is_no_fault(site):
    assert outcomes(site) == {}


def test_all_is_well(site):
    row(site)
    hosts(site, "signer-1")
    found = steps(site)
    assert {name: [step.outcome for step in each] for name, each in found.items()} == {
        "fleet-clock-rate": ["ok"],
        "fleet-behind": ["ok"],
        "fleet-hosts": ["ok"],
    }
    assert ASSUMPTION in found["fleet-clock-rate"][0].found
    assert found["fleet-hosts"][0].data["hosts"] == ["signer-1"]


def test_where_each_host_signs_no_clock_is_compared(site):
    site.write("any.json", site.fleet(unordered="any"))
    row(site)
    hosts(site, "signer-1")
    assert outcomes(site, "any.json") == {"fleet-behind": ["ok"], "fleet-hosts": ["ok"]}


def test_a_preferred_host_that_the_fleet_does_not_have_is_named(site):
    site.write("prefer.json", site.fleet(prefer=["signer-2", "singer-3", "signer-1"]))
    row(site)
    hosts(site, "signer-1", "signer-2")
    found = steps(site, "prefer.json")["fleet-hosts"]
    [named] = [step for step in found if "fleet.prefer" in step.found]
    assert (named.outcome, "names singer-3, and" in named.found) == ("warn", True)


def test_a_database_that_does_not_answer_is_a_fault(site):
    site.write("gone.json", site.fleet(store={"url": "postgresql://u:the-password@127.0.0.1:1/gone"}))
    [step] = steps(site, "gone.json")["fleet-behind"]
    assert (step.outcome, "the-password" in step.model_dump_json()) == ("fail", False)


def test_what_the_database_lacks_of_the_log_is_a_fault(site):
    row(site)
    record(site, 1, 2, 3)
    [step] = steps(site)["fleet-behind"]
    assert (step.outcome, step.data["missing"]) == ("fail", 3)
    assert f"3 of {BLOCKS}" in step.found


def test_an_open_incident_is_a_fault(site):
    row(site, incident=1)
    hosts(site, "signer-1", "signer-2")
    [step] = steps(site)["fleet-behind"]
    assert (step.outcome, "waiting for signer-1, signer-2" in step.found) == ("fail", True)


def test_a_host_without_a_witness_is_warned(site):
    row(site)
    document = json.loads((site.folder / "config.json").read_text())
    manager = document.get("sequencer", document)["keyManager"]
    log = manager.pop("auditLogFile")
    (site.folder / "none.json").write_text(json.dumps(document))
    [step] = steps(site, "none.json")["fleet-behind"]
    assert (step.outcome, "there is no audit log" in step.found) == ("warn", True)
    manager |= {"auditLogFile": log, "audit": {"durability": "interval"}}
    (site.folder / "late.json").write_text(json.dumps(document))
    assert outcomes(site, "late.json")["fleet-behind"] == ["warn"]
    record(site, 1)
    site.folder.joinpath("audit.log").write_bytes(b"x" * 100)
    site.folder.joinpath("audit.log.d/segments/00000000000000000001.jsonl.zst").write_bytes(b"no frames")
    [step] = steps(site)["fleet-behind"]
    assert (step.outcome, "cannot be read" in step.found) == ("warn", True)


@pytest.mark.parametrize(
    ("instance", "state", "outcome"),
    [
        ("signer-1:4194305:ab12", "follower", "fail"),  # larger than any process id
        ("signer-1:4194305:ab12", "closed", "ok"),
        ("signer-1:OWN:ab12", "follower", "ok"),
        ("nonsense", "follower", "ok"),
    ],
)
def test_another_machine_with_this_host_s_name_is_a_fault(site, instance, state, outcome):
    row(site)
    now = "(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint"
    instance = instance.replace("OWN", str(os.getpid()))
    site.execute(f"INSERT INTO fleet_host VALUES ('signer-1', '{instance}', {now}, '{state}', 0, 0, '')")  # noqa: S608
    assert outcomes(site)["fleet-hosts"] == [outcome]


def test_a_host_that_is_away_is_named(site):
    row(site)
    hosts(site, "signer-1", "signer-2")
    site.execute("INSERT INTO fleet_host VALUES (E'evil\\x1b[2J', '', 0, '', 0, 0, '')")
    site.execute("INSERT INTO fleet_host VALUES ('old', '', 0, '', 0, 1, '')")
    found = steps(site)["fleet-hosts"]
    assert [step.outcome for step in found] == ["warn", "warn", "ok"]
    assert all("\x1b" not in step.model_dump_json() and "\x1b" not in step.found for step in found)
    assert ["signer-2" in step.found for step in found][:2] == [False, True]


@pytest.mark.parametrize(
    ("passed", "theirs", "unsure", "outcome"),
    [
        (SECOND, SECOND, 0, "ok"),
        (SECOND, int(1.04 * SECOND), 0, "ok"),
        (SECOND, int(1.06 * SECOND), 0, "fail"),
        (SECOND, int(0.94 * SECOND), 0, "fail"),
        (SECOND, int(1.06 * SECOND), SECOND // 50, "ok"),
        (SECOND, int(1.5 * SECOND), SECOND // 50, "fail"),
        (SECOND, -600 * SECOND, 0, "fail"),
    ],
)
def test_a_clock_that_runs_apart_is_a_fault(passed, theirs, unsure, outcome):
    step = clock_step(passed, theirs, unsure)
    assert (step.outcome, ASSUMPTION in step.found + step.hint) == (outcome, True)


def test_a_hostile_database_is_a_fault(site):
    row(site)
    site.execute("UPDATE fleet SET incident = -1")
    assert outcomes(site) == {"fleet-behind": ["fail"]}
