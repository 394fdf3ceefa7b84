"""Commits that a server lets go because synchronous_standby_names was emptied: it confirms them without a warning, and
no standby has them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.support.chaos import send_signal
from tests.support.loops import one_loop
from tests.support.managers import becomes, start, until
from tests.support.postgres import PASSWORD, USER, Bouncer, Cluster, fleet, newest

from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.state import Store, StoreError, StoreUnknown, positions
from hsmcore.state.exchange import CHANGED, Question
from hsmcore.state.mark import Mark
from hsmcore.state.schema import VERSION

pytestmark = [pytest.mark.integration, one_loop]
NAME = "receiver"
CHAIN = "chain/block"
QUESTION = positions.question(CHAIN, [1])
LOCKS = Question(select(VERSION).with_for_update(read=True))


@contextmanager
def receiver(postgres: Cluster, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A synchronous standby that keeps the server's log only. What is stopped is this process."""
    source = f"host=127.0.0.1 port={postgres.port} user={USER} password={PASSWORD} application_name={NAME}"
    command = [newest() / "pg_receivewal", "-D", folder, "--synchronous", "-d", source]
    with subprocess.Popen(command) as running:
        try:
            streaming = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"
            postgres.until(streaming, NAME)
            with postgres.changed(synchronous_standby_names=NAME):
                yield running
        finally:
            running.send_signal(signal.SIGCONT)
            running.terminate()


async def waits(postgres: Cluster, database: str) -> bool:
    return len(postgres.waiting_for_standby(database)) == 1


async def bind(store: Store) -> None:
    """As Watermark does, but what is unknown is not read again."""
    row = dict(zip(positions.COLUMNS, (CHAIN, 1, "a" * 64, "host:1", 1, ""), strict=True))
    changes = [positions.Change(positions.BIND, [row]), positions.change_of(CHAIN, Mark(), None)]
    await store.exchange([QUESTION], lambda _: (None, changes), turn=False)


async def write(store: Store) -> None:
    await store.run(positions.marks)


async def ask(store: Store) -> None:
    asking = store.asking()
    try:
        await asking.ask([LOCKS], 60)
    finally:
        await asking.close()


WAYS: list[Callable[[Store], Awaitable[Any]]] = [bind, write, ask]


@pytest.mark.parametrize(("pooled", "back"), [(False, False), (True, True)], ids=["emptied", "set again, pooled"])
async def test_a_commit_that_was_let_go_when_the_setting_was_emptied_is_unknown(
    postgres: Cluster, pooler: Bouncer, tmp_path: Path, pooled: bool, back: bool
) -> None:
    direct = postgres.database()
    database, url = direct.rpartition("/")[2], pooler.url_of(direct) if pooled else direct
    with receiver(postgres, tmp_path) as standby:
        store = await Store.open(fleet(url, singleNode=False, ttlMs=60_000))
        try:
            for way in WAYS:
                send_signal(standby.pid, signal.SIGSTOP)
                waiting = start(asyncio.wait_for(way(store), 60))
                await becomes(lambda: waits(postgres, database))
                [backend] = postgres.waiting_for_standby(database)
                if back:
                    send_signal(backend, signal.SIGSTOP)
                postgres.change(synchronous_standby_names="")
                if back:
                    postgres.change(synchronous_standby_names=NAME)
                    send_signal(backend, signal.SIGCONT)
                with pytest.raises(StoreUnknown, match="configuration was loaded"):
                    await waiting
                if not back:
                    with pytest.raises(StoreError, match="no synchronous standby") as caught:
                        await way(store)
                    assert "Set synchronous_standby_names" in (caught.value.hint or "")
                    postgres.change(synchronous_standby_names=NAME)
                send_signal(standby.pid, signal.SIGCONT)
        finally:
            await store.close()


async def test_what_fails_in_the_message_of_commit_writes_nothing(postgres: Cluster, tmp_path: Path) -> None:
    """As in test_state_exchange.py, where the server has no standby."""
    with receiver(postgres, tmp_path):
        store = await Store.open(fleet(postgres.database(), singleNode=False, ttlMs=60_000))
        added = positions.change_of(CHAIN, Mark(-1, 5, 1), None)
        missing = positions.change_of("nowhere", Mark(-1, 5, 1), Mark())
        for changes, why in (([added, missing], CHANGED), ([added, added], "duplicate key")):
            with pytest.raises(StoreError, match=why) as caught:
                await store.exchange([QUESTION], lambda _, changes=changes: (None, changes), turn=False)  # type: ignore[misc]
            assert not isinstance(caught.value, StoreUnknown)
            assert await store.run(positions.marks) == {}
        await bind(store)
        assert list(await store.run(positions.marks)) == [CHAIN]
        await store.close()


async def test_a_bind_that_was_let_go_is_read_again_by_its_digest(postgres: Cluster, tmp_path: Path) -> None:
    """By a transaction whose own end is on the standby, and so is what it read."""
    url = postgres.database()
    database = url.rpartition("/")[2]
    with receiver(postgres, tmp_path) as standby:
        store = await Store.open(fleet(url, singleNode=False, ttlMs=60_000))
        marks = Watermark(store, "host:1")
        send_signal(standby.pid, signal.SIGSTOP)
        waiting = marks.require(PayloadPlace(CHAIN, 1, "a" * 64))
        await becomes(lambda: waits(postgres, database))
        postgres.change(synchronous_standby_names="")
        await until(lambda: "no synchronous standby" in waiting.trouble)
        postgres.change(synchronous_standby_names=NAME)
        await becomes(lambda: waits(postgres, database))
        assert not waiting.done()
        send_signal(standby.pid, signal.SIGCONT)
        await waiting
        await marks.close()
        await store.close()
