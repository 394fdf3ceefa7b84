"""Several key managers of two hosts that begin together: where their epochs are, on PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.support.postgres import Cluster, fleet

from hsmcore.fleet.membership import Membership

pytestmark = pytest.mark.integration
TTL_MS = 4000
"""So long that a host whose turn is later does not overtake the other one on a busy machine."""
MANAGERS = ("blocks", "fees", "mints", "states")
NORTH, SOUTH = "north", "south"


class Site:
    """The memberships of two hosts, of which each key manager has one."""

    def __init__(self, open_: AsyncExitStack, url: str, prefer: dict[str, list[str]]) -> None:
        self._open, self._url, self._prefer = open_, url, prefer
        self.claimed: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.members: dict[tuple[str, str], Membership] = {}

    async def enter(self, host: str, manager: str) -> None:
        more: dict[str, Any] = {"prefer": self._prefer[manager]} if manager in self._prefer else {}
        rules = fleet(self._url, host=host, ttlMs=TTL_MS, **more).among(manager)
        member = self.members[manager, host] = await Membership.open(rules)
        self._open.push_async_callback(member.close)

    def begin(self) -> None:
        for (manager, host), member in self.members.items():

            def tell(record: str, host: str = host, manager: str = manager, **_: Any) -> None:
                if record == "fleet-claim":
                    self.claimed.put_nowait((manager, host))

            member.begin(tell)

    async def holders(self, count: int = len(MANAGERS)) -> dict[str, str]:
        return dict([await self.claimed.get() for _ in range(count)])


async def placed(open_: AsyncExitStack, url: str, prefer: dict[str, list[str]]) -> tuple[Site, dict[str, str]]:
    site = Site(open_, url, prefer)
    for manager in MANAGERS:
        for host in (SOUTH, NORTH):
            await site.enter(host, manager)
    site.begin()
    return site, await site.holders()


async def test_epochs_begin_where_prefer_says_and_end_up_on_the_host_that_lives(postgres: Cluster):
    wanted = dict(zip(MANAGERS, (NORTH, SOUTH, NORTH, SOUTH), strict=True))
    prefer = {name: [first, NORTH if first == SOUTH else SOUTH] for name, first in wanted.items()}
    async with AsyncExitStack() as open_:
        site, found = await placed(open_, postgres.database(), prefer)
        assert found == wanted
        await asyncio.gather(*(site.members[name, NORTH].close() for name in ("blocks", "mints")))
        assert await site.holders(2) == {"blocks": SOUTH, "mints": SOUTH}
        # A host that is preferred and comes back takes nothing from one that is well.
        again = Site(open_, site._url, prefer)
        await again.enter(NORTH, "blocks")
        again.begin()
        holder, member = site.members["blocks", SOUTH], again.members["blocks", NORTH]
        seen = set[int]()
        while len(seen) < 4:  # renewals of the holder, four of which are a lease
            assert (holder.epoch, member.claims) == (2, 0)
            seen.add(member._machine.row.renewals)
            await asyncio.sleep(0.01)


async def test_epochs_without_an_order_are_not_all_on_one_host(postgres: Cluster):
    async with AsyncExitStack() as open_:
        _, found = await placed(open_, postgres.database(), {})
        assert found == {"blocks": NORTH, "fees": SOUTH, "mints": NORTH, "states": SOUTH}
