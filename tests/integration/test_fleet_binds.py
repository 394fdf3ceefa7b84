"""A bind of a fleet's host in one message: all that the rules look at is a condition of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.integration.test_fleet_lease import behind
from tests.integration.test_fleet_losses import Shared
from tests.support.attending import Host, attending
from tests.support.fleet_hosts import BLOCKS
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.postgres import Cluster, cluster

from hsmcore.config import Secret
from hsmcore.fleet.membership import Membership
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.recovery.witness import Witness
from hsmcore.state import Desired, Store, StoreError
from hsmcore.state.postgres import ask, link
from hsmcore.state.seal import SealSecret

pytestmark = [pytest.mark.integration, one_loop]
TTL = 60_000
"""Milliseconds: what a host learns in a test, a bind has found."""
HIGHEST = "SELECT max(position), count(*) FROM bound"
OTHER = "0" * 64


@pytest.fixture
def shared(postgres: Cluster, tmp_path: Path) -> Shared:
    return Shared(postgres, tmp_path)


@pytest.fixture(params=[None, Secret.plain("s" * 32)], ids=["plain", "sealed"])
def secret(request: pytest.FixtureRequest) -> SealSecret | None:
    return request.param


class Sent:
    """What is sent to the server: whole transactions that bind, and messages of those that ask first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alone = self.asked = 0
        saying, said, then = ask.saying, link.said, ask.saying_then

        def counted(server: Any, text: bytes) -> Any:
            self.alone += b"INSERT INTO bound" in text
            return saying(server, text)

        def counted_then(server: Any, statements: Any, text: bytes) -> Any:
            self.alone += b"INSERT INTO bound" in b"; ".join(statements)
            return then(server, statements, text)

        def asking(driver: Any, text: bytes) -> Any:
            self.asked += b"FOR KEY SHARE" in text or b"INSERT INTO bound" in text
            return said(driver, text)

        monkeypatch.setattr(ask, "saying", counted)
        monkeypatch.setattr(ask, "saying_then", counted_then)
        monkeypatch.setattr(link, "said", asking)

    def take(self) -> tuple[int, int]:
        """Both counts since the last call."""
        taken = self.alone, self.asked
        self.alone = self.asked = 0
        return taken


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(monkeypatch)


@asynccontextmanager
async def holding(shared: Shared, secret: SealSecret | None = None) -> AsyncIterator[Host]:
    """A host that has bound 0 to 2: the first one made the row of the domain, which a seal vouches for."""
    async with attending(shared.place("a", ttlMs=TTL), shared._folder / "a", secret) as a:
        await until(lambda: a.member.state == "holder")
        await a.member._renew()
        assert [await a.sign(position) for position in range(3)] == [""] * 3
        yield a


async def test_binds_that_are_ready_together_are_one_message(shared, secret, sent):
    async with holding(shared, secret) as a:
        sent.take()
        assert await a.sign(3) == ""
        assert sent.take() == (1, 0)
        assert {*await asyncio.gather(*(a.sign(position) for position in (7, 5, 6, 9)))} == {""}
        assert await a.sign(8) == ""  # it is known that this one is free
        assert sent.take() == (2, 0)
        assert shared.ask("SELECT high, bits FROM watermark") == [(9, f"{0b1111011111:x}")]
        assert await a.sign(8) == ""
        assert await a.sign(8, "another") == "DoubleSign"
        assert sent.take() == (0, 2)  # its row says so
        assert await a.sign(10) == ""
        assert sent.take() == (1, 0)


