"""Key managers of three hosts that rotate one key at the same time, on one database and one token."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from tests.support.postgres import fleet
from tests.support.rotation_racer import Racer

from hsmcore.state import Keys, Store

pytestmark = pytest.mark.integration


async def keys_of(url):
    store = await Store.open_to_read(fleet(url))
    try:
        return await Keys(store).all()
    finally:
        await store.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("races", [5, pytest.param(50, marks=pytest.mark.deep)])
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
        current = ""
        for race in range(races):
            for host in hosts:  # nobody has the role when they open
                host.tell_rotate()
            answers = [host.answer() for host in hosts]
            assert [answer.get("error") for answer in answers if "key" not in answer] == ["StoreBusy"] * 2, answers
            [made] = [answer["key"] for answer in answers if "key" in answer]
            assert made != current
            current = made
            for host in hosts:
                host.tell_close()
            assert [host.answer() for host in hosts] == [race + 2] * 3, "keys on the token"
    keys = asyncio.run(keys_of(url))
    assert (len(keys), keys[-1].key_id, keys[-1].state) == (races + 1, current, "active")
