"""Who a client of the gateway is, and how much of its rules it has used up."""

import asyncio
import json
import math
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.support.loops import one_loop

from hsmcore.audit.record import current_caller
from hsmcore.config.gateway import GatewayClient
from hsmcore.errors import BadArgument, ConfigurationError, QueueFull
from hsmcore.gateway.clients import AT_ONCE, Directory, KnownClient, OpenWork
from hsmcore.gateway.front import core
from hsmcore.gateway.front.core import KnownClients
from hsmcore.gateway.tls import names_in
from hsmcore.manager.policy import callers as rate

TOKEN = "t" * 32


def rules(**given):
    """The rules of a client."""
    return GatewayClient.model_validate({"keys": ["default"], **given})


@pytest.fixture
def clock(monkeypatch):
    """Nanoseconds that go on as the test says."""
    now = [10**12]
    monkeypatch.setattr(rate, "monotonic_ns", lambda: now[0])
    return now


def test_clients_are_found_by_what_they_show():
    found = Directory(
        {
            "user": rules(uid=[5, 6]),
            "group": rules(gid=[7]),
            "named": rules(names=["dns:a.example", "spiffe://d/x"]),
            "other": rules(names=["dns:b.example"]),
            "token": rules(token=TOKEN),
        }
    )
    assert found.by_peer(5, 1).name == found.by_peer(6, 7).name == "user"
    assert found.by_peer(1, 7).name == "group"
    assert found.by_peer(0, 0) is None
    assert found.by_peer(1, 2, (3, 7)).name == "group"
    assert found.by_peer(5, 1, (7,)).name == "user"
    two = Directory({"one": rules(gid=[7, 9]), "two": rules(gid=[8])})
    assert (two.by_peer(1, 7, (7, 8)).name, two.by_peer(1, 2, (7, 9)).name) == ("one", "one")
    assert two.by_peer(1, 2, (7, 8)) is None
    told = as_told(found)
    assert told.by_names(["dns:z", "dns:a.example", "spiffe://d/x"]) == "named"
    assert told.by_names(["dns:a.example", "dns:b.example"]) is None
    assert told.by_names([]) is None
    assert told.by_token(TOKEN) == "token"
    assert told.by_token(TOKEN + "t") is None
    assert told.by_token("") is None
    assert told.by_token("\ud800" * 5000) is None
    assert TOKEN not in json.dumps(found.told())
    assert (found.fronted("wire"), found.fronted("vault")) == ({"named", "other"}, {"named", "other", "token"})


def as_told(directory):
    """What a front knows of the clients."""
    return KnownClients(1, json.loads(json.dumps(directory.told())))


