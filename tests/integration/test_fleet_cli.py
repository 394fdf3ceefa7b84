"""`hsmcore fleet`: each command on a database of its own, by itself and beside hosts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re

import pytest
from tests.support.commands import commands
from tests.support.postgres import cluster

from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.config import load
from hsmcore.fleet import rows
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.state import Store

pytestmark = pytest.mark.integration
A, B = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))
BLOCKS = "rollup/block"
ZERO = "00" * 32


@pytest.fixture(scope="module")
def server():
    with cluster() as made:
        yield made


class Site:
    """A configuration of a fleet, and its database."""

    def __init__(self, folder, server, token):
        self.folder, self.server, self.token = folder, server, token
        self.database = server.database().rpartition("/")[2]
        self.write("config.json", self.fleet())
        self.write("file.json", stateFile=str(folder / "state.db"))

    def fleet(self, **more):
        url = self.server.url(self.database)
        return {"store": {"url": url}, "name": "sequencer", "host": "signer-1", "singleNode": True} | more

    def write(self, name, fleet=None, **more):
        policy = {"kinds": ["block"], "domain": "rollup"}
        log = str(self.folder / "audit.log")
        document = self.token.config(policy=policy, auditLogFile=log, **({"fleet": fleet} if fleet else {}), **more)
        (self.folder / name).write_text(json.dumps(document))

    def on_store(self, work, config="config.json"):
        """Run `work` with the store."""

        async def run():
            rules = load(self.folder / config)
            store = await Store.open(rules.key_manager.state_place, rules.state_secret)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def execute(self, statement):
        """Change the database beside hsmcore."""
        self.on_store(lambda store: store.run(lambda on: on.exec_driver_sql(statement)))

    def bind(self, *places, config="config.json"):
        """Bind positions."""

        async def work(store):
            mark = Watermark(store, "signer-1:1")
            for position, digest in places:
                await mark.require(PayloadPlace(BLOCKS, position, digest))
            await mark.close()

        self.on_store(work, config)

    def commands(self):
        """The records of commands, by name."""
        match = {"operation": "command"}
        found = [one for block in Query(Layout(self.folder / "audit.log"), None, None, match).blocks() for one in block]
        return {record["command"]: record for record in found}


@pytest.fixture
def site(tmp_path, server, world):
    return Site(tmp_path, server, world)


@pytest.fixture
def command(site, capfdbinary):
    with commands(site.folder, capfdbinary, "fleet") as command:
        yield command


def hosts(site, *names):
    for name in names:
        site.execute(f"INSERT INTO fleet_host VALUES ('{name}', '{name}:7:ab', 1, 'follower', 0, 0, '')")  # noqa: S608


def row(site, host="signer-2", incident=0):
    """Have a host hold the epoch, with nobody there who renews it."""
    values = f"3, '{host}:7:ab', '{host}', 5, 9, 0, '1', '4711', {incident}, 'by hand'"
    site.execute(f"INSERT INTO fleet VALUES ('sequencer', {values})")  # noqa: S608


def test_an_unused_database(command):
    code, found, _ = command("status")
    assert code == 0
    assert (found["epoch"], found["holder"], found["hosts"], found["incident"]["open"]) == (0, None, [], False)
    code, text, err = command("status", plain=True)
    assert (code, "none is open" in text) == (0, True)
    assert "in plain text" not in err + text  # the URL of the configuration is; doctor says so


def test_status_shows_holder_hosts_positions_and_incident(command, site):
    site.bind((4, A), (7, B))
    row(site)
    hosts(site, "signer-1", "signer-2")
    code, found, _ = command("status")
    assert code == 0
    assert (found["epoch"], found["holder"], found["renewed"], found["renewals"]) == (3, "signer-2:7:ab", False, 9)
    assert found["unordered"] == "lease"
    assert [host["name"] for host in found["hosts"]] == ["signer-1", "signer-2"]
    assert [(each["domain"], each["floor"], each["highest"]) for each in found["domains"]] == [(BLOCKS, -1, 7)]
    site.execute("UPDATE fleet SET incident = 1")
    site.execute("UPDATE fleet_host SET note = E'\\x1b[2J' WHERE name = 'signer-2'")
    code, found, _ = command("status")
    assert (code, found["incident"]) == (0, {"number": 1, "open": True, "waiting": ["signer-1", "signer-2"]})
    code, text, _ = command("status", plain=True)
    assert (code, "incident 1 is open: waiting for signer-1, signer-2" in text) == (0, True)
    assert "\x1b" not in text
    assert re.search(r"^unordered payloads +lease$", text, re.MULTILINE)
    site.execute("UPDATE fleet SET epoch = -4")
    assert command("status")[0] == 1


@pytest.mark.parametrize("verb", ["claim", "release", "drain"])
def test_an_order_waits_for_its_host(command, site, verb):
    row(site, "signer-2" if verb == "claim" else "signer-1")
    code, _, err = command(verb)
    assert (code, "the fleet has no host 'signer-1'" in err) == (2, True)
    hosts(site, "signer-1", "signer-2")
    code, found, _ = command(verb, "--wait", "0", "--reason", "a test")
    assert (code, found["host"], found["followed"]) == (0, "signer-1", None)
    assert command("status")[1]["orders"] == [{"host": "signer-1", "order": verb, "reason": "a test"}]
    code, found, _ = command(verb, "--wait", "0.1", plain=True)
    assert code == 1  # nobody follows
    code, _, _ = command(verb, "signer-2", "--wait", "0")
    assert code == 0
    assert list(orders_of(site, "signer-1")) == [verb]
    assert site.commands()[f"fleet {verb}"]["hostname"] == "signer-2"


def test_a_drain_is_withdrawn(command, site):
    row(site)
    hosts(site, "signer-1")
    assert command("drain", "--wait", "0")[0] == 0
    assert command("drain", "--wait", "5")[1]["followed"] is True  # it does not hold the epoch
    code, found, _ = command("drain", "--off")
    assert (code, found["withdrawn"]) == (0, True)
    assert command("status")[1]["orders"] == []


def orders_of(site, host):
    """What a host finds with a look."""
    seeing = rows.seeing("sequencer", host)
    found = site.on_store(lambda store: store.exchange([seeing], lambda answers: (answers[0], [])))
    return rows.seen(found).orders


def test_a_claim_by_force_has_a_reason(command, site):
    row(site)
    hosts(site, "signer-1")
    assert command("claim", "--force")[0] == 2
    assert command("claim", "--wait", "0", "--force", "--reason", "x" * 200)[0] == 0
    assert orders_of(site, "signer-1") == {"seize": "x" * 200}


def test_an_order_is_another_one_for_each_host_and_withdrawn_alone(command, site):
    row(site)
    hosts(site, "signer-1", "signer-2")
    assert command("claim", "--wait", "0", "--reason", "a")[0] == 0
    assert command("drain", "--wait", "0")[0] == 0
    assert command("drain", "signer-2", "--wait", "0", "--reason", "b")[0] == 0
    assert orders_of(site, "signer-1") == {"claim": "a", "drain": ""}
    assert command("drain", "--off")[0] == 0
    assert (orders_of(site, "signer-1"), orders_of(site, "signer-2")) == ({"claim": "a"}, {"drain": "b"})


def test_positions_that_are_no_positions_are_refused(command, site):
    row(site, incident=2)
    hosts(site, "signer-1")
    for wrong in ("block", "=3", "block=", "block=-1", "block=1.5", f"block={1 << 63}", "block=" + "9" * 30, "b=٣"):
        code, _, err = command("reconcile", "--reason", "x", "--at-least", wrong)
        assert (code, "DOMAIN=POSITION" in err) == (2, True), wrong


def test_an_incident_is_closed_without_the_hosts_that_are_gone(command, site):
    site.bind((4, A), (7, B))
    row(site, incident=2)
    hosts(site, "signer-1", "signer-2")
    site.execute("UPDATE fleet_host SET incident = 2 WHERE name = 'signer-1'")
    assert command("reconcile")[0] == 2  # without a reason
    code, found, _ = command("reconcile", "--reason", "it burned", "--at-least", f"{BLOCKS}=9")
    assert (code, found["retired"], found["floors"]) == (0, ["signer-2"], {BLOCKS: 9})
    code, found, _ = command("status")
    assert (code, found["incident"]["open"], found["domains"][0]["floor"]) == (0, False, 9)
    assert [(host["name"], host["retired"], host["note"]) for host in found["hosts"]] == [
        ("signer-1", False, ""),
        ("signer-2", True, "it burned"),
    ]
    code, _, err = command("reconcile", "--reason", "again")
    assert (code, "no incident" in err) == (1, True)
    assert site.commands()["fleet reconcile"]["reason"] == "again"


def test_a_hold_prints_its_mark_and_ends_with_it(command, site):
    assert command("hold")[0] == 2  # without a reason
    assert command("resume", "--reason", "x")[0] == 1  # nothing is held
    code, found, _ = command("hold", "--reason", "PostgreSQL 17.2")
    assert (code, found["held"], found["mark"][:2]) == (0, "PostgreSQL 17.2", "0-")
    code, shown, _ = command("status")
    assert (code, shown["held"], shown["mark"]) == (0, "PostgreSQL 17.2", found["mark"])
    code, text, _ = command("status", plain=True)
    assert (code, "PostgreSQL 17.2" in text) == (0, True)
    code, _, err = command("resume", "0-0123456789abcdef", "--reason", "it is there")
    assert (code, "does not have this mark" in err) == (1, True)
    code, done, _ = command("resume", found["mark"], "--reason", "it is there")
    assert (code, done) == (0, {"incident": 0, "reason": "it is there"})
    assert command("status")[1]["held"] is None
    held, resumed = (site.commands()[f"fleet {verb}"] for verb in ("hold", "resume"))
    assert (held["mark"], resumed["mark"], resumed["result"]) == (found["mark"], found["mark"], "ok")


def test_a_database_that_may_have_lost_something_is_not_held(command, site):
    row(site)  # of another database
    code, _, err = command("hold", "--reason", "x")
    assert (code, "another one" in err) == (1, True)
    hosts(site, "signer-1")
    site.execute("UPDATE fleet SET incident = 1")
    code, _, err = command("hold", "--reason", "x")
    assert (code, "incident 1 is open" in err) == (1, True)


def test_status_names_the_hosts_that_a_loss_would_wait_for(command, site):
    row(site)
    hosts(site, "signer-1", "signer-2", "signer-3")
    now = "(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint + 3600000000000"
    site.execute(f"UPDATE fleet_host SET seen_ns = {now} WHERE name <> 'signer-3'")  # noqa: S608  # made here
    site.execute("UPDATE fleet_host SET state = 'closed' WHERE name = 'signer-2'")
    code, found, _ = command("status")
    assert (code, found["lossWaitsFor"]) == (0, ["signer-2", "signer-3"])
    _, text, _ = command("status", plain=True)
    assert "a loss now would wait for signer-2, signer-3" in " ".join(text.split())


def test_a_host_is_retired_after_scaling_down(command, site):
    """docs/DEPLOY.md: Kubernetes."""
    row(site)
    hosts(site, "signer-1", "signer-2", "signer-3")
    site.execute("UPDATE fleet_host SET state = 'closed' WHERE name = 'signer-3'")
    assert command("retire", "signer-3", "--yes")[0] == 2  # without a reason
    code, _, err = command("retire", "signer-3", "--reason", "two are enough")
    assert (code, "--yes" in err) == (2, True)
    for host, why in (("signer-2", "holds the epoch"), ("signer-9", "has no host")):
        code, _, err = command("retire", host, "--reason", "x", "--yes")
        assert (code, why in err) == (1, True), host
    code, found, _ = command("retire", "signer-3", "--reason", "two are enough", "--yes")
    assert (code, found) == (0, {"retired": "signer-3", "reason": "two are enough"})
    code, found, _ = command("status")
    assert (found["lossWaitsFor"], found["hosts"][2]["retired"]) == (["signer-1", "signer-2"], True)
    assert site.commands()["fleet retire"]["hostname"] == "signer-3"
    site.execute("UPDATE fleet SET incident = 1")
    assert command("status")[1]["incident"]["waiting"] == ["signer-1", "signer-2"]
    code, _, err = command("retire", "signer-1", "--reason", "x", "--yes")
    assert (code, "incident 1 waits for signer-1" in err) == (1, True)


def test_positions_go_from_a_file_s_store_to_a_fleet_s(command, site):
    site.bind((4, A), (7, B), config="file.json")
    out = site.folder / "positions.json"
    code, found, _ = command("export", "--output", str(out), config="file.json")
    assert (code, found["positions"], found["domains"]) == (0, 2, 1)
    code, found, _ = command("import", str(out))
    assert (code, found) == (0, {"added": 2, "floors": {}, "conflicts": []})
    code, found, _ = command("export")
    assert (code, found["fleet"], found["domains"][0]["high"]) == (0, "sequencer", 7)
    code, text, _ = command("export", plain=True)
    assert json.loads(text) == found
    entry = site.commands()["fleet import"]
    assert (entry["count"], entry["failures"], entry["sha256"]) == (
        2,
        0,
        hashlib.sha256(out.read_bytes()).hexdigest(),
    )


def test_an_import_lists_what_contradicts_it(command, site):
    site.bind((4, A))
    file = site.folder / "other.json"
    other = {"domain": BLOCKS, "floor": 1, "high": 4, "bound": [{"position": 4, "digest": B}]}
    file.write_text(json.dumps({"hsmcoreFleet": 1, "fleet": "old", "domains": [other]}))
    code, _, err = command("import", str(file))
    assert (code, "of the fleet 'old'" in err) == (1, True)
    code, found, err = command("import", str(file), "--from", "old")
    assert (code, found["floors"], found["conflicts"][0]["position"]) == (1, {BLOCKS: 1}, 4)
    assert f"position 4 of {BLOCKS} is bound to {A} here" in err
    file.write_text('{"hsmcoreFleet": 1, "domains": [{"floor": "x"}]}')
    code, _, err = command("import", str(file))
    assert (code, "$.domains[0].floor" in err) == (1, True)
    assert command("import", str(site.folder / "missing"))[0] == 2


def test_a_configuration_without_a_fleet_is_named(command, site):
    more = {verb: ["--reason", "x"] for verb in ("reconcile", "hold", "resume")} | {
        "retire": ["a", "--reason", "x", "-y"]
    }
    for verb in ("status", "claim", "release", "drain", *more):
        code, _, err = command(verb, *more.get(verb, ()), config="file.json")
        assert (code, "keyManager.fleet" in err) == (2, True), verb
    (site.folder / "plain.json").write_text(json.dumps(site.token.config()))
    for arguments in (["export"], ["import", "x"]):
        assert command(*arguments, config="plain.json")[0] == 2


def test_a_database_that_cannot_be_reached_is_named_without_its_password(command, site):
    site.write("gone.json", site.fleet(store={"url": "postgresql://u:the-password@127.0.0.1:1/gone"}))
    code, _, err = command("status", config="gone.json", plain=True)
    assert (code, "the-password" in err, "127.0.0.1" in err) == (1, False, True)
    assert "Traceback" not in err
