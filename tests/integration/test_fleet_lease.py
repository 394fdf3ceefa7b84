"""The lease of a fleet on a connection of its own: it waits for nothing else, notices a connection that is silent, and
a process that there is twice."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Connection, select
from tests.fleet.proxy import Proxy
from tests.integration.test_fleet_losses import Shared
from tests.support.attending import Host, attending
from tests.support.fleet_hosts import BLOCKS
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.postgres import Cluster, cluster, fleet
from tests.support.verifiers import is_good

from hsmcore.base.steady import boottime
from hsmcore.config import Secret
from hsmcore.fleet import rows
from hsmcore.fleet.entry import LOOKS, RENEWALS
from hsmcore.fleet.membership import Membership
from hsmcore.state import Store, StoreError, StoreUnknown
from hsmcore.state.postgres.ask import Asker
from hsmcore.state.postgres.link import Patient

pytestmark = [pytest.mark.integration, one_loop]
TTL = 2000
SEALED = pytest.mark.parametrize("secret", [None, Secret.plain("s" * 32)], ids=["plain", "sealed"])
LONG = 8000
"""Milliseconds: a busy machine stalls for less."""


class Behind:
    """A database behind a proxy."""

    def __init__(self, proxy: Proxy, url: str, folder: Path) -> None:
        self.proxy, self.url, self.folder = proxy, url, folder

    def host(self, name: str, secret: Secret | None = None, **more: object) -> AbstractAsyncContextManager[Host]:
        return attending(fleet(self.url, **{"host": name, "ttlMs": TTL, **more}), self.folder / name, secret)


@pytest.fixture
def shared(postgres: Cluster, tmp_path: Path) -> Shared:
    return Shared(postgres, tmp_path)


@asynccontextmanager
async def behind(postgres: Cluster, folder: Path) -> AsyncIterator[Behind]:
    direct = postgres.database()
    proxy = Proxy(lambda: postgres.port)
    await proxy.start()
    try:
        yield Behind(proxy, direct.replace(f":{postgres.port}/", f":{proxy.port}/"), folder)
    finally:
        await proxy.close()


def counted(host: Host) -> list[int]:
    """The moments at which a host asks its database from now on."""
    asked, ask = list[int](), host.member._line.asking.ask

    async def noted(*given: Any) -> Any:
        asked.append(boottime())
        return await ask(*given)

    host.member._line.asking.ask = noted
    return asked


async def holding(host: Host) -> None:
    await until(lambda: host.member.state == "holder")


async def test_a_lock_that_a_bind_waits_for_stops_no_renewal(shared):
    async with shared.host("a", ttlMs=LONG) as a:
        await holding(a)
        with shared.beside() as on:
            on.execute("LOCK TABLE bound")
            binding = asyncio.create_task(a.sign(1))
            waits = f"SELECT count(*) FROM pg_stat_activity WHERE {on.info.backend_pid} = ANY(pg_blocking_pids(pid))"  # noqa: S608
            await until(lambda: shared.ask(waits) == [(1,)])
            for _ in range(3):
                assert await a.member._renew()
            assert shared.ask(waits) == [(1,)]
            assert not binding.done()
        await binding


async def test_a_claim_waits_for_a_bind_that_renewals_do_not_wait_for(shared):
    async with shared.host("a", ttlMs=LONG) as a, shared.host("b", claim="manual", ttlMs=LONG) as b:
        await holding(a)
        with shared.beside() as bind:
            assert bind.execute("SELECT epoch FROM fleet FOR KEY SHARE").fetchone() == (1,)
            assert await a.member._renew()
            claiming = asyncio.create_task(b.member.claim(force=True, reason="a test"))
            waits = f"SELECT count(*) FROM pg_stat_activity WHERE {bind.info.backend_pid} = ANY(pg_blocking_pids(pid))"  # noqa: S608
            await until(lambda: shared.ask(waits) == [(1,)])
            assert bind.execute("SELECT epoch FROM fleet").fetchone() == (1,)
        await claiming
        assert b.member.state == "holder"


async def test_a_copy_of_a_process_loses_the_epoch_at_its_first_renewal(shared, caplog):
    """As of a virtual machine that was cloned: both have one memory, each a connection of its own."""
    told = []
    async with shared.host("a", ttlMs=LONG) as a:
        await holding(a)
        clone = Membership(shared.place("a", ttlMs=LONG), a.member._store)
        clone._machine = clone._line._machine = copy.deepcopy(a.member._machine)
        clone._tell = lambda record, **details: told.append((record, details["epoch"]))
        clone._told = ("holder", 1)
        assert await a.member._renew()
        with caplog.at_level(logging.ERROR):
            assert not await clone._renew()
        assert (clone.state, clone.lease.is_over, told) == ("follower", True, [("fleet-lost", 1)])
        assert "a copy of this process renews the lease" in caplog.text
        await clone._claim(force=True, reason="it must not")
        await clone._see()
        assert (clone.state, clone.epoch) == ("follower", 1)
        assert await a.member._renew()
        await clone._line.asking.close()


async def test_a_renewal_whose_answer_is_lost_costs_no_epoch(postgres, tmp_path):
    async with behind(postgres, tmp_path) as there, there.host("a", ttlMs=LONG) as a:
        await holding(a)
        before = a.member._machine.row.renewals
        failed = a.member.renewals_failed
        there.proxy.hold(requests=False)
        lost = asyncio.create_task(a.member._renew())
        with postgres.connect(there.url.rsplit("/", 1)[1]) as on:
            asked = "SELECT renewals FROM hsmcore_tests.fleet"
            await until(lambda: on.execute(asked).fetchone() > (before,))
            there.proxy.cut()
            there.proxy.heal()
            assert await lost  # sent once more, and told apart by its mark
            await until(lambda: on.execute(asked).fetchone() > (before + 1,))
        assert (a.member.state, a.member._machine.epoch, a.member.renewals_failed) == ("holder", 1, failed)


@pytest.mark.slow("leases end")
@SEALED
async def test_a_connection_that_loses_bytes_costs_no_more_than_a_lease(postgres, tmp_path, capsys, secret):
    """All bytes are lost for a second, and no connection is closed."""
    async with behind(postgres, tmp_path) as there, there.host("a", secret) as a:
        await holding(a)
        assert await a.sign(1) == ""
        there.proxy.silent = True
        begun, position, before = monotonic(), 2, a.member._machine.row.renewals
        binding = asyncio.create_task(a.sign(position))
        await asyncio.sleep(1)
        there.proxy.silent = False
        while (refused := await binding) != "":
            assert refused in ("StoreError", "StoreUnknown", "NotHolder")
            binding = asyncio.create_task(a.sign(position))
        with capsys.disabled():
            print(f"\n  next block {monotonic() - begun:.2f} s after the first lost byte")  # noqa: T201
        await holding(a)
        assert a.member._machine.epoch == 1
        assert a.member._machine.row.renewals < before + 5 * RENEWALS  # not as long as an answer is waited for else


async def test_a_holder_whose_connection_lost_bytes_keeps_its_epoch(postgres, tmp_path):
    async with behind(postgres, tmp_path) as there, there.host("a", ttlMs=LONG) as a:
        await holding(a)
        direct = there.url.replace(f":{there.proxy.port}/", f":{postgres.port}/")
        async with attending(fleet(direct, host="b", ttlMs=LONG), tmp_path / "b") as b:
            renewals = a.member._machine.row.renewals
            there.proxy.silent = True
            await until(lambda: there.proxy.silenced > 0)
            there.proxy.silent = False
            await until(lambda: a.member._machine.row.renewals > renewals or b.member.epoch > 1)
            assert (a.member.epoch, b.member.epoch) == (1, 1)


async def test_a_renewal_that_was_done_and_not_answered_in_time_is_known_by_its_mark(shared):
    async with shared.host("a", ttlMs=LONG) as a:
        await holding(a)
        inner, before = a.member._line.asking.ask, a.member._machine.row.renewals

        async def unheard(*given):
            a.member._line.asking.ask = inner
            await inner(*given)
            raise StoreUnknown("no answer in time")

        a.member._line.asking.ask = unheard
        with pytest.raises(StoreUnknown):
            await a.member._renew()
        assert await a.member._renew()
        assert (a.member._machine.epoch, a.member._machine.row.renewals >= before + 2) == (1, True)


async def test_rare_work_on_a_connection_that_lost_bytes_ends_once_the_lease_has_another_one(
    postgres, tmp_path, monkeypatch
):
    """Such as a host's answer to an incident, for which all others wait."""
    monkeypatch.setattr(Patient.be_patient, "__defaults__", (90.0,))
    async with behind(postgres, tmp_path) as there, there.host("a") as a:
        await holding(a)

        def loses(connection: Connection) -> None:
            there.proxy.lose(requests=False)
            connection.execute(select(1))

        failed = a.member.renewals_failed
        working = asyncio.create_task(a.member._store.run(loses))
        await until(lambda: a.member.renewals_failed > failed)
        there.proxy.silent = False
        with pytest.raises(StoreError, match="does not answer"):
            await working
        await holding(a)