def test_any_token_of_a_client_will_do_until_it_expires(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(core, "time", SimpleNamespace(time=lambda: now[0]))
    tokens = [{"token": "u" * 32, "expires": "1970-01-01T00:01:00Z"}, {"token": "v" * 32}]
    found = as_told(Directory({"web": rules(token=TOKEN, tokens=tokens), "other": rules(tokens=[{"token": "w" * 32}])}))
    assert [found.by_token(one * 32) for one in "tuvw"] == ["web", "web", "web", "other"]
    now[0] = 60.0
    assert found.by_token("u" * 32) is None
    assert found.refusal_of("u" * 32) == "the token of 'web' expired at 1970-01-01T00:01:00Z"
    assert found.refusal_of("x" * 32) == "unknown token"
    assert found.by_token("v" * 32) == "web"
    assert (rules(tokens=tokens).tokens_end, rules(tokens=tokens[:1]).tokens_end) == (math.inf, 60)
    assert rules(uid=[1]).tokens_end is None
    with pytest.raises(ConfigurationError, match="is a token of client 'web' already"):
        Directory({"web": rules(tokens=tokens), "other": rules(token="u" * 32)})


@pytest.mark.parametrize("expires", ["2027-01-31", "2027-01-31T00:00:00", "2027-02-31T00:00:00Z", "tomorrow", 1, ""])
def test_an_end_is_a_time_with_its_zone(expires):
    with pytest.raises(ValidationError, match="must be"):
        rules(tokens=[{"token": TOKEN, "expires": expires}])


def test_other_tokens_are_no_other_rules():
    client = KnownClient("web", rules(token=TOKEN))
    assert client.has_rules(rules(tokens=[{"token": "u" * 32, "expires": "2030-01-01T00:00:00Z"}]))
    assert not client.has_rules(rules(token=TOKEN, weight=2))


@pytest.mark.parametrize("token", ["short", "with a blank in it, although long", "ä" * 30, "t" * 31 + "\x7f"])
def test_a_token_that_is_none_is_refused_and_not_shown(token):
    with pytest.raises(ConfigurationError) as caught:
        Directory({"app": rules(token=token)})
    assert token not in str(caught.value)


def test_a_token_is_one_client_s():
    with pytest.raises(ConfigurationError, match="client 'one'"):
        Directory({"one": rules(token=TOKEN), "two": rules(token=TOKEN)})


def test_a_client_whose_rules_are_the_same_stays_and_a_changed_one_keeps_its_answers():
    before = Directory({"same": rules(token=TOKEN), "changed": rules(uid=[5]), "gone": rules(uid=[6])}).clients
    after = Directory({"same": rules(token=TOKEN + "t"), "changed": rules(uid=[7]), "new": rules(uid=[8])}, before)
    assert after.has(before["same"])
    assert as_told(after).by_token(TOKEN + "t") == "same"
    assert as_told(after).by_token(TOKEN) is None
    changed, new = after.clients["changed"], after.clients["new"]
    assert after.by_peer(7, 0) is changed is not before["changed"]
    assert (changed.sessions, changed.intake) == (before["changed"].sessions, before["changed"].intake)
    assert new.sessions is not changed.sessions
    assert not after.has(before["changed"])
    assert not after.has(before["gone"])


def test_requests_in_flight_are_limited():
    client = OpenWork(KnownClient("app", rules(uid=[1])), 3)
    client.begin(2)
    with pytest.raises(QueueFull) as caught:
        client.begin(2)
    assert 0 < caught.value.retry_after_ms <= 1000
    client.begin(1)
    client.end(2)
    client.begin(2)
    assert client.open == 3
    with pytest.raises(BadArgument) as final:  # what can never be open at a time is not asked for again
        client.begin(4)
    assert not final.value.retryable


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 2 * 10**9)), min_size=1, max_size=40),
)
def test_whatever_sizes_come_the_rate_is_kept_and_each_is_granted_that_waits_as_told(per_second, asked):
    """Batches larger than what a second allows are among them."""
    with patch.object(rate, "monotonic_ns") as clock:
        began = clock.return_value = 10**12
        client = OpenWork(KnownClient("app", rules(uid=[1], perSecond=per_second)), 300)
        granted = 0
        for count, later_ns in asked:
            clock.return_value += later_ns
            try:
                client.begin(count, signs=True)
            except QueueFull as refusal:
                told = refusal.retry_after_ms
                clock.return_value += (told - 1) * 1_000_000
                with pytest.raises(QueueFull):  # what it was told is not too long
                    client.begin(count, signs=True)
                clock.return_value += 1_000_000
                client.begin(count, signs=True)
            client.end(count)
            granted += count
            # Without the last one, whatever it was: no more than the rate and a burst.
            assert granted - count < per_second * ((clock.return_value - began) / 10**9 + 1) + 1e-6
        owed = max(granted - per_second, 0)
        clock.return_value += owed * 10**9 // per_second + 10**9
        client.begin(per_second, signs=True)  # all is paid back by then, and not before


def test_what_runs_for_a_client_is_recorded_as_its(clock):
    client = KnownClient("app", rules(uid=[1]))
    assert client.context.run(current_caller) == "app"
    assert current_caller() is None


def test_names_are_those_that_certificates_are_checked_for():
    names = (
        ("DNS", "A.example"),
        ("URI", "spiffe://d/x"),
        ("URI", "https://d/x"),
        ("email", "a@b"),
        ("IP Address", "::1"),
    )
    certificate = {"subject": ((("commonName", "cn.example"),),), "subjectAltName": names}
    assert names_in(certificate) == ("dns:a.example", "spiffe://d/x")
    assert names_in(None) == names_in({}) == ()


@one_loop
async def test_what_waits_goes_on_in_its_order_as_soon_as_there_is_room():
    work, went = OpenWork(KnownClient("app", rules(uid=[1])), 4), []

    class Waiting:
        def __init__(self, cost):
            self.cost = cost

        def go_on(self):
            work.release(self)
            work.begin(self.cost)
            went.append(self.cost)

    assert [work.must_hold(count) for count in (4, 5)] == [False, False]  # more than can ever be open are refused
    work.begin(3)
    assert [work.must_hold(count) for count in (1, 2)] == [False, True]
    for cost in (2, 1, 1, 3):
        work.held[Waiting(cost)] = None
    assert work.must_hold(1)  # behind the others, although there is room
    work.end(1)
    assert went == []
    await asyncio.sleep(0)
    assert went == [2]
    work.end(2)
    await asyncio.sleep(0)
    assert went == [2, 1, 1]
    work.end(4)
    await asyncio.sleep(0)
    assert went == [2, 1, 1, 3]
    assert not work.held
    for _ in range(3 * AT_ONCE):
        work.held[Waiting(0)] = None
    work.end(3)
    await asyncio.sleep(0)
    assert len(went) == 4 + AT_ONCE  # others of the loop have their turn
    for times in (2, 3):
        await asyncio.sleep(0)
        assert len(went) == 4 + times * AT_ONCE
