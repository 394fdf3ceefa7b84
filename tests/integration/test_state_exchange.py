"""An exchange does in two messages to a server what it does statement by statement, and fails as one."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, select, update
from tests.support.postgres import Cluster, fleet
from tests.support.size import share

from hsmcore.config import Secret
from hsmcore.fleet.membership import Membership
from hsmcore.manager.policy.wants import PayloadPlace
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.state import RoleLost, Store, StoreError, StoreUnknown, positions
from hsmcore.state.exchange import CHANGED, Change, Question, one_by_one
from hsmcore.state.mark import Mark
from hsmcore.state.postgres import ask, link
from hsmcore.state.postgres import text as text_to_server
from hsmcore.state.schema import FLEET, FLEET_HOST, ROLE, SPENT

pytestmark = pytest.mark.integration
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
ALL = Question(select(SPENT).order_by(SPENT.c.name))


@pytest.fixture
def url(postgres: Cluster) -> str:
    return postgres.database()


class Session:
    """A store, and what it does both ways."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def rows(self) -> list[tuple[Any, ...]]:
        """What there is, in two messages; the same is found by a statement of its own."""
        found = [tuple(row) for row in await self.store.exchange([ALL], lambda answers: (answers[0], []))]
        beside = await self.store.run(one_by_one([ALL], lambda answers: ([tuple(row) for row in answers[0]], [])))
        assert found == beside
        return found


