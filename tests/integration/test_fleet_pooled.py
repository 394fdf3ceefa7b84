"""Hosts of a fleet behind PgBouncer in transaction mode, which gives each transaction to any of its connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from tests.support.attending import Host, attending
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.postgres import Bouncer, Cluster, fleet

pytestmark = [pytest.mark.integration, one_loop]
Begin = Callable[..., AbstractAsyncContextManager[Host]]


@pytest.fixture
def database(postgres: Cluster) -> str:
    """A database's name."""
    return postgres.database().rpartition("/")[2]


@pytest.fixture
def begin(pooler: Bouncer, database: str, tmp_path: Path) -> Begin:
    """Begin a host. Its lease lasts longer than the test, so whatever it learns, it learns from its own transaction."""

    def made(name: str, **more: Any) -> AbstractAsyncContextManager[Host]:
        return attending(fleet(pooler.url(database), host=name, ttlMs=60_000, **more), tmp_path / name)

    return made


async def test_a_bind_is_before_a_claim_or_refused(begin):
    async with begin("a") as a, begin("b", claim="manual") as b:
        await until(lambda: a.member.state == "holder")
        assert [await a.sign(1), await a.sign(1, "another"), await a.sign(2)] == ["", "DoubleSign", ""]
        await b.member.claim(force=True, reason="a test")
        assert (a.member.state, await a.sign(3)) == ("holder", "NotHolder")
        assert [await b.sign(2, "another"), await b.sign(3)] == ["DoubleSign", ""]


async def test_a_claim_waits_for_a_bind_that_is_open(begin, postgres, database):
    async with begin("a") as a, begin("b", claim="manual") as b:
        await until(lambda: a.member.state == "holder")
        with postgres.connect(database) as on, on.transaction():
            assert on.execute("SELECT epoch FROM hsmcore_tests.fleet FOR SHARE").fetchone() == (1,)
            claiming = asyncio.ensure_future(b.member.claim(force=True, reason="a test"))
            await until(lambda: postgres.backends(database, "wait_event_type = 'Lock'") != [])
            assert on.execute("SELECT epoch FROM hsmcore_tests.fleet").fetchone() == (1,)
        await claiming
        assert (b.member.state, b.member.epoch) == ("holder", 2)


async def test_a_strict_check_finds_that_the_epoch_is_another_s(begin):
    async with begin("a", unordered="strict") as a, begin("b", claim="manual") as b:
        await until(lambda: a.member.state == "holder")
        assert all(await asyncio.gather(*(a.member._confirm() for _ in range(8))))
        await b.member.claim(force=True, reason="a test")
        assert a.member.state == "holder"
        assert not await a.member._confirm()