CHANGES: dict[str, tuple[str, str]] = {
    "the epoch is another one": ("UPDATE fleet SET epoch = 2", "NotHolder"),
    "another process has it": ("UPDATE fleet SET holder = 'b:1:x'", "NotHolder"),
    "it was released": ("UPDATE fleet SET released = 1", "NotHolder"),
    "it is held": ("UPDATE fleet SET held = 'a test'", "FleetBehind"),
    "an incident is open": ("UPDATE fleet SET incident = 7", "FleetBehind"),
    "the fleet's row went back": ("UPDATE fleet SET renewals = 0", "FleetBehind"),
    "it was settled on another server": ("UPDATE fleet SET timeline = '0000000F'", "FleetBehind"),
    "it was settled on another system": ("UPDATE fleet SET system = '1'", "FleetBehind"),
    "the floor was raised": ("UPDATE watermark SET floor = 3, reason = 'x'", "PolicyRefused"),
    "a row is there": (f"INSERT INTO bound VALUES ('{BLOCKS}', 3, '{OTHER}', 'b:1', 1, '')", "DoubleSign"),  # noqa: S608
    "the highest is another one": ("UPDATE watermark SET high = 1, bits = '1'", "FleetBehind"),
    "the watermark is gone": ("DELETE FROM watermark", "FleetBehind"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_a_rule_looks_at_is_a_condition_of_the_message(shared, sent, change):
    """Another session has changed it, and this host has not seen that."""
    statement, refused = CHANGES[change]
    async with holding(shared) as a:
        sent.take()
        shared.ask(statement)
        a.mark._closing.set()  # what would wait for its deadline is refused
        assert await a.sign(3) == refused
        assert sent.take()[0] == 1, "it was tried in one message"
        assert shared.ask("SELECT holder FROM bound WHERE position = 3 AND holder LIKE 'a:%'") == []


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Connections of event loops that are dialled from now on."""
    dialled, connect = list[object](), psycopg.AsyncConnection.connect

    async def noted(**options: Any) -> Any:
        dialled.append(options)
        return await connect(**options)

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", noted)
    return dialled


async def _floors_cost_no_dial(a: Host, ask: Callable[[str], object], sent: Sent, dials: list[object]) -> None:
    """Another session changes what a bind relies on, three times."""
    dials.clear()
    for position in (3, 5, 7):
        ask(f"UPDATE watermark SET floor = {position - 3}, reason = 'x'")  # noqa: S608
        sent.take()
        assert await a.sign(position) == ""
        tried, read = sent.take()
        assert tried == 1
        assert read, "it is there now, and not as this process knew it"
        assert await a.sign(position + 1) == ""
        assert sent.take() == (1, 0)
    assert dials == []


async def test_a_condition_that_is_not_met_costs_no_connection(shared, sent, dials):
    async with holding(shared) as a:
        await _floors_cost_no_dial(a, shared.ask, sent, dials)


@pytest.mark.slow("a standby is made")
async def test_a_condition_that_is_not_met_costs_no_connection_where_a_standby_is_waited_for(tmp_path, sent, dials):
    with cluster() as server:
        server.standby()
        shared = Shared(server, tmp_path)
        async with attending(shared.place("a", ttlMs=TTL, singleNode=False), tmp_path / "a") as a:
            await until(lambda: a.member.state == "holder")
            assert [await a.sign(position) for position in range(3)] == [""] * 3
            await _floors_cost_no_dial(a, shared.ask, sent, dials)


async def test_a_position_further_ahead_than_allowed_is_no_matter_of_memory(shared, sent):
    """A floor that another process has raised may be what it is measured from."""
    async with holding(shared) as a:
        a.mark._rules = a.mark._rules._replace(most_ahead=100)
        assert await a.sign(103) == "PolicyRefused"
        store = await Store.open(shared.place("a", ttlMs=TTL))
        await Watermark(store, "").raise_floor(BLOCKS, 50, "a test")
        await store.close()
        assert [await a.sign(103), await a.sign(50)] == ["", "PolicyRefused"]


VOUCHED: dict[str, Callable[[Shared], object]] = {
    "its MAC": lambda shared: shared.ask("UPDATE watermark SET mac = ''"),
    "the reason of a floor": lambda shared: shared.ask("UPDATE watermark SET reason = 'forged'"),
    "a host": lambda shared: shared.ask("INSERT INTO fleet_host VALUES ('b', '', 1, 'closed', 0, 0, '')"),
    "the seal": lambda shared: shared.ask("UPDATE seal SET counter = 1"),
    "no seal": lambda shared: shared.ask("DELETE FROM seal"),
}


@pytest.mark.parametrize("forged", VOUCHED)
async def test_what_a_seal_vouches_for_is_a_condition_of_the_message(shared, sent, forged):
    async with holding(shared, Secret.plain("s" * 32)) as a:
        sent.take()
        VOUCHED[forged](shared)
        a.mark._closing.set()
        assert await a.sign(3) == "StoreNotGenuine"
        assert sent.take()[0] == 1
        assert shared.ask(HIGHEST) == [(2, 3)]


async def test_what_another_process_seals_costs_a_bind_nothing(shared, secret, sent):
    async with holding(shared, secret) as a:
        sent.take()
        store = await Store.open(shared.place("a", ttlMs=TTL), secret)
        for position in (3, 4):
            await Desired(store).set(f"readmit:{position}", "yes", "a reason")
            assert await a.sign(position) == ""
        await store.close()
        assert sent.take() == (2, 0), "it is nothing that a bind relies on"


async def test_nothing_is_bound_on_a_server_that_may_lose_it(shared, postgres, sent):
    async with holding(shared) as a:
        sent.take()
        with postgres.changed(fsync="off"):
            await until(lambda: shared.ask("SHOW fsync") == [("off",)])
            assert await a.sign(3) == "StoreError"
        assert sent.take()[0] == 1
        assert shared.ask(HIGHEST) == [(2, 3)]
        assert await a.sign(3) == ""


async def test_a_trigger_that_was_made_since_is_found(shared, sent):
    async with holding(shared, Secret.plain("s" * 32)) as a:
        shared.ask("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        shared.ask("CREATE TRIGGER swallows BEFORE INSERT ON bound FOR EACH ROW EXECUTE FUNCTION nothing()")
        a.mark._closing.set()
        assert await a.sign(3) == "StoreNotGenuine"
        assert shared.ask(HIGHEST) == [(2, 3)]


async def test_a_bind_whose_answer_is_lost_is_read_before_it_is_answered(postgres, tmp_path, sent):
    async with behind(postgres, tmp_path) as there, there.host("a", ttlMs=TTL) as a:
        await until(lambda: a.member.state == "holder")
        assert [await a.sign(1), await a.sign(2)] == ["", ""]
        sent.take()
        there.proxy.hold(requests=False)
        lost = asyncio.create_task(a.sign(3))
        with postgres.connect(there.url.rsplit("/", 1)[1]) as on:
            await until(lambda: on.execute("SELECT max(position) FROM hsmcore_tests.bound").fetchone() == (3,))
        there.proxy.cut()
        there.proxy.heal()
        assert await lost == ""
        assert sent.take() == (2, 2), "sent again, as to a server that was started again, and then read"
        assert await a.sign(3, "another") == "DoubleSign"
        assert await a.sign(4) == ""


async def test_a_bind_that_has_no_answer_while_others_have_is_given_up(shared, sent):
    async with holding(shared) as a:
        line, given_up = a.mark._line, list[str]()
        assert line is not None
        line._seconds, asking = 0.2, line.ask

        async def noted(*given: Any) -> Any:
            try:
                return await asking(*given)
            except StoreError as error:
                given_up.append(str(error))
                raise

        line.ask = noted
        with shared.beside() as on:
            on.execute("LOCK TABLE bound")
            binding = asyncio.create_task(a.sign(3))
            waits = f"SELECT count(*) FROM pg_stat_activity WHERE {on.info.backend_pid} = ANY(pg_blocking_pids(pid))"  # noqa: S608
            await until(lambda: shared.ask(waits) == [(1,)])
            while shared.ask(waits) == [(1,)]:  # the one that was given up, and the one that reads
                await a.member._renew()
            assert not binding.done()
        assert await binding == ""
        assert "answers others" in given_up[0]
        assert shared.ask(HIGHEST) == [(3, 4)]


async def test_a_bind_right_after_the_start_waits_for_the_claim_and_for_the_comparison_of_the_log(shared, monkeypatch):
    """Both are under way, and nothing is known to be lost."""
    attend, compares, claims = Witness.attend, asyncio.Event(), asyncio.Event()

    async def late(witness: Witness) -> Any:
        if not compares.is_set():
            raise StoreError("not yet")
        return await attend(witness)

    monkeypatch.setattr(Witness, "attend", late)
    take = Membership._take

    async def waits(member: Membership, *given: Any, **more: Any) -> Any:
        member._machine.claims()
        await claims.wait()
        return await take(member, *given, **more)

    monkeypatch.setattr(Membership, "_take", waits)
    async with shared.host("a", ttlMs=4000) as a:
        await until(lambda: a.member.state == "claiming")
        binding = asyncio.create_task(a.sign(1))
        await asyncio.sleep(0)
        assert a.mark._waiting
        claims.set()
        await until(lambda: a.member.state == "doubtful" and "compared" in a.member.reason)
        assert not binding.done()
        assert shared.ask("SELECT count(*) FROM bound") == [(0,)]
        compares.set()
        assert await binding == ""


async def test_a_bind_that_waits_for_a_claim_ends_with_the_other_host_s(shared, monkeypatch):
    async with shared.host("b", ttlMs=4000, claim="manual") as b, shared.host("a", ttlMs=4000, claim="manual") as a:
        a.member._machine.claims()
        binding = asyncio.create_task(a.sign(1))
        await asyncio.sleep(0)
        assert a.mark._waiting
        await b.member.claim()
        assert await binding == "NotHolder"


async def test_a_cancelled_bind_leaves_nothing_behind(shared, sent):
    async with holding(shared) as a:
        with shared.beside() as on:
            on.execute("LOCK TABLE bound")
            binding = asyncio.create_task(a.sign(3))
            waits = f"SELECT count(*) FROM pg_stat_activity WHERE {on.info.backend_pid} = ANY(pg_blocking_pids(pid))"  # noqa: S608
            await until(lambda: shared.ask(waits) == [(1,)])
            binding.cancel()
            await asyncio.wait({binding})
        assert await a.sign(3, "another") in ("", "DoubleSign")  # it may be bound, or not
        assert await a.sign(4) == ""


async def test_closing_waits_for_no_bind_that_a_silent_server_does_not_answer(postgres, tmp_path, sent):
    async with behind(postgres, tmp_path) as there, there.host("a", ttlMs=2000) as a:
        await until(lambda: a.member.state == "holder")
        assert [await a.sign(1), await a.sign(2)] == ["", ""]
        there.proxy.silent = True
        binding = asyncio.create_task(a.sign(3))
        await asyncio.sleep(0)
        async with asyncio.timeout(20):  # without the end of the wait, 30 s
            await a.mark.close()
        assert await binding in ("StoreUnknown", "StoreAway", "NotHolder", "StoreError")