@settings(max_examples=share(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(TEXTS, st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4))
def test_values_arrive_as_they_are_whatever_they_hold(url, values):
    async def both() -> None:
        store = await Store.open(fleet(url))
        try:
            await store.run(lambda connection: connection.execute(SPENT.delete()))
            rows = [{"name": name, "minute": one, "amount": two} for name, (one, two) in values.items()]
            await store.exchange([], lambda _: (None, [Change(insert(SPENT), rows)]), turn=False)
            expected = {(name, *numbers) for name, numbers in values.items()}
            assert set(await Session(store).rows()) == expected
        finally:
            await store.close()

    asyncio.run(both())


async def test_a_change_that_is_required_and_changes_nothing_writes_nothing_at_all(url):
    store = await Store.open(fleet(url))
    added = Change(insert(SPENT), [{"name": "a", "minute": 1, "amount": 2}])
    missing = positions.change_of("nowhere", Mark(-1, 5, 1), Mark())
    for way in (store.exchange, lambda questions, decide: store.run(one_by_one(questions, decide))):
        with pytest.raises(StoreError, match=CHANGED) as caught:
            await way([], lambda _: (None, [added, missing]))
        assert not isinstance(caught.value, StoreUnknown)
        assert await Session(store).rows() == []
    await store.exchange([], lambda _: (None, [added]))  # the connection goes on
    assert await Session(store).rows() == [("a", 1, 2)]
    await store.close()


async def test_what_a_decision_raises_undoes_the_transaction(url):
    store = await Store.open(fleet(url))

    def decide(_: Any) -> Any:
        raise StoreError("no")

    with pytest.raises(StoreError, match="no"):
        await store.exchange([ALL], decide)
    assert await Session(store).rows() == []
    await store.close()


async def test_no_value_is_sent_that_is_neither_text_nor_number(url):
    store = await Store.open(fleet(url))
    for wrong in ("a\0b", b"bytes", None):
        changed = Change(insert(SPENT), [{"name": wrong, "minute": 1, "amount": 1}])
        with pytest.raises((TypeError, ValueError), match="no value of a statement"):
            await store.exchange([], lambda _, changed=changed: (None, [changed]))
    assert await Session(store).rows() == []
    await store.close()


@pytest.fixture
def messages(monkeypatch) -> list[bytes]:
    """What is sent to the server by exchanges, from now on."""
    sent: list[bytes] = []

    def said(driver: Any, text: bytes) -> Any:
        sent.append(text)
        return text_to_server.said(driver, text)

    monkeypatch.setattr(link, "said", said)
    return sent


async def test_an_exchange_in_a_role_asks_for_the_role_in_its_two_messages_and_is_refused_without_it(url, messages):
    store, other = await Store.open(fleet(url)), await Store.open(fleet(url))
    added = [Change(insert(SPENT), [{"name": "a", "minute": 1, "amount": 2}])]
    async with store.exclusively("rotation"):
        messages.clear()
        assert await store.exchange([ALL], lambda answers: (answers, added), turn=False) == [[]]
        asked, written = messages
        assert b"FOR UPDATE" in asked, "it takes its turn: else the role could be taken before it is committed"
        assert b".role" in asked or b"role." in asked
        assert written.endswith(b"; COMMIT")
        await other.run(lambda on: on.execute(update(ROLE).values(holder="another")))
        with pytest.raises(RoleLost, match="another has it now"):
            await store.exchange([ALL], lambda answers: (answers, added))
    assert await Session(store).rows() == [("a", 1, 2)]
    for each in (store, other):
        await each.close()


async def test_a_renewal_of_the_epoch_is_one_message_also_when_its_host_speaks(url, monkeypatch):
    """The time of both is the database's, within the statements: to ask for it would be a message of its own."""
    sent = []
    for name in ("saying", "saying_then"):
        real = getattr(ask, name)
        monkeypatch.setattr(ask, name, lambda *given, real=real: sent.append(given[1:]) or real(*given))
    rules, both = fleet(url, host="a", ttlMs=60_000), select(FLEET.c.renewals, FLEET_HOST.c.seen_ns)
    both = both.select_from(FLEET.join(FLEET_HOST, FLEET_HOST.c.name == "a"))
    membership = await Membership.open(rules)
    await membership.claim()
    assert await membership._renew()  # it says that it is the holder now
    for spoke_at in (membership._line._spoke_at, 0):
        membership._line._spoke_at = spoke_at
        before = await membership._store.rows(both)
        sent.clear()
        assert await membership._renew()
        assert len(sent) == 1
        after = await membership._store.rows(both)
        assert after[0]["renewals"] == before[0]["renewals"] + 1
        assert (after[0]["seen_ns"] > before[0]["seen_ns"]) == (spoke_at == 0)
    await membership.close()


@pytest.fixture
def alone(monkeypatch) -> list[bytes]:
    """What is sent to the server as whole transactions, from now on."""
    sent: list[bytes] = []
    monkeypatch.setattr(ask, "saying", lambda on, text: sent.append(text) or text_to_server.saying(on, text))
    return sent


async def test_under_a_seal_a_bind_is_the_statements_that_it_is_without_and_a_renewal_two_messages(
    postgres, messages, alone
):
    seen = {}
    for secret in (None, Secret.plain("s" * 32)):
        rules = fleet(postgres.database(), host="a", ttlMs=60_000)
        membership, store = await Membership.open(rules, secret), await Store.open(rules, secret)
        executed: list[str] = []
        event.listen(store._database._engine, "before_cursor_execute", lambda *given, to=executed: to.append(given[2]))
        await membership.claim()
        mark = Watermark(store, "a:1", membership)
        for first in range(2):  # the claim, the domain and the host are known after that
            await mark.require(PayloadPlace("chain/block", first, "0" * 64))
        for again in range(2):
            for sent in (messages, executed, alone):
                sent.clear()
            await mark.require(PayloadPlace("chain/block", 2 + again, "0" * 64, message=b"a"))
            assert (messages, executed) == ([], [])
            seen[secret] = [(text.count(b"; "), text.endswith(b"COMMIT")) for text in alone]
            await membership._renew()
        assert executed == []
        assert len(messages) == (0 if secret is None else 2), "without a seal, the lease has a connection of its own"
        await mark.close()
        await membership.close()
        await store.close()
    assert len(seen[None]) == 1
    assert len({str(one) for one in seen.values()}) == 1


async def test_a_store_that_others_have_sealed_is_not_written(url, monkeypatch):
    store = await Store.open(fleet(url))

    class Secret:
        def resolve(self) -> bytearray:
            return bytearray(b"a secret of more than 32 bytes, for tests only")

    with psycopg.connect(url, autocommit=True) as on:
        on.execute("INSERT INTO hsmcore_tests.seal VALUES ('store', 'x', 1, '{}', 'forged')")
    mark = Watermark(store, "host:1")
    with pytest.raises(StoreError, match="the state store is sealed"):
        await mark.require(PayloadPlace("chain/block", 1, "0" * 64))
    await mark.close()
    await store.close()


async def test_two_that_bind_one_position_at_the_same_time_have_one_winner(url):
    """Without turns, and without a fence: what the server itself refuses is an error of the store."""
    entered, go = threading.Event(), threading.Event()
    first = await Store.open(fleet(url))
    question = positions.question("chain/block", [1])
    row = dict(zip(positions.COLUMNS, ("chain/block", 1, "a" * 64, "host:1", 1, ""), strict=True))

    def decide(answers: Any) -> tuple[None, list[Change]]:
        assert positions.read(answers[0]) == (None, {})
        entered.set()
        assert go.wait(60)
        return None, [
            Change(positions.BIND, [row]), positions.change_of("chain/block", Mark(-1, 1, 1), None)
        ]  # fmt: skip

    bound = asyncio.ensure_future(first.exchange([question], decide, turn=False))
    assert await asyncio.to_thread(entered.wait, 60)
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("INSERT INTO hsmcore_tests.bound VALUES ('chain/block', 1, %s, 'host:2', 1, '')", ["b" * 64])
    go.set()
    with pytest.raises(StoreError) as caught:
        await bound
    assert not isinstance(caught.value, StoreUnknown)
    assert "duplicate key" in str(caught.value)
    mark, rows = await first.exchange([question], lambda answers: (positions.read(answers[0]), []))
    assert mark is None
    assert rows[1]["holder"] == "host:2"
    await first.close()


async def test_hosts_that_start_at_once_on_a_new_database_all_enter_their_fleet(url):
    """Each makes the row of the fleet if it finds none, and one of them does."""
    members = await asyncio.gather(*(Membership.open(fleet(url, host=name)) for name in ("a", "b", "c")))
    await asyncio.gather(*(member.close() for member in members))