async def test_a_host_compares_its_log_while_another_transaction_has_its_turn(shared):
    """Else an incident waits for the turns of all hosts, each as long as some round trips to the database."""
    async with shared.host("a", ttlMs=LONG) as a:
        await holding(a)
        assert await a.sign(1) == ""
        with shared.beside() as on:
            on.execute("SELECT FROM schema_version FOR UPDATE")
            compared, standing = await a.member._witness.compare(), await a.member._witness.standing()
            assert (compared.lacking, compared.looked > 0, standing.open) == ([], True, False)


async def test_closing_waits_for_no_server_that_is_silent(postgres, tmp_path, capsys):
    async with behind(postgres, tmp_path) as there, there.host("a", ttlMs=60_000) as a:
        await holding(a)
        there.proxy.silent = True
        begun = monotonic()
        async with asyncio.timeout(LONG / 1e3):  # an answer is waited for far longer
            await a.member.close()
        with capsys.disabled():
            print(f"\n  closed in {monotonic() - begun:.2f} s")  # noqa: T201


async def test_the_reason_of_a_claim_that_is_not_made_is_logged_once(shared, caplog):
    async with shared.host("a", ttlMs=LONG) as a:
        await holding(a)
        assert await a.sign(3) == ""
    async with shared.host("b", ttlMs=LONG) as b:
        b.member.caught_up(BLOCKS, 1)
        await until(lambda: "up to 1, and the fleet is at 3" in b.member.reason)
        for _ in range(3):
            await b.member._follow()
        assert caplog.text.count("leaves the epoch to others") == 1


