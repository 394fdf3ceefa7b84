"""Checks of the epoch that signatures wait for: they overlap, each is for those that were there, and none is late."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from time import monotonic

import pytest
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.postgres import Cluster, fleet

from hsmcore.base.steady import boottime
from hsmcore.errors import DeadlineExceeded, NotHolder, error_of
from hsmcore.fleet.confirmations import AT_ONCE, Confirmations, EpochCheck
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


async def test_a_check_is_only_for_those_that_were_there_and_waits_for_none_before_it():
    checks = Checks()
    confirmations = Confirmations(checks, refusal)
    waiting = []
    for count in range(1, AT_ONCE + 1):
        waiting.append(confirmations.wait(math.inf))
        await checks.begun(count)
    late = confirmations.wait(math.inf)
    checks.under_way[1].set_result(True)  # in any order
    await waiting[1]
    assert not waiting[0].done()
    await checks.begun(AT_ONCE + 1)
    assert not late.done()
    checks.under_way[0].set_result(False)
    with pytest.raises(NotHolder):
        await waiting[0]
    checks.under_way[AT_ONCE].set_result(True)
    await late
    checks.under_way[2].set_exception(StoreUnknown("no answer"))  # asked again
    await checks.begun(AT_ONCE + 2)
    checks.under_way[AT_ONCE + 1].set_result(True)
    await waiting[2]
    await confirmations.close()


async def test_a_check_waits_for_others_for_a_moment_and_not_for_the_last_ones(monkeypatch):
    pace = 0.5
    monkeypatch.setattr("hsmcore.fleet.confirmations.MOST_PACE", pace)
    checks = Checks()
    confirmations = Confirmations(checks, refusal)
    loop = asyncio.get_running_loop()
    first = confirmations.wait(math.inf, 5)
    await checks.begun(1)  # none had begun lately
    begun = loop.time()
    waiting = [confirmations.wait(math.inf, 4)]
    await asyncio.sleep(pace / 50)
    assert len(checks.under_way) == 1
    waiting.append(confirmations.wait(math.inf, 2))
    await checks.begun(2)
    waiting.append(confirmations.wait(math.inf, 9))
    await checks.begun(3)
    assert loop.time() - begun >= pace
    for check in checks.under_way:
        check.set_result(True)
    await asyncio.gather(first, *waiting)
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


@pytest.mark.parametrize("single", [False, True])
async def test_a_check_of_a_single_node_only_reads(postgres: Cluster, single: bool):
    """There is no standby whose word it must wait for."""
    url = postgres.database()
    member = await Membership.open(fleet(url, ttlMs=60_000, unordered="strict", singleNode=True))
    locking = EpochCheck(member._store, member.name, member._machine, member._wake.set, single_node=False)
    check = member._check if single else locking
    member.begin(lambda *_, **__: None)
    try:
        await until(lambda: member.state == "holder")
        with postgres.connect(url.rsplit("/", 1)[1]) as other, other.transaction():
            other.execute("SELECT FROM hsmcore_tests.fleet FOR UPDATE")  # as a claim that is not committed
            asked = asyncio.ensure_future(check())
            await asyncio.wait({asked}, timeout=0.5)
            assert asked.done() == single
        assert await asked
        await locking.close()
    finally:
        await member.close()


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
        before = set(postgres.backends(database))
        await member.confirm()
        [asker] = set(postgres.backends(database)) - before
        os.kill(asker, signal.SIGSTOP)
        try:
            postgres.execute(f"SELECT pg_terminate_backend({asker})")
            confirmed = member.confirm()
            free = member._confirmations._check._free
            await until(lambda: len(free) < AT_ONCE)  # the question is sent
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
        monkeypatch.setattr(member._machine, "renewed", lambda *_: None)
        assert await member._check()
        await until(lambda: not member._machine.holds(boottime()))
        assert member.epoch
        assert not await member._check()
        with pytest.raises(NotHolder):
            await member.confirm(monotonic() + 5)
    finally:
        await member.close()
