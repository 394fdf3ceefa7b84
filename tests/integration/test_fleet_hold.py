"""Planned switchovers of a fleet's database, and hosts that never come back: hosts without HSMs on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.attending import Host, attending
from tests.support.fleet_hosts import BLOCKS, digest
from tests.support.loops import one_loop
from tests.support.managers import becomes, until
from tests.support.postgres import Cluster, cluster, fleet

from hsmcore.config import Secret
from hsmcore.config.fleet import Fleet
from hsmcore.errors import BadArgument, NotHolder
from hsmcore.fleet import duties
from hsmcore.fleet.orders import order
from hsmcore.fleet.overview import overview
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.recovery import hold
from hsmcore.state import Store

pytestmark = [pytest.mark.integration, one_loop, pytest.mark.slow("standbys that are made and promoted")]
TTL = 3000


class Pair:
    """A primary and its standby, named together in the fleet's URL; and what operators do."""

    def __init__(self, primary: Cluster, folder: Path, *, synchronous: bool, secret: Secret | None) -> None:
        self.primary, self._folder = primary, folder
        self.standby = primary.standby(synchronous=synchronous)
        self._name = primary.database().rpartition("/")[2]
        self._secret = secret

    def place(self, host: str, **more: Any) -> Fleet:
        one, other = (each.url(self._name) for each in (self.primary, self.standby))
        url = one.replace("/" + self._name, f",127.0.0.1:{self.standby.port}/{self._name}")
        assert other.rpartition("@")[0] == one.rpartition("@")[0]
        return fleet(url, host=host, ttlMs=TTL, **more)

    def host(self, name: str, **more: Any) -> AbstractAsyncContextManager[Host]:
        return attending(self.place(name, **more), self._folder / name, self._secret)

    async def operator(self, work: Any) -> Any:
        """Do `work` with a connection and the server's identity."""
        store = await Store.open(self.place("x"), self._secret)
        try:
            return await store.run(lambda connection: work(connection, store.identity))
        finally:
            await store.close()

    async def hold(self) -> str:
        return str(await self.operator(lambda on, server: hold.hold(on, "tests", "a switchover", server)))

    async def resume(self, mark: str = "") -> int:
        return int(await self.operator(lambda on, server: hold.resume(on, "tests", mark, server)))

    async def status(self) -> dict[str, Any]:
        rules = self.place("x")
        return dict(await self.operator(lambda on, server: overview(on, rules, server)))

    async def drain(self, *hosts: str, off: bool = False) -> None:
        store = await Store.open(self.place("x"), self._secret)
        for host in hosts:
            await store.run(lambda on, host=host: order(on, host, "drain", None if off else "a test"))
        await store.close()

    async def retire(self, host: str) -> None:
        ttl = TTL * 1_000_000
        await self.operator(lambda on, _: hold.retire(on, "tests", host, "gone", ttl))

    def lags(self) -> None:
        """The standby gets nothing any more of what the primary writes; it has all that was written so far."""
        now = self.primary.execute("SELECT pg_current_wal_lsn()")[0][0]
        self.standby.until(f"SELECT pg_last_wal_replay_lsn() >= '{now}'", True)
        self.standby.stop()

    def switch(self, *, how: str = "fast") -> None:
        self.primary.stop(how=how)
        if how == "immediate":
            self.standby.start()
        self.standby.promote()


@contextmanager
def pair(folder: Path, *, synchronous: bool = True, secret: Secret | None = None) -> Iterator[Pair]:
    with cluster() as primary:
        yield Pair(primary, folder, synchronous=synchronous, secret=secret)


async def signs(position: int, *hosts: Host) -> None:
    async def signed() -> bool:
        return any([await host.sign(position) == "" for host in hosts])

    await becomes(signed)


@pytest.mark.parametrize("secret", [None, Secret.plain("s" * 32)], ids=["plain", "sealed"])
async def test_a_switchover_under_a_hold_waits_for_no_host_that_is_away(tmp_path, secret):
    with pair(tmp_path, secret=secret) as servers:
        async with servers.host("a") as a:
            async with servers.host("b", claim="manual"), servers.host("c", claim="manual"):
                await until(lambda: a.member.state == "holder")
            async with servers.host("b", claim="manual") as b:  # c is down for maintenance
                await signs(1, a)
                mark = await servers.hold()
                refused = a.mark.require(PayloadPlace(BLOCKS, 2, digest(2)))
                with pytest.raises(Exception, match="the fleet is held: a switchover") as caught:
                    await refused
                assert caught.value.retryable
                servers.switch()
                await until(lambda: b.member._witness.settled and b.member._store.identity[1] != "00000001")
                found = await servers.status()
                assert (found["incident"]["open"], found["databaseIsAnother"], found["mark"]) == (False, True, "")
                assert await servers.resume(mark) == 0
                await signs(2, a)
                assert (await servers.status())["incident"]["number"] == 0
        async with servers.host("c") as c:
            await signs(3, c)
            assert await c.sign(2, "another") == "DoubleSign"