async def test_a_holder_in_doubt_asks_the_fence(shared):
    async with shared.host("a", ttlMs=LONG) as a:
        await holding(a)
        a.member._renew = a.member._see  # it stays in doubt
        a.member._machine.doubt("a test")
        assert await a.sign(1) == ""
        assert (a.member.state, boottime() < a.member._machine.until) == ("doubtful", True)


@pytest.mark.slow("a delay for each message")
@pytest.mark.parametrize("trip", [20, 60, 100])
async def test_a_database_that_is_far_away_refuses_nothing(postgres, tmp_path, trip):
    """With the default lease, and nothing broken. `trip`: milliseconds there and back."""
    async with behind(postgres, tmp_path) as there:
        there.proxy.delay = trip / 2e3
        async with there.host("a", ttlMs=2000) as a:
            await holding(a)
            answers, over = [], 0
            for position in range(40):
                binding = asyncio.create_task(a.sign(position))
                await asyncio.sleep(0.05)
                over += a.member.lease.is_over
                answers.append(await binding)
            assert (over, {*answers}) == (0, {""})


@pytest.mark.slow("a delay for each message")
async def test_a_lease_that_is_too_short_for_the_way_to_the_database_is_refused(postgres, tmp_path):
    async with behind(postgres, tmp_path) as there:
        place = fleet(there.url, host="a", ttlMs=1000)
        await (await Store.open(place)).close()  # makes the tables
        there.proxy.delay = 0.15
        with pytest.raises(StoreUnknown, match=r"no connection within 0.5 s, half of fleet.ttlMs"):
            await Membership.open(place)


@pytest.mark.slow("a delay for each message")
async def test_a_first_connection_that_takes_long_is_dialled_again(postgres, tmp_path, monkeypatch):
    """There is no lease yet that ends."""
    async with behind(postgres, tmp_path) as there:
        dialled, failed = Asker._dialled, []

        async def late(asker: Asker) -> Any:
            there.proxy.delay = 0.0 if failed else 0.15
            try:
                return await dialled(asker)
            except TimeoutError as error:
                failed.append(str(error))
                raise

        monkeypatch.setattr(Asker, "_dialled", late)
        member = await Membership.open(fleet(there.url, host="a", ttlMs=1000))
        await member.close()
        assert failed[0] == "no connection within 0.5 s, half of fleet.ttlMs"


