"""Checks of the epoch that signatures wait for: they overlap, each is for those that were there, and none is late."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from psycopg.pq import TransactionStatus
from tests.chaos.test_lease import a_lease
from tests.support.chaos import engine_of
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until
from tests.support.postgres import Cluster, fleet
from tests.support.softhsm import Token

import hsmcore
from hsmcore.base.steady import boottime
from hsmcore.errors import DeadlineExceeded, NotHolder
from hsmcore.fleet.confirmations import Confirmations
from hsmcore.fleet.membership import Membership
from hsmcore.state import StoreUnknown
from hsmcore.state.postgres.link import ANSWER_SECONDS

pytestmark = [pytest.mark.integration, one_loop]


class Checks:
    """Checks that end when they are told to."""

    def __init__(self) -> None:
        self.under_way: list[asyncio.Future[bool]] = []

    async def __call__(self) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.under_way.append(answer)
        return await answer

    async def begun(self, count: int) -> None:
        await until(lambda: len(self.under_way) == count)


class Strict:
    """A key manager whose answers await checks."""

    def __init__(self, manager: hsmcore.KeyManager) -> None:
        self.manager, self.checks, self.leads = manager, Checks(), True
        self.lease = a_lease()
        self.confirmations = Confirmations(self.lease, self.checks, lambda: self.leads)
        engine_of(manager).hand_out_under(self.lease)

    async def awaited(self, count: int) -> None:
        await until(lambda: self.lease.awaited == count)

    def end(self, number: int, *, good: bool = True) -> None:
        self.checks.under_way[number].set_result(good)

    async def recorded(self, message: bytes) -> list[tuple[str, str | None]]:
        """Result and error of each record of a message, the oldest first."""
        match = {"message_sha256": hashlib.sha256(message).hexdigest()}
        return [(one["result"], one.get("error")) async for one in self.manager.audit.query(match=match)]


@pytest.fixture(params=[False, True], ids=["not recorded", "recorded"])
def begin(request: pytest.FixtureRequest, world: Token, tmp_path: Path) -> AbstractAsyncContextManager[Strict]:
    log = {"auditLogFile": str(tmp_path / "audit.log")} if request.param else {}

    @asynccontextmanager
    async def begun() -> AsyncIterator[Strict]:
        async with opened(world.config(**log)) as manager:
            made = Strict(manager)
            try:
                yield made
            finally:
                made.lease.until = 0
                await made.confirmations.close()

    return begun()


async def test_a_check_is_only_for_those_that_were_there_and_one_is_under_way_at_a_time(begin):
    async with begin as strict:
        sign = strict.manager.sign
        first = start(sign(b"first"))
        await strict.checks.begun(1)
        late = [start(sign(b"late")), start(strict.manager.sign_with_receipt(b"later"))]
        late.append(start(strict.manager.sign_many([b"many", b"of them"])))
        await strict.awaited(5)
        strict.end(0)
        assert await first
        await strict.checks.begun(2)
        assert not any(one.done() for one in late)
        again = start(sign(b"first"))  # from the cache
        await strict.awaited(5)
        strict.end(1, good=False)  # the epoch is this host's as far as is known: asked again
        await strict.checks.begun(3)
        assert not any(one.done() for one in (*late, again))
        strict.checks.under_way[2].set_exception(StoreUnknown("no answer"))  # as well, at once
        await strict.checks.begun(4)
        strict.checks.under_way[3].set_exception(ValueError("rows may hold anything"))
        await strict.checks.begun(5)
        strict.end(4)
        assert all(await asyncio.gather(*late, again))
        assert strict.lease.awaited == 0


async def test_what_is_not_confirmed_is_refused_once_the_epoch_is_another_s(begin):
    async with begin as strict:
        asked = [start(strict.manager.sign(b"a"))]
        await strict.checks.begun(1)
        asked.append(start(strict.manager.sign_many([b"b", b"c"])))
        await strict.awaited(3)
        strict.leads, strict.lease.until, strict.lease.reason = False, 0, "epoch 8 is held by b"
        strict.end(0, good=False)
        await strict.checks.begun(2)
        strict.end(1, good=False)
        for one in asked:
            with pytest.raises(NotHolder, match="held by b") as caught:
                await one
            assert caught.value.maybe_signed


async def test_each_has_its_own_deadline(begin):
    async with begin as strict:
        patient = start(strict.manager.sign(b"patient", 60))
        await strict.checks.begun(1)
        with pytest.raises(DeadlineExceeded, match="did not confirm the epoch in time") as caught:
            await strict.manager.sign(b"late", 0.5)
        assert caught.value.maybe_signed
        assert not patient.done()
        strict.end(0)
        assert await patient
        if strict.manager.audit.journal is not None:  # it says what the callers were told
            assert await strict.recorded(b"late") == [("ok", None), ("error", "DEADLINE_EXCEEDED")]
            assert await strict.recorded(b"patient") == [("ok", None)]


async def test_those_that_leave_take_no_check_from_those_that_come_next(begin):
    async with begin as strict:
        for number in range(2):
            leaves = start(strict.manager.sign(b"leaves %d" % number))
            await strict.checks.begun(2 * number + 1)
            other = start(strict.manager.sign(b"leaves, too %d" % number))
            await strict.awaited(2)
            leaves.cancel()
            other.cancel()
            await strict.awaited(0)
            strict.end(2 * number)
            stays = start(strict.manager.sign(b"stays %d" % number))
            await strict.checks.begun(2 * number + 2)
            strict.end(2 * number + 1)
            assert await stays


async def test_a_check_waits_for_others_for_a_moment_and_not_for_the_last_ones(begin, monkeypatch):
    async with begin as strict:
        monkeypatch.setattr("hsmcore.fleet.confirmations.MOST_PACE", math.inf)
        first = start(strict.manager.sign(b"first"))
        await strict.checks.begun(1)
        last = start(strict.manager.sign(b"last"))
        await strict.awaited(2)
        strict.end(0)
        assert await first
        await strict.checks.begun(2)  # nothing is being signed: nothing is waited for
        strict.end(1)
        assert await last


async def test_a_check_waits_for_no_transaction_of_the_store(postgres: Cluster):
    """Another transaction has its turn; and one that ends the connections of checks costs nobody an answer."""
    url = postgres.database()
    member = await Membership.open(fleet(url, ttlMs=60_000, unordered="strict"))
    member.begin(lambda *_, **__: None)
    try:
        await until(lambda: member.state == "holder")
        with postgres.connect(url.rsplit("/", 1)[1]) as other, other.transaction():
            other.execute("SELECT FROM hsmcore_tests.schema_version FOR UPDATE")
            turn = asyncio.ensure_future(member._store.run(lambda _: None))
            assert await member._confirm()
            assert not turn.done()
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND state = 'idle'"
            )
            assert await member._confirm()
        await turn
        await member.release("a test")
        assert not await member._confirm()
    finally:
        await member.close()


async def test_a_connection_that_is_reset_behind_a_question_costs_nobody_an_answer(postgres: Cluster):
    """The server ends it without having read the question. What it says then and the reset reach the loop as one."""
    url = postgres.database()
    database = url.rsplit("/", 1)[1]
    member = await Membership.open(fleet(url, ttlMs=60_000, unordered="strict"))
    member.begin(lambda *_, **__: None)
    try:
        await until(lambda: member.state == "holder")
        assert await member._confirm()
        store = await member._store.run(lambda on: on.exec_driver_sql("SELECT pg_backend_pid()").scalar())
        [asker] = set(postgres.backends(database)) - {store}
        os.kill(asker, signal.SIGSTOP)
        try:
            postgres.execute(f"SELECT pg_terminate_backend({asker})")
            confirmed = start(member._confirm())
            server = member._line.asking._driver.pgconn
            await until(lambda: server.transaction_status == TransactionStatus.ACTIVE)  # it is sent
        finally:
            os.kill(asker, signal.SIGCONT)
        async with asyncio.timeout(ANSWER_SECONDS / 3):
            assert await confirmed
    finally:
        await member.close()


async def test_an_answer_that_comes_when_the_lease_is_over_is_not_good(postgres: Cluster, monkeypatch):
    """Behind it another host may have claimed: the answer says what was so when the database gave it."""
    member = await Membership.open(fleet(postgres.database(), ttlMs=1000, unordered="strict", singleNode=True))
    member.begin(lambda *_, **__: None)
    try:
        await until(lambda: member.state == "holder")
        monkeypatch.setattr(member._machine, "renewed", lambda row, _, now: member._machine.saw(row, now))
        assert await member._renew()
        await until(lambda: not member._machine.holds(boottime()))
        assert member.epoch
        assert not await member._renew()
        assert not await member._confirm()
    finally:
        await member.close()


@pytest.mark.parametrize(
    "change",
    ["epoch = epoch + 1", "holder = 'another'", "released = 1", "renewals = renewals + 1, renewed_by = 'a copy'"],
)
async def test_one_server_alone_is_asked_and_confirms_no_row_that_has_changed(postgres: Cluster, change: str):
    url = postgres.database()
    name = url.rsplit("/", 1)[1]
    member = await Membership.open(fleet(url, ttlMs=60_000, unordered="strict", singleNode=True))
    member.begin(lambda *_, **__: None)
    try:
        await until(lambda: member.state == "holder")
        before = postgres.execute("SELECT renewals, xmin FROM hsmcore_tests.fleet", name)
        for _ in range(3):
            assert await member._confirm()
        assert postgres.execute("SELECT renewals, xmin FROM hsmcore_tests.fleet", name) == before, "it was only asked"
        with postgres.connect(name) as other:
            other.execute(f"UPDATE hsmcore_tests.fleet SET {change}".encode())  # noqa: S608
        assert not await member._confirm()
    finally:
        await member.close()
