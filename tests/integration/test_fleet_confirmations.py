"""Checks of the epoch that signatures wait for: they overlap, each is for those that were there, and none is late."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from time import monotonic

import pytest
from psycopg.pq import TransactionStatus
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.postgres import Cluster, fleet

from hsmcore.base.steady import boottime
from hsmcore.errors import DeadlineExceeded, NotHolder, error_of
from hsmcore.fleet.confirmations import Confirmations
from hsmcore.fleet.membership import Membership
from hsmcore.state import StoreUnknown
from hsmcore.state.postgres.link import ANSWER_SECONDS

pytestmark = [pytest.mark.integration, one_loop]


def refusal() -> Exception:
    return error_of("NOT_HOLDER")


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


async def test_a_check_is_only_for_those_that_were_there_and_one_is_under_way_at_a_time():
    checks = Checks()
    confirmations = Confirmations(checks, refusal)
    first = confirmations.wait(math.inf)
    await checks.begun(1)
    late = [confirmations.wait(math.inf), confirmations.wait(math.inf)]
    checks.under_way[0].set_result(True)
    await first
    await checks.begun(2)
    assert not any(one.done() for one in late)
    later = confirmations.wait(math.inf)
    checks.under_way[1].set_result(False)
    for one in late:
        with pytest.raises(NotHolder):
            await one
    await checks.begun(3)
    assert not later.done()
    checks.under_way[2].set_exception(StoreUnknown("no answer"))  # asked again
    await checks.begun(4)
    checks.under_way[3].set_result(True)
    await later
    await confirmations.close()


async def test_a_check_waits_for_others_for_a_moment_and_not_for_the_last_ones(monkeypatch):
    pace = 0.5
    monkeypatch.setattr("hsmcore.fleet.confirmations.MOST_PACE", pace)
    checks = Checks()
    confirmations = Confirmations(checks, refusal)
    loop = asyncio.get_running_loop()
    first = confirmations.wait(math.inf, 5)
    await checks.begun(1)  # none had begun lately
    waiting = [confirmations.wait(math.inf, 4)]
    checks.under_way[0].set_result(True)
    await first
    await asyncio.sleep(pace / 50)
    assert len(checks.under_way) == 1
    begun = loop.time()
    waiting.append(confirmations.wait(math.inf, 2))
    await checks.begun(2)
    waiting.append(confirmations.wait(math.inf, 9))
    checks.under_way[1].set_result(True)
    await checks.begun(3)
    assert loop.time() - begun >= pace
    checks.under_way[2].set_result(True)
    await asyncio.gather(*waiting)
    await confirmations.close()


async def test_each_has_its_own_deadline_and_one_timer_watches_all():
    checks = Checks()
    confirmations = Confirmations(checks, refusal)
    patient = confirmations.wait(math.inf)
    late, later = (confirmations.wait(monotonic() + seconds) for seconds in (0.05, 0.01))
    for future in (later, late):
        with pytest.raises(DeadlineExceeded, match="did not confirm the epoch in time"):
            await future
    assert not patient.done()
    checks.under_way[0].set_result(True)
    await patient
    await confirmations.close()


async def test_closing_leaves_nobody_waiting():
    checks = Checks()
    confirmations = Confirmations(checks, refusal)
    waiting = [confirmations.wait(math.inf)]
    await checks.begun(1)
    waiting.append(confirmations.wait(math.inf))
    await confirmations.close()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, (NotHolder, asyncio.CancelledError)) for one in done)


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
            await member.confirm()
            assert not turn.done()
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND state = 'idle'"
            )
            await member.confirm()
        await turn
        await member.release("a test")
        with pytest.raises(NotHolder):
            await member.confirm()
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
        await member.confirm()
        store = await member._store.run(lambda on: on.exec_driver_sql("SELECT pg_backend_pid()").scalar())
        [asker] = set(postgres.backends(database)) - {store}
        os.kill(asker, signal.SIGSTOP)
        try:
            postgres.execute(f"SELECT pg_terminate_backend({asker})")
            confirmed = member.confirm()
            server = member._line.asking._driver.pgconn
            await until(lambda: server.transaction_status == TransactionStatus.ACTIVE)  # it is sent
        finally:
            os.kill(asker, signal.SIGCONT)
        async with asyncio.timeout(ANSWER_SECONDS / 3):
            await confirmed
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
        with pytest.raises(NotHolder):
            await member.confirm(monotonic() + 5)
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
            await member.confirm()
        assert postgres.execute("SELECT renewals, xmin FROM hsmcore_tests.fleet", name) == before, "it was only asked"
        with postgres.connect(name) as other:
            other.execute(f"UPDATE hsmcore_tests.fleet SET {change}".encode())  # noqa: S608
        with pytest.raises(NotHolder):
            await member.confirm()
    finally:
        await member.close()
