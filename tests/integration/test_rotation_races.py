"""Key managers of three hosts that rotate one key at the same time, on one database and one token."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from tests.support.postgres import fleet
from tests.support.rotation_racer import Racer
from tests.support.size import share

from hsmcore.state import Keys, Store

pytestmark = pytest.mark.integration


async def keys_of(url):
    store = await Store.open_to_read(fleet(url))
    try:
        return await Keys(store).all()
    finally:
        await store.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("races", [share(5), pytest.param(50, marks=pytest.mark.deep)])
@pytest.mark.slow("three processes for each race")
def test_key_managers_of_three_hosts_that_race_make_one_key_each(fresh_token, tmp_path, postgres, races):
    token, url = fresh_token(), postgres.database()
    with ExitStack() as stack:
        hosts = []
        for name in ("x", "y", "z"):
            config = token.config(
                auditLogFile=str(tmp_path / f"{name}.log"),
                keyRotation={"intervalDays": 30, "overlapDays": 1},
                # The role lasts as long, on a machine that has no time for its holder.
                fleet={"store": {"url": url}, "name": "tests", "singleNode": True, "host": name, "ttlMs": 30_000},
            )
            hosts.append(stack.enter_context(Racer(config)))
        assert [host.answer() for host in hosts] == [True] * 3
        current = token.keys["ed25519"].id
        for race in range(races):
            for host in hosts:  # nobody has the role when they open
                host.tell_rotate(race + 1, current)
            answers = [host.answer() for host in hosts]
            for host in hosts:
                host.tell_close()
            [(made, found)] = {tuple(host.answer()) for host in hosts}
            assert (made != current, found) == (True, race + 2), "keys on the token"
            assert answers.count("StoreBusy") == 2, answers
            current = made
    keys = asyncio.run(keys_of(url))
    assert (len(keys), keys[-1].key_id, keys[-1].state) == (races + 1, current, "active")
