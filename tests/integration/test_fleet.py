"""A fleet on PostgreSQL and SoftHSM: two hosts in processes of their own, one of which signs."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.chaos.load import tell
from tests.support.fleet_member import FleetMember
from tests.support.loops import one_loop
from tests.support.managers import start, until
from tests.support.policed import ordered
from tests.support.postgres import Cluster, cluster, fleet
from tests.support.shim import Shim
from tests.support.softhsm import Token
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.fleet import entry
from hsmcore.fleet.membership import Membership
from hsmcore.tlog import batch_proof

pytestmark = pytest.mark.integration
TTL = 1
"""Seconds, where the end of a lease is waited for; else it is longer than a busy machine stalls."""
KINDS = ["block", "raw"]


class Hosts:
    """Starts the hosts of one fleet, and ends them."""

    def __init__(self, folder: Path, token: Token, url: str) -> None:
        self.folder, self.token, self.url = folder, token, url
        self.beside: dict[str, Any] = {}
        """What stands beside `keyManager`."""
        self._started: list[FleetMember] = []

    def config(self, *, rules: Any = None, policy: Any = None, settings: Any = None, **fleet: Any) -> dict[str, Any]:
        block = {"store": {"url": self.url}, "name": "tests", "singleNode": True, "ttlMs": 4000, **fleet}
        allowed = {"kinds": KINDS, **(policy or {})}
        whole = self.token.config(settings=settings, fleet=block, policy=allowed, maxCacheSize=0, **(rules or {}))
        whole["sequencer"] |= self.beside
        return whole

    def start(self, process: str, **more: Any) -> FleetMember:
        """Start one and wait until it is open."""
        return self.begin(self.config(rules={"auditLogFile": str(self.folder / f"{process}.log")}, **more), process)

    def begin(self, config: dict[str, Any], process: str) -> FleetMember:
        """As `start`, of a whole configuration."""
        made = FleetMember(self.folder, config, process)
        self._started.append(made)
        return made.begun()

    def two(self, **more: Any) -> tuple[FleetMember, FleetMember]:
        """A holder, and a follower."""
        first = self.start("first", **more)
        first.until("holder")
        return first, self.start("second", **more)

    def close(self) -> None:
        for one in reversed(self._started):
            one.close()


@pytest.fixture
def hosts(tmp_path: Path, world: Token, postgres: Cluster) -> Iterator[Hosts]:
    made = Hosts(tmp_path, world, postgres.database())
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def own_server(tmp_path: Path, world: Token) -> Iterator[tuple[Cluster, Hosts]]:
    """A server that the test may stop."""
    with cluster() as server:
        made = Hosts(tmp_path, world, server.database())
        try:
            yield server, made
        finally:
            made.close()


def until_known(member: FleetMember, epoch: int) -> None:
    """Wait until a host has seen an epoch."""
    while member.ask("state")["epoch"] != epoch:
        time.sleep(0.01)


def database_of(hosts: Hosts) -> str:
    return hosts.url.rsplit("/", 1)[1]


def test_batches_go_on_behind_those_of_the_holder_before(hosts):
    first, second = hosts.two(ttlMs=TTL * 1000, policy={"kinds": ["batch-root"]}, claim="auto")
    public_key, messages = hosts.token.keys["ed25519"].public_key, ["a", "b", "c"]

    def batch(host: FleetMember) -> list[tuple[str, int, int]]:
        while "error" in (found := host.ask("batch", messages=messages)):
            assert found["error"] in ("NotHolder", "StoreError", "StoreUnknown"), found
            time.sleep(0.005)
        read = [
            batch_proof.read(public_key, m.encode(), p.encode()) for m, p in zip(messages, found["proofs"], strict=True)
        ]
        assert found["numbers"] == [one.index for one in read]
        return [(one.domain, one.epoch, one.index) for one in read]

    assert [batch(first), batch(first)] == [[("default", 1, n) for n in ns] for ns in ((0, 1, 2), (3, 4, 5))]
    assert second.ask("batch", messages=messages)["error"] == "NotHolder"
    first.signal(signal.SIGSTOP)
    second.until("holder")
    assert batch(second) == [("default", 2, n) for n in (6, 7, 8)]
    first.signal(signal.SIGCONT)
    assert first.ask("batch", messages=messages)["error"] == "NotHolder"
    assert batch(second) == [("default", 2, n) for n in (9, 10, 11)]


def test_one_signs_and_the_other_says_who(hosts):
    first, second = hosts.two()
    message = ordered(1)
    assert is_good("ed25519", hosts.token.keys["ed25519"].public_key, message, first.until_signed(message))
    first.until_signed(b"no position")
    holder = first.ask("state")["holder"]
    assert holder.startswith("first:")
    for message in (ordered(1), ordered(2), b"no position"):
        refused = second.sign(message)
        assert (refused["error"], refused["holder"], refused["epoch"]) == ("NotHolder", holder, 1)
    assert second.ask("many", messages=[b"a".hex(), ordered(3).hex()])["error"] == "NotHolder"
    assert second.ask("state")["state"] == "follower"
    found = first.ask("records", operation="fleet-claim")["records"]
    assert [record["epoch"] for record in found] == [1]
    refusals = second.ask("records", error="NOT_HOLDER")["records"]
    assert len(refusals) >= 4


def test_the_next_one_takes_over_from_one_that_was_killed(hosts, capsys):
    first, second = hosts.two(ttlMs=TTL * 1000)
    first.until_signed(ordered(1, b"a"))
    begun = time.monotonic()
    first.kill()
    second.until_signed(b"no position")
    tell(capsys, f"takeover after kill -9: {time.monotonic() - begun:.2f} s, ttl {TTL} s")
    assert second.ask("state")["epoch"] == 2
    second.until_signed(ordered(1, b"a"))
    assert second.sign(ordered(1, b"b"))["error"] == "DoubleSign"
    again = hosts.start("first", ttlMs=TTL * 1000)  # waits for the end of its former life
    assert again.ask("state")["state"] == "follower"


def test_a_holder_that_was_stopped_hands_out_nothing(hosts):
    first, second = hosts.two(ttlMs=TTL * 1000)
    first.until_signed(ordered(1, b"a"))
    first.signal(signal.SIGSTOP)
    first.tell("sign", message=ordered(2, b"a").hex())
    first.tell("sign", message=b"no position".hex())
    second.until_signed(ordered(2, b"b"))
    time.sleep(2 * TTL)  # 3 ttl in all: nothing is waited for here but its sleep
    first.signal(signal.SIGCONT)
    assert first.answer()["error"] in ("NotHolder", "StoreError")
    assert first.answer()["error"] == "NotHolder"
    assert first.until("follower")["epoch"] == 2
    lost = first.ask("records", operation="fleet-lost")["records"]
    assert [record["epoch"] for record in lost] == [1]
    assert first.ask("records", operation="sign", result="ok", position=2)["records"] == []


def test_one_position_has_one_digest_whoever_holds(hosts):
    first, second = hosts.two()
    first.until_signed(ordered(7, b"a"))
    first.ask("release", reason="a test")
    second.until("holder")
    assert second.sign(ordered(7, b"b"))["error"] == "DoubleSign"
    assert second.until_signed(ordered(7, b"a"))
    second.until_signed(ordered(8, b"b"))
    until_known(first, 2)
    refused = first.sign(ordered(8, b"a"))
    assert (refused["error"], refused["epoch"]) == ("NotHolder", 2)


def test_a_release_needs_no_wait_and_is_not_taken_back(hosts):
    first, second = hosts.two(ttlMs=60_000)  # longer than the test
    released = first.ask("release", reason="maintenance")
    assert released["state"] == "follower"
    assert second.until("holder")["epoch"] == 2
    second.until_signed(ordered(1))
    assert first.ask("state")["state"] == "follower"
    [record] = first.ask("records", operation="fleet-release")["records"]
    assert (record["epoch"], record["reason"]) == (1, "maintenance")


def test_closing_gives_the_epoch_up(hosts):
    first, second = hosts.two(ttlMs=60_000)
    first.close()
    assert second.until("holder")["epoch"] == 2
    again = hosts.start("first", ttlMs=60_000)  # at once: its former life ended in order
    assert again.ask("state")["epoch"] == 2


def test_a_claim_by_hand(hosts):
    first = hosts.start("first", claim="manual")
    assert first.ask("state")["state"] == "follower"
    assert first.sign(b"no position")["error"] == "NotHolder"
    assert first.ask("claim")["state"] == "holder"
    first.until_signed(ordered(9))
    second = hosts.start("second", claim="manual")
    alive = second.ask("claim")
    assert (alive["error"], alive["epoch"]) == ("NotHolder", 1)
    assert second.ask("claim", force=True)["error"] == "BadArgument"
    for wrong in (-1, "8", None, True):
        assert second.ask("claim", at_least={"default/block": wrong})["error"] == "BadArgument"
    behind = second.ask("claim", at_least={"default/block": 8})
    assert behind["error"] == "NotHolder"
    first.ask("release")
    behind = second.ask("claim", at_least={"default/block": 8})
    assert behind["error"] == "BadArgument"
    assert "up to 8" in behind["text"]
    assert "at 9" in behind["text"]
    assert second.ask("claim", at_least={"default/block": 9})["epoch"] == 2
    taken = first.ask("claim", force=True, reason="the test says so")
    assert (taken["state"], taken["epoch"]) == ("holder", 3)
    assert second.until("follower")["epoch"] == 3


def test_the_first_payload_after_a_claim_has_caught_up(hosts):
    first, second = hosts.two()
    first.until_signed(ordered(10, b"a"))
    first.ask("release")
    second.until("holder")
    behind = second.sign(ordered(9, b"a"))
    assert behind["error"] == "PolicyRefused"
    assert "fleet's 10" in behind["text"]
    second.until_signed(ordered(10, b"a"))  # the same again shows nothing
    assert second.sign(ordered(9, b"a"))["error"] == "PolicyRefused"
    second.until_signed(ordered(11, b"a"))
    second.until_signed(ordered(9, b"a"))


def test_a_host_claims_by_itself_when_it_has_caught_up(hosts):
    first = hosts.start("first")
    first.until("holder")
    first.until_signed(ordered(10))
    second = hosts.start("second", ttlMs=20_000)  # so long that the test sees it wait
    second.ask("caught_up", domain="default/block", position=5)
    first.close()
    while "up to 5" not in second.ask("state")["reason"]:
        time.sleep(0.01)
    assert second.ask("state")["state"] in ("follower", "claiming")
    second.ask("caught_up", domain="default/block", position=10)
    second.until("holder")


def test_a_holder_that_dies_between_a_bind_and_its_publication_is_replaced(hosts):
    """No other host can have seen the block, and each says how far it follows: not to the one before."""
    first, second = hosts.two(ttlMs=TTL * 1000)
    for position in (1, 2, 5):
        first.until_signed(ordered(position, b"a"))
    second.ask("caught_up", domain="default/block", position=2)
    first.tell("sign", message=ordered(6, b"a").hex())
    with psycopg.connect(hosts.url, autocommit=True) as watch:
        while watch.execute("SELECT high FROM hsmcore_tests.watermark").fetchone() != (6,):
            time.sleep(0.001)
    first.kill()
    deadline = time.monotonic() + 60 * TTL
    while "error" in (found := second.sign(b"no position")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "signature" in found, second.ask("state")
    assert "up to 2, and the fleet is at 5" in second.log.read_text()
    behind = second.sign(ordered(4, b"b"))
    assert (behind["error"], "fleet's 6" in behind["text"]) == ("PolicyRefused", True)
    for position in (5, 6):
        assert second.sign(ordered(position, b"b"))["error"] == "DoubleSign"
    second.until_signed(ordered(7, b"b"))
    second.until_signed(ordered(6, b"a"))


@pytest.mark.parametrize("sealed", [False, True])
def test_a_block_is_not_lost_with_its_holder(hosts, shim_library, tmp_path, sealed, capsys):
    """Killed between bind and signature: the next holder is not behind, has the message, and the chain has no gap."""
    shim = Shim(shim_library, tmp_path / "shared.so", shared=True)
    if sealed:
        hosts.beside["stateSecret"] = "s" * 32
    first = hosts.start("first", ttlMs=TTL * 1000, settings={"modulePath": shim.path})
    first.until("holder")
    second = hosts.start("second", ttlMs=TTL * 1000)
    for position in (1, 2, 5):
        first.until_signed(ordered(position, b"a"))
    assert first.ask("unfinished", domain="default/block") == {"unfinished": None}
    second.ask("caught_up", domain="default/block", position=5)
    shim.hold()
    first.tell("sign", message=ordered(6, b"a").hex(), timeout=60)
    while shim.inside == 0:
        time.sleep(0.001)
    begun = time.monotonic()
    first.kill()
    shim.release()
    second.until_signed(b"no position")
    tell(capsys, f"takeover after kill -9 between bind and signature: {time.monotonic() - begun:.2f} s, ttl {TTL} s")
    assert "leaves the epoch to others" not in second.log.read_text()
    found = second.ask("unfinished", domain="default/block")["unfinished"]
    message = ordered(6, b"a")
    assert found == ["block", 6, hashlib.sha256(message).hexdigest(), message.hex()]
    signature = second.until_signed(bytes.fromhex(found[3]), kind=found[0], position=found[1])
    assert is_good("ed25519", hosts.token.keys["ed25519"].public_key, message, signature)
    assert second.ask("unfinished", domain="default/block") == {"unfinished": None}
    second.until_signed(ordered(7, b"b"))
    assert second.sign(ordered(6, b"b"))["error"] == "DoubleSign"


def test_a_host_that_is_behind_leaves_the_epoch_to_one_that_is_not(hosts):
    first = hosts.start("first")
    first.until("holder")
    first.until_signed(ordered(10))
    behind, second = (hosts.start(name, ttlMs=20_000) for name in ("behind", "second"))
    behind.ask("caught_up", domain="default/block", position=5)
    second.ask("caught_up", domain="default/block", position=10)
    first.close()
    second.until("holder")
    assert behind.ask("state")["state"] in ("follower", "claiming")


def test_a_claim_waits_for_a_bind_that_is_open(hosts):
    _, second = hosts.two()
    with psycopg.connect(hosts.url, autocommit=False) as bind:
        bind.execute("SET search_path TO hsmcore_tests")
        assert bind.execute("SELECT epoch FROM fleet FOR SHARE").fetchone() == (1,)
        second.tell("claim", force=True, reason="the test says so")
        with psycopg.connect(hosts.url, autocommit=True) as watch:
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
            while watch.execute(query, (database_of(hosts),)).fetchone() == (0,):
                time.sleep(0.01)
        assert bind.execute("SELECT epoch FROM fleet").fetchone() == (1,)
    assert second.answer()["epoch"] == 2


def test_a_database_that_is_down(own_server):
    server, hosts = own_server
    first = hosts.start("first", ttlMs=4000)
    first.until("holder")
    first.until_signed(b"no position")
    server.stop(how="immediate")
    assert first.sign(ordered(1), timeout=0.1)["error"] == "DeadlineExceeded"
    first.until("doubtful")
    assert "signature" in first.sign(b"while the lease lasts")
    while "error" not in (found := first.sign(b"no position", timeout=0.1)):
        time.sleep(0.01)
    assert found["error"] == "DeadlineExceeded"
    assert first.ask("state")["leaseSeconds"] == 0
    server.start()
    first.until_signed(ordered(1))
    assert first.until("holder")["epoch"] == 1


@one_loop
@pytest.mark.parametrize("sealed", [False, True])
async def test_what_has_time_left_waits_for_a_database_that_is_started_again(own_server, sealed):
    """Blocks, messages, batches, and what is cancelled meanwhile; the lease is over before the server is back."""
    server, hosts = own_server
    if sealed:
        hosts.beside["stateSecret"] = "s" * 32
    log = {"auditLogFile": str(hosts.folder / "audit.log")}
    async with hsmcore.create_key_manager(hosts.config(ttlMs=TTL * 1000, rules=log)) as manager:
        await until(lambda: not manager.fleet.lease.is_over and manager.fleet.state == "holder")
        asked, stop = list[asyncio.Task[Any]](), asyncio.Event()

        async def load() -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                asked.append(start(manager.sign(ordered(number), 60)))
                asked.append(start(manager.sign(b"%d" % number, 60)))
                asked.append(start(manager.sign_many([b"a%d" % number, b"b%d" % number], 60)))
                asked.append(start(manager.sign_with_receipt(b"c%d" % number, 60)))
                await asyncio.sleep(0.02)

        loading = start(load())
        await until(lambda: len(asked) > 20)
        server.stop()
        await until(lambda: manager.fleet.lease.is_over)
        begun = len(asked)
        given_up = [start(manager.sign(ordered(1_000 + n), 60)) for n in range(2)]
        given_up += [start(manager.sign(b"given up", 60)), start(manager.sign(b"and this", 60))]
        late = await asyncio.gather(
            manager.sign(ordered(2_000), 0.05), manager.sign(b"late", 0.05), return_exceptions=True
        )
        assert [type(error).__name__ for error in late] == ["DeadlineExceeded"] * 2
        assert all(error.retryable for error in late)
        await until(lambda: len(asked) > begun + 20)
        for each in given_up:
            each.cancel()
        server.start()
        await until(lambda: not manager.fleet.lease.is_over)
        stop.set()
        await loading
        assert [
            error for error in await asyncio.gather(*asked, return_exceptions=True) if isinstance(error, Exception)
        ] == []
        for position in (1_000, 1_001, 2_000):
            assert await manager.sign(ordered(position, b"another"))


@one_loop
async def test_what_waits_for_a_database_keeps_no_key_manager_open(own_server):
    server, hosts = own_server
    manager = hsmcore.create_key_manager(hosts.config(ttlMs=TTL * 1000))
    async with manager:
        await until(lambda: not manager.fleet.lease.is_over and manager.fleet.state == "holder")
        server.stop()
        await until(lambda: manager.fleet.lease.is_over)
        asked = [start(manager.sign(message, 3600)) for message in (ordered(1), b"no position")]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one).__name__ for one in answers} <= {"NotHolder", "RequestCancelled", "EngineClosed", "StoreAway"}
    server.start()


def test_strict_hands_out_what_the_database_has_confirmed(own_server):
    server, hosts = own_server
    standby = server.standby()
    first = hosts.start("first", unordered="strict", singleNode=False, ttlMs=60_000)
    first.until("holder")
    first.until_signed(b"no position")
    assert first.ask("many", messages=[b"a".hex(), b"b".hex()])["answers"][0] != "NotHolder"
    standby.stop(how="immediate")  # the primary is alone: it answers reads, and confirms nothing
    assert first.sign(b"never seen", timeout=1)["error"] == "DeadlineExceeded"
    assert server.execute("SELECT 1") == [(1,)]


def test_a_bind_whose_end_is_unknown_is_read_again(own_server):
    server, hosts = own_server
    standby = server.standby()
    first = hosts.start("first", singleNode=False, ttlMs=60_000)
    first.until("holder")
    first.until_signed(ordered(1))
    standby.stop(how="immediate")
    first.tell("sign", message=ordered(2, b"a").hex(), timeout=60)
    database = database_of(hosts)
    while not (waiting := server.waiting_for_standby(database)):
        time.sleep(0.01)
    began = server.execute("SELECT xact_start FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    server.execute(f"SELECT pg_cancel_backend({waiting[0]})")  # confirmed with a warning: it is there, and may be lost
    while server.execute("SELECT xact_start FROM pg_stat_activity WHERE wait_event = 'SyncRep'") in (began, []):
        time.sleep(0.01)
    standby.start()
    assert "signature" in first.answer()
    [count] = server.execute("SELECT count(*) FROM hsmcore_tests.bound WHERE position = 2", database)
    assert count == (1,)
    assert first.sign(ordered(2, b"b"))["error"] == "DoubleSign"


def test_a_store_with_a_seal(hosts):
    sealed = hosts.config
    hosts.config = lambda **more: (
        sealed(**more) | {"sequencer": sealed(**more)["sequencer"] | {"stateSecret": "s" * 32}}
    )
    first, second = hosts.two()
    first.until_signed(ordered(1, b"a"))
    first.until_signed(b"no position")
    first.close()
    second.until_signed(ordered(2, b"a"))
    assert second.sign(ordered(1, b"b"))["error"] == "DoubleSign"


def test_two_hosts_of_one_name(hosts):
    first = hosts.start("first")
    first.until("holder")
    with pytest.raises(AssertionError, match="give each host a name of its own") as caught:
        hosts.start("other", host="first")
    assert "fleet.host: is 'first', as which first:" in str(caught.value)
    first.until_signed(ordered(1))


async def test_a_lease_that_the_database_cannot_keep_up_with(hosts, monkeypatch):
    answers = iter(range(0, 10**13, 600_000_000))  # 600 ms for each
    monkeypatch.setattr(entry, "boottime", lambda: next(answers))
    with pytest.raises(
        hsmcore.ConfigurationError, match="a renewal of the lease takes 600 ms: make it 4800 or more"
    ) as caught:
        await Membership.open(fleet(hosts.url, ttlMs=2000))
    assert caught.value.path == "$.keyManager.fleet.ttlMs"


async def test_several_key_managers_each_have_an_epoch(hosts):
    rules = hosts.config(ttlMs=60_000)["sequencer"]["keyManager"]
    other = json.loads(json.dumps(rules)) | {"policy": {"kinds": ["state-root"]}}
    other["config"]["keyLabel"] = hosts.token.keys["second"].label
    config = {"sequencer": {"keyManagers": {"blocks": rules, "other": other}}}
    async with hsmcore.create_key_managers(config) as managers:
        fleets = {name: manager.fleet for name, manager in managers.items()}
        await until(lambda: all(one.state == "holder" for one in fleets.values()))
        await fleets["blocks"].release("a test")
        await fleets["blocks"].claim()
        assert {name: one.epoch for name, one in fleets.items()} == {"blocks": 2, "other": 1}
        assert await managers.sign(ordered(1))
        assert await managers.sign(ordered(1, kind="state-root"))
