"""Two hosts with tokens and audit logs: they follow `hsmcore fleet`, and put back what their database loses."""

from __future__ import annotations

import time
from functools import partial

import pytest
from tests.integration.test_fleet import Hosts
from tests.support.commands import commands
from tests.support.policed import ordered
from tests.support.postgres import cluster

pytestmark = pytest.mark.integration


@pytest.fixture
def place(tmp_path, world):
    with cluster() as server:
        hosts = Hosts(tmp_path, world, server.database())
        try:
            yield server, hosts
        finally:
            hosts.close()


@pytest.fixture
def command(place, capfdbinary):
    """Run a command of the first host's configuration: exit code, what it printed as JSON, standard error."""
    _, hosts = place
    with commands(hosts.folder, capfdbinary, "fleet") as command:
        yield partial(command, config="first.json")


@pytest.mark.slow("a wait for each order")
def test_hosts_follow_orders(command, place):
    _, hosts = place
    first, second = hosts.two()
    first.until_signed(ordered(5))
    while (states := {host["name"]: host["state"] for host in command("status")[1]["hosts"]})["first"] != "holder":
        time.sleep(0.01)  # it says so with its first renewal
    assert states["second"] == "follower"
    code, found, _ = command("status")
    assert (code, found["holderHost"], found["renewed"]) == (0, "first", True)

    code, found, _ = command("claim", "second", "--force", "--reason", "a test")
    assert (code, found["followed"]) == (0, True)
    second.until("holder")
    first.until("follower")
    second.until_signed(ordered(6))

    code, found, _ = command("drain", "second", "--reason", "kernel update")
    assert (code, found["followed"]) == (0, True)
    second.until("follower")
    first.until("holder")  # by itself: nobody else may
    code, found, _ = command("claim", "second", "--force", "--reason", "x")
    assert (code, found["followed"], "drained" in found["note"]) == (1, False, True)
    assert command("drain", "second", "--off")[0] == 0

    code, found, _ = command("claim", "second")
    assert (code, "held by first" in found["note"]) == (1, True)
    code, found, _ = command("release", "first", "--reason", "your turn")
    assert (code, found["followed"]) == (0, True)
    second.until("holder")
    code, found, _ = command("claim", "first", "--force", "--reason", "back")
    assert (code, found["followed"]) == (0, True)
    assert command("status")[1]["orders"] == []
    [record] = second.ask("records", operation="fleet-claim", reason="a test")["records"]
    assert (record["epoch"], record["forced"]) == (2, True)


def test_what_the_database_lost_comes_back_from_the_logs_of_its_hosts(command, place):
    server, hosts = place
    standby = server.standby(synchronous=False)
    first, second = hosts.two()
    first.until_signed(ordered(1))
    kept = server.execute("SELECT pg_current_wal_lsn()")[0][0]
    standby.until(f"SELECT pg_last_wal_replay_lsn() >= '{kept}'", True)
    standby.stop()
    signed = {position: first.until_signed(ordered(position, b"a")) for position in range(2, 8)}
    server.stop(how="immediate")
    standby.port = server.port
    standby.start()
    standby.promote()
    for member in (second, first):
        found = member.sign(ordered(5, b"another"))
        assert found["error"] in ("NotHolder", "FleetBehind", "StoreError", "DoubleSign"), found
    holder = _holder(first, second)
    for position, signature in signed.items():
        assert holder.until_signed(ordered(position, b"a")) == signature
        assert holder.sign(ordered(position, b"another"))["error"] == "DoubleSign"
    holder.until_signed(ordered(8))
    code, found, _ = command("status")
    assert (code, found["incident"]["open"], found["incident"]["number"] >= 1) == (0, False, True)
    assert first.ask("records", operation="fleet-answer")["records"]


def _holder(*members):
    while True:
        for member in members:
            if member.ask("state")["state"] == "holder":
                return member
        time.sleep(0.01)


def test_a_host_that_is_gone_stops_positions_until_the_fleet_is_reconciled(command, place):
    server, hosts = place
    first, second = hosts.two()
    first.until_signed(ordered(1))
    first.kill()
    second.until("holder")
    server.execute("UPDATE hsmcore_tests.fleet SET timeline = 'another'", hosts.url.rsplit("/", 1)[1])
    server.restart()
    while not command("status")[1]["incident"]["open"]:
        time.sleep(0.02)
    assert second.sign(ordered(2))["error"] in ("FleetBehind", "NotHolder")
    while (found := command("status")[1])["incident"]["waiting"] != ["first"]:
        assert found["incident"]["open"]
    assert second.until_signed(b"no position")  # goes on under the lease
    code, found, _ = command("reconcile", "--reason", "first burned", "--at-least", "default/block=3")
    assert (code, found["retired"], found["floors"]) == (0, ["first"], {"default/block": 3})
    second.until_signed(ordered(4))
    assert second.sign(ordered(3))["error"] == "PolicyRefused"