async def test_a_switchover_after_a_drain_of_every_host_waits_for_none_that_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr(duties, "FLOORS", 1 << 30)  # a host that binds nothing has no other use for the database
    with pair(tmp_path) as servers:
        async with servers.host("a") as a, servers.host("b") as b:
            async with servers.host("c", claim="manual"):
                await signs(1, a, b)
            await servers.drain("a", "b")
            await until(lambda: a.member.drained and b.member.drained and not a.member.holder)
            mark = (await servers.status())["mark"]
            assert mark
            servers.switch()
            await until(lambda: a.member.incident + b.member.incident > 0)

            async def answered() -> bool:
                return (await servers.status())["incident"]["waiting"] == ["c"]

            await becomes(answered)
            with pytest.raises(BadArgument, match="does not have this mark"):
                await servers.resume("1-0000000000000000")
            assert await servers.resume(mark) == 0
            await servers.drain("a", "b", off=True)
            await signs(2, a, b)
            holder = a if a.member.state == "holder" else b
            assert holder.member._machine._lost_at < 0, "it has waited for a lease that cannot be forgotten"


async def test_the_mark_of_an_earlier_hold_is_an_incident(tmp_path):
    """The standby has a hold that ended long ago, and lacks what was bound since."""
    with pair(tmp_path, synchronous=False) as servers:
        async with servers.host("a") as a, servers.host("b", claim="manual") as b:
            await signs(1, a)
            mark = await servers.hold()
            servers.lags()
            assert await servers.resume(mark) == 0
            await signs(2, a)
            later = await servers.hold()
            servers.switch(how="immediate")

            async def refused() -> bool:
                found = await a.sign(3)
                assert found in ("FleetBehind", "NotHolder", "StoreError"), found
                incident = (await servers.status())["incident"]
                return incident["number"] > 0 and not incident["open"]

            await becomes(refused)  # both have answered
            for named in (later, mark):
                with pytest.raises(BadArgument, match="does not have this mark"):
                    await servers.resume(named)
            assert await servers.resume() == 0
            await signs(3, a, b)

            async def told() -> bool:  # who waits may not have seen yet that the incident is over
                return {await a.sign(2, "another"), await b.sign(2, "another")} == {"DoubleSign", "NotHolder"}

            await becomes(told)


async def test_a_hold_that_the_standby_never_had_is_an_incident(tmp_path):
    with pair(tmp_path, synchronous=False) as servers:
        async with servers.host("b", claim="manual") as b:
            async with servers.host("a") as a:
                await signs(1, a)
                servers.lags()
                await signs(2, a)
                mark = await servers.hold()
            servers.switch(how="immediate")
            await until(lambda: b.member.incident > 0)
            with pytest.raises(BadArgument, match="does not have this mark"):
                await servers.resume(mark)
            with pytest.raises(BadArgument, match="is open"):
                await servers.hold()
            async with servers.host("a") as a:
                await until(lambda: b.member.incident == 0)
                await signs(3, a, b)
                assert "DoubleSign" in {await a.sign(2, "another"), await b.sign(2, "another")}


async def test_a_hold_that_ends_without_its_mark_on_another_server_is_an_incident(tmp_path):
    with pair(tmp_path) as servers:
        async with servers.host("a") as a:
            async with servers.host("c", claim="manual"):
                await signs(1, a)
            await servers.hold()
            servers.switch()
            await until(lambda: a.member._store.identity[1] != "00000001")
            with pytest.raises(BadArgument, match="another one"):
                await servers.hold()
            number = await servers.resume()
            assert number > 0
            assert await a.sign(2) in ("FleetBehind", "NotHolder")
            async with servers.host("c", claim="manual"):
                await signs(2, a)


async def test_a_hold_that_ends_where_it_began_is_none(tmp_path):
    with pair(tmp_path) as servers:
        with pytest.raises(BadArgument, match="not held"):
            await servers.resume()
        async with servers.host("a") as a:
            await signs(1, a)
            first, second = await servers.hold(), await servers.hold()
            assert (await servers.status())["mark"] == second != first
            assert await a.sign(2) == "FleetBehind"
            with pytest.raises(BadArgument, match="does not have this mark"):
                await servers.resume(first)
            assert await servers.resume() == 0
            assert (await servers.status())["mark"] == ""
            await signs(2, a)


async def test_a_host_that_never_comes_back_is_waited_for_no_more(tmp_path):
    with pair(tmp_path) as servers:
        async with servers.host("a") as a:
            async with servers.host("c", claim="manual"):
                await signs(1, a)
                for host, why in (("a", "holds the epoch"), ("c", "c is there"), ("d", "has no host")):
                    with pytest.raises(BadArgument, match=why):
                        await servers.retire(host)
            assert (await servers.status())["lossWaitsFor"] == ["c"]
            await servers.retire("c")
            async with servers.host("c", claim="manual"):  # no incident is open: it has nothing to answer
                assert [one["retired"] for one in (await servers.status())["hosts"]] == [False, False]
            await servers.retire("c")
            found = await servers.status()
            assert (found["lossWaitsFor"], [one["retired"] for one in found["hosts"]]) == ([], [False, True])
            servers.switch()
            await until(lambda: a.member._store.identity[1] != "00000001")
            await signs(2, a)
            assert (await servers.status())["incident"]["number"] == 1  # which a alone has answered
            async with servers.host("c"):
                found = await servers.status()
                assert [one["retired"] for one in found["hosts"]] == [False, False]


async def test_a_retired_host_that_was_only_stopped_signs_no_more(tmp_path, monkeypatch):
    with pair(tmp_path) as servers:
        async with servers.host("a") as a, servers.host("b", claim="manual") as b:
            await signs(1, a)
            monkeypatch.setattr(hold, "AWAY_LEASES", -1)  # as if it had said nothing for so long
            await servers.retire("b")
            await until(lambda: b.member._line.superseded)
            with pytest.raises(NotHolder):
                await b.member.claim(force=True, reason="a test")