@pytest.mark.slow("a lease ends")
@SEALED
async def test_a_follower_whose_connections_lost_bytes_takes_over(postgres, tmp_path, capsys, secret):
    """It asks on another connection, instead of waiting for the answer."""
    async with behind(postgres, tmp_path) as there, there.host("b", secret) as b:
        direct = there.url.replace(f":{there.proxy.port}/", f":{postgres.port}/")
        await holding(b)
        async with attending(fleet(direct, host="a", ttlMs=TTL), tmp_path / "a", secret) as a:
            await b.member.release("a test")
            await holding(a)
            there.proxy.silent = True
            await asyncio.sleep(1)
            there.proxy.silent = False
            looks = counted(a)  # it looks on, and renews no more, as if it was killed
            a.member._renew = a.member._see
            begun = monotonic()
            await holding(b)
            with capsys.disabled():
                print(f"\n  takeover {monotonic() - begun:.2f} s after the last renewal")  # noqa: T201
            assert b.member.epoch == 3
            assert len(looks) < 6 * LOOKS  # not as long as an answer is waited for else


async def test_a_dial_that_is_lost_is_not_waited_for_alone(postgres, tmp_path):
    """What was sent while bytes were lost has no answer, and the next one has."""
    async with behind(postgres, tmp_path) as there:
        store = await Store.open(fleet(there.url, ttlMs=LONG))
        asking = store.asking()
        there.proxy.silent, before = True, there.proxy.silenced
        asked = asyncio.create_task(asking.ask([rows.sharing("tests")], LONG / 1e3))
        await until(lambda: there.proxy.silenced > before)
        there.proxy.silent = False
        assert (await asked).answers == [[]]
        await asking.close()
        await store.close()


async def test_a_late_answer_has_the_store_s_connection_dialled_again(postgres, tmp_path):
    async with behind(postgres, tmp_path) as there:
        store = await Store.open(fleet(there.url, ttlMs=LONG))
        asking, link = store.asking(), store._database._link
        await asking.ask([rows.sharing("tests")], LONG / 1e3)
        there.proxy.silent = True
        with pytest.raises(StoreUnknown, match=r"not answer: \d+\.\d+ s, where .* for 0\.1 s; .* dialled again"):
            await asking.ask([rows.sharing("tests")], 0.1)
        await until(lambda: not link.is_open)
        there.proxy.silent = False
        assert await store.run(lambda connection: connection.exec_driver_sql("SELECT 1").scalar()) == 1
        await asking.close()
        await store.close()


async def test_a_host_that_waits_asks_twice_a_second(shared):
    """With a lease of two seconds, as long as its end is far away."""
    async with shared.host("a", ttlMs=60_000) as a, shared.host("b", ttlMs=2000, claim="manual") as b:
        await holding(a)
        asked = counted(b)
        await until(lambda: len(asked) > 3)
        assert all(later - earlier > 400_000_000 for earlier, later in itertools.pairwise(asked))


async def test_one_renewal_that_fails_is_counted_and_no_doubt(shared):
    async with shared.host("a", ttlMs=LONG) as a:
        await holding(a)
        assert await a.member._renew()
        inner = a.member._line.asking.ask

        async def lost(*_given):
            a.member._line.asking.ask = inner
            raise StoreUnknown("no answer")

        a.member._line.asking.ask = lost
        a.member._renewed_at = 0
        await a.member._look()
        assert (a.member.state, a.member.renewals_failed) == ("holder", 1)


async def test_a_bind_waits_for_a_standby_that_is_away(tmp_path):
    """Nothing else is confirmed meanwhile, so its connection is not taken for one that has lost bytes."""
    with cluster() as server:
        standby = server.standby()
        url = server.database()
        async with attending(fleet(url, host="a", ttlMs=1000, singleNode=False), tmp_path / "a") as a:
            await holding(a)
            assert await a.sign(1) == ""
            standby.stop(how="immediate")
            binding = asyncio.create_task(a.sign(2))
            failed = a.member.renewals_failed
            await until(lambda: a.member.renewals_failed > failed + 8)  # for more than a second
            assert not binding.done()
            standby.start()
            assert await binding == ""


@pytest.mark.parametrize("unordered", ["lease", "strict"])
async def test_another_key_signs_from_its_activation_on(world, postgres, unordered):
    """With one member, whose keys have numbers."""
    second, rules = world.keys["second"], fleet(postgres.database(), ttlMs=LONG, unordered=unordered)
    given = {"store": {"url": rules.store.url.resolve().decode()}, "name": rules.name, "unordered": unordered}
    config = world.config(fleet=given | {"ttlMs": LONG, "singleNode": True}, maxCacheSize=0)
    async with opened(config) as manager:
        await until(lambda: manager.fleet.state == "holder")
        await manager.sign(b"a")
        await manager.set_current_key_id(second.id)
        assert is_good("ed25519", second.public_key, b"b", await manager.sign(b"b"))
