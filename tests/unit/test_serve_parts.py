"""The console's parts without a server: tokens, limits, queues, rates, checks."""

from __future__ import annotations

import asyncio
import json
import statistics
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.size import share

from hsmcore.config import Monitoring, Secret
from hsmcore.config.monitoring import Address
from hsmcore.errors import ConfigurationError
from hsmcore.serve.access import FAILURES, STRANGERS, WAIT_SECONDS, Access, HeldTokens
from hsmcore.serve.app import _Guarded
from hsmcore.serve.attach import settings_of
from hsmcore.serve.checks import checks, ready
from hsmcore.serve.feed import KEPT, MAX_OF_ADDRESS, MAX_QUEUED, MAX_VIEWERS, MAX_WATCHERS, Feed, Full
from hsmcore.serve.refusals import BURST, Refusals
from hsmcore.serve.series import POINTS, Series, quantiles

VIEWER, OPERATOR = "v" * 32, "o" * 32


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def access(viewer=VIEWER, operator=OPERATOR, clock=time.monotonic):
    tokens = {
        name: Secret.plain(value) for name, value in (("viewerToken", viewer), ("operatorToken", operator)) if value
    }
    return Access(HeldTokens.of(Monitoring.model_validate(tokens)), clock)


# ---- where it listens ----


LOCAL = ("127.0.0.1:0", "[::1]:80", "localhost:9464", "unix:/run/x.sock", "unix:///run/x.sock")
REMOTE = ("0.0.0.0:9464", "[::]:1", "10.0.0.1:1", "signer:1")


@pytest.mark.parametrize(("text", "local"), [(text, True) for text in LOCAL] + [(text, False) for text in REMOTE])
def test_beyond_this_machine_tls_and_a_token_are_required(text, local):
    assert Address.parse(text).local is local
    if local:
        assert Monitoring.model_validate({"listen": text}).listen == text
        return
    from hsmcore import load

    base = {"keyManager": {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}}}
    with pytest.raises(ConfigurationError, match=r"without tls and viewerToken: add them, or listen at"):
        settings_of(load(base), text)
    base["keyManager"]["monitoring"] = {
        "listen": text, "tls": {"certificateFile": "c", "keyFile": "k"}, "viewerToken": {"env": "T"},
    }  # fmt: skip
    assert settings_of(load(base), None).listen == text


@pytest.mark.parametrize(
    "text", ["", "9464", "host", "host:65536", ":1", "a b:1", "unix:", "unix:/" + "x" * 200, "::1:80"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="must"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("monitoring", "path", "says"),
    [
        ({"listen": "nonsense"}, ".listen", "must be"),
        ({"listen": 9464}, ".listen", "must be a string"),
        ({"lisen": "127.0.0.1:1"}, ".lisen", "listen"),
        ({"tls": {"certificateFile": "c"}}, ".tls.keyFile", "is required"),
        ({"viewerToken": {"env": "A", "file": "b"}}, ".viewerToken", "exactly one"),
        ({"listen": "0.0.0.0:1", "tls": {"certificateFile": "c", "keyFile": "k"}}, "", "without viewerToken"),
    ],
)
def test_a_fault_is_named_by_its_path(monitoring, path, says):
    from hsmcore import load

    base = {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}, "monitoring": monitoring}
    with pytest.raises(ConfigurationError) as caught:
        load({"sequencer": {"keyManager": base}})
    [fault] = caught.value.faults
    assert fault.path == f"$.sequencer.keyManager.monitoring{path}"
    assert says in fault.problem


# ---- tokens ----


@pytest.mark.parametrize(
    "token", ["short", "x" * 19, "with spaces in between it", "ümlauts are not allowed", "tab\t" + "x" * 20]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(token):
    with pytest.raises(ConfigurationError, match="at least 20 printable") as caught:
        access(viewer=token)
    assert "openssl rand -hex 32" in caught.value.hint
    assert token not in str(caught.value)


def test_one_token_for_both_roles_is_refused_wherever_it_comes_from(monkeypatch):
    monkeypatch.setenv("CONSOLE_TOKEN", OPERATOR)
    same = Monitoring.model_validate({"viewerToken": OPERATOR, "operatorToken": {"env": "CONSOLE_TOKEN"}})
    with pytest.raises(ConfigurationError, match="whoever may look could act"):
        HeldTokens.of(same)
    with pytest.raises(ValueError, match="whoever may look could act"):
        Monitoring.model_validate({"viewerToken": OPERATOR, "operatorToken": OPERATOR})


def judged(found, token, wanted):
    verdict = found.judge(None if token is None else f"Bearer {token}", wanted, "peer")
    return verdict.role, verdict.problem


def test_roles():
    both = access()
    assert judged(both, VIEWER, "viewer") == ("viewer", "")
    assert judged(both, VIEWER, "operator") == ("viewer", "forbidden")
    assert judged(both, OPERATOR, "viewer") == judged(both, OPERATOR, "operator") == ("operator", "")
    assert judged(both, None, "viewer") == judged(both, None, "operator") == (None, "missing")
    assert judged(both, "w" * 32, "viewer") == (None, "wrong")
    free = access(viewer=None)
    assert judged(free, None, "viewer") == ("viewer", "")
    assert judged(free, None, "operator") == ("viewer", "missing")
    assert judged(free, "w" * 32, "viewer") == (None, "wrong")  # a client with a token wants more rights
    nobody = access(viewer=None, operator=None)
    for token in (None, "", "\0" * 32, "w" * 32):
        assert judged(nobody, token, "operator")[1] != ""


@given(st.text(max_size=200))
def test_no_header_opens_anything(header):
    verdict = access().judge(header, "viewer", "peer")
    assert (verdict.role is None) == (header.strip() not in (f"Bearer {VIEWER}", f"Bearer {OPERATOR}"))


def test_failed_guesses_limit_that_peer_alone_even_for_a_right_token():
    clock = Clock()
    found = access(clock=clock)
    for _ in range(FAILURES):
        assert judged(found, "w" * 32, "viewer") == (None, "wrong")
    assert judged(found, "w" * 32, "viewer") == judged(found, OPERATOR, "operator") == (None, "limited")
    assert found.judge(f"Bearer {OPERATOR}", "operator", "another peer").problem == ""
    clock.now += 1.0
    assert judged(found, OPERATOR, "operator") == ("operator", "")
    assert judged(found, "w" * 32, "viewer") == (None, "wrong")
    assert judged(found, "w" * 32, "viewer") == (None, "limited")


def test_failed_guesses_lock_out_no_token_that_came_from_there_before():
    """Behind a proxy, a guesser has the operator's address, and that of Prometheus."""
    found = access(clock=Clock())
    assert judged(found, VIEWER, "viewer") == ("viewer", "")
    for _ in range(2 * FAILURES):
        judged(found, "w" * 32, "viewer")
    assert judged(found, "w" * 32, "viewer") == (None, "limited")
    assert judged(found, VIEWER, "viewer") == ("viewer", "")
    assert judged(found, VIEWER, "operator") == ("viewer", "forbidden")
    assert judged(found, OPERATOR, "operator") == (None, "limited")


def test_right_wrong_and_missing_tokens_take_the_same_time():
    """Nothing like a proof, but an early return or a comparison that stops at the first difference would show."""
    found = access(clock=lambda: 0.0)
    found._failures.take = lambda _peer: None
    times = {name: [] for name in ("right", "wrong", "near", "missing")}
    headers = {"right": f"Bearer {OPERATOR}", "wrong": "Bearer " + "w" * 32, "near": f"Bearer {OPERATOR[:-1]}x"}
    headers["missing"] = None
    for _ in range(400):
        for name, header in headers.items():
            begun = time.perf_counter_ns()
            for _ in range(10):
                found.judge(header, "operator", "peer")
            times[name].append(time.perf_counter_ns() - begun)
    medians = [statistics.median(values) for values in times.values()]
    assert max(medians) < 1.6 * min(medians)


def test_tokens_are_nowhere_in_the_object():
    found = access()
    assert VIEWER.encode() not in repr(vars(found)).encode()
    assert all(VIEWER.encode() != value for value in vars(found).values())


# ---- turns ----


def test_requests_without_a_right_token_have_so_many_turns_and_those_with_one_are_not_counted():
    clock = Clock()
    found = access(clock=clock)

    def turns(count, token=None, peer="peer"):
        return [found.turn(None if token is None else f"Bearer {token}", peer) for _ in range(count)]

    assert turns(3 * STRANGERS, VIEWER) + turns(3 * STRANGERS, OPERATOR) == [0.0] * 6 * STRANGERS
    assert turns(STRANGERS - 1) + turns(1, "w" * 32) == [0.0] * STRANGERS
    late = round(WAIT_SECONDS * STRANGERS)
    assert turns(late) == pytest.approx([(number + 1) / STRANGERS for number in range(late)])
    assert turns(2 * STRANGERS) + turns(1, "w" * 32) == [None] * (2 * STRANGERS + 1)
    assert turns(1, VIEWER) + turns(1, OPERATOR) + turns(1, peer="another") == [0.0] * 3
    clock.now += 1.0
    assert turns(2 * STRANGERS).count(None) == STRANGERS
    clock.now += 3600.0
    assert turns(2 * STRANGERS).count(0.0) == STRANGERS


def test_where_the_page_is_open_to_all_its_requests_are_counted_too():
    found = access(viewer=None, operator=None, clock=Clock())
    assert [found.turn(None, "peer") for _ in range(9 * STRANGERS)].count(None) == round((8 - WAIT_SECONDS) * STRANGERS)


def test_the_wait_tells_no_guesser_that_a_token_is_right():
    found = access(clock=Clock())
    for _ in range(FAILURES):
        judged(found, "w" * 32, "viewer")
    for token in (OPERATOR, "w" * 32):
        assert [found.turn(f"Bearer {token}", "peer") for _ in range(STRANGERS // 2)] == [0.0] * (STRANGERS // 2)
    assert found.turn(f"Bearer {OPERATOR}", "peer") > 0


def test_a_request_that_waits_for_its_turn_gives_way_and_one_without_a_turn_is_not_answered(monkeypatch):
    done = []

    class Place:
        def __getattr__(self, name):
            return lambda: done.append(name)

    async def app(_scope, _receive, _send):
        done.append("answered")

    async def gone():
        return {"type": "http.disconnect"}

    async def slept(seconds):
        done.append(seconds)

    monkeypatch.setattr("hsmcore.serve.app.asyncio.sleep", slept)
    found = access(clock=Clock())
    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}
    scope |= {"state": {"connection": Place()}, "client": ("192.0.2.1", 1)}
    guarded = _Guarded(app, None, found)
    for wait, what in ((0.0, ["answered"]), (0.25, ["idle", 0.25, "busy", "answered"]), (None, ["give_way"])):
        found.turn = lambda _header, _peer, wait=wait: wait
        asyncio.run(guarded(scope, gone, None))
        assert done == what
        done.clear()


# ---- records of refusals ----


class Recording:
    def __init__(self):
        self.said = []

    async def order(self, *refusal):
        self.said.append(refusal)


@given(st.lists(st.floats(0, 3), max_size=200))
@settings(max_examples=share(50))
def test_a_flood_of_refusals_is_counted_and_not_written_one_by_one(pauses):
    source, clock = Recording(), Clock()
    refusals = Refusals(source, clock)

    async def run():
        for pause in pauses:
            clock.now += pause
            await refusals.note("peer", "wrong", "/")

    asyncio.run(run())
    assert len(source.said) <= BURST + sum(pauses) + 1
    assert sum(count for *_, count in source.said) + refusals._unsaid == len(pauses)


# ---- the stream ----


@given(st.lists(st.one_of(st.integers(1, 400), st.just("read")), max_size=20))
@settings(max_examples=share(60))
def test_a_watcher_gets_all_events_in_order_or_the_count_of_missed_ones(steps):
    async def run():
        feed = Feed()
        watcher = feed.watch()
        told, got, missed = 0, [], 0
        messages = watcher.messages()

        async def read():
            nonlocal missed
            text = await anext(messages)
            for block in text.decode().split("\n\n"):
                lines = dict(line.split(": ", 1) for line in block.splitlines())
                if lines.get("event") == "missed":
                    missed += json.loads(lines["data"])["count"]
                elif lines:
                    got.append(json.loads(lines["data"])["n"])

        for step in steps:
            if step == "read":
                if watcher._queue:
                    await read()
            else:
                for _ in range(step):
                    feed.tell("happened", {"n": told})
                    told += 1
        if watcher._queue:
            await read()
        assert got == sorted(set(got))
        assert len(got) + missed == told
        assert len(watcher._queue) <= MAX_QUEUED
        assert len(feed._kept) <= KEPT
        watcher.end()
        assert [part async for part in messages] == []
        feed.forget(watcher)

    asyncio.run(run())


def test_a_page_that_comes_back_gets_what_it_missed_and_no_more_pages_than_there_are_places():
    async def run():
        feed = Feed()
        for number in range(10):
            feed.tell("happened", {"n": number})
        name = feed._name
        for after, expected in ((f"{name}-7", 3), (f"{name}-10", 0), ("", 10), ("00000000-7", 10), (f"{name}-x", 10),
                                (f"{name}-" + "9" * 99, 10), (f"{name}-\u0663", 10)):  # fmt: skip
            watcher = feed.watch(after)
            assert len(watcher._queue) == expected, after
            feed.forget(watcher)
        held = [feed.watch() for _ in range(MAX_WATCHERS)]
        with pytest.raises(Full):
            feed.watch()
        for watcher in held:
            feed.forget(watcher)
        feed.forget(feed.watch())

    asyncio.run(run())


def test_viewers_take_no_operators_place_and_no_address_takes_all():
    async def run():
        feed = Feed()
        held = [feed.watch(viewer="10.0.0.1") for _ in range(MAX_OF_ADDRESS)]
        with pytest.raises(Full):
            feed.watch(viewer="10.0.0.1")
        held += [feed.watch(viewer="10.0.0.2") for _ in range(MAX_VIEWERS - MAX_OF_ADDRESS)]
        with pytest.raises(Full):
            feed.watch(viewer="10.0.0.3")
        for _ in range(MAX_WATCHERS - MAX_VIEWERS):
            feed.watch()
        with pytest.raises(Full):
            feed.watch()
        feed.forget(held[-1])
        with pytest.raises(Full):
            feed.watch(viewer="10.0.0.1")
        feed.watch(viewer="10.0.0.2")

    asyncio.run(run())


def test_the_newest_state_replaces_one_that_was_not_sent():
    async def run():
        feed = Feed()
        watcher = feed.watch()
        for number in range(1000):
            feed.show("state", {"n": number})
        text = await anext(watcher.messages())
        assert text.count(b"event: state") == 1
        assert b'"n":999' in text

    asyncio.run(run())


# ---- rates ----


def stats(signed, histogram, failed=0):
    return {"signatures": signed, "failures": failed, "expired": 0, "hsm_ns": histogram}


def test_rates_are_differences_by_time_and_restart_with_the_member():
    series = Series()
    assert series.add(0, stats(1000, [(10_000, 1000)]))["rate"] == 0.0  # since when is not known
    point = series.add(2_000_000_000, stats(1500, [(10_000, 1000), (90_000, 495), (5_000_000, 5)], failed=4))
    assert (point["rate"], point["failed"], point["p50"], point["p99"], point["p999"]) == (
        250.0,
        2.0,
        90.0,
        90.0,
        5000.0,
    )
    assert series.add(3_000_000_000, stats(3, [(10_000, 3)]))["rate"] == 0.0  # it was restarted
    assert series.add(4_000_000_000, None) == {"t": 4000, "rate": 0.0, "failed": 0.0}
    assert series.add(5_000_000_000, stats(9, [(10_000, 9)]))["rate"] == 0.0
    for second in range(POINTS * 2):
        series.add((6 + second) * 10**9, stats(second, []))
    assert len(series.points) == POINTS


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 50)), min_size=1, max_size=60))
def test_quantiles_are_those_of_the_values(pairs):
    histogram = sorted(dict(pairs).items())
    values = [upper for upper, count in histogram for _ in range(count)]
    found = quantiles(histogram)
    if not values:
        assert found == {}
        return
    for name, permille in (("p50", 500), ("p99", 990), ("p999", 999)):
        rank = -(-len(values) * permille // 1000)
        assert found[name] == round(values[rank - 1] / 1e3, 1)


# ---- readiness ----


def state(**changes):
    member = {"member": "a", "level": "primary", "condition": "ready", "reason": "", "breakers": {}}
    found = {
        "life": "open", "members": [member, {**member, "member": "b", "level": "secondary"}],
        "failover": {"active": "primary", "levels": ["primary", "secondary"]},
        "keys": [{"id": "01", "state": "active"}], "currentKey": "01", "auditConfigured": True,
        "audit": {"failure": None, "notSealed": None, "onFailure": "closed", "shipping": {}, "witnesses": {}},
    }  # fmt: skip
    return {**found, **changes}


def outcome(name, found_state, ledger=None, problem="", store="", now=0):
    found = checks(found_state, ledger or {}, problem, store, now)
    return next((check.outcome for check in found if check.name == name), None), ready(found)


OUT = {"member": "a", "level": "primary", "condition": "open", "reason": "gone", "breakers": {"down": "open"}}
OK = {"member": "b", "level": "secondary", "condition": "ready", "reason": "", "breakers": {}}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("members", {}, "ok"),
        ("members", {"members": [OUT, OK], "failover": {"active": "secondary"}}, "warn"),
        ("members", {"members": [OUT], "failover": {"active": None}}, "fail"),
        ("members", {"members": [OUT], "failover": None}, "fail"),
        ("login", {"members": [{**OUT, "breakers": {"auth": "open"}}], "failover": {"active": None}}, "fail"),
        ("login", {"members": [{**OUT, "breakers": {"auth": "open"}}, OK]}, "warn"),
        ("login", {"members": [{**OUT, "breakers": {"access": "open"}}, OK]}, "warn"),
        ("key", {"currentKey": None}, "fail"),
        ("key", {"keys": [{"id": "01", "state": "deactivated"}]}, "fail"),
        (
            "audit",
            {
                "audit": {
                    "failure": "no space",
                    "notSealed": None,
                    "onFailure": "closed",
                    "shipping": {},
                    "witnesses": {},
                }
            },
            "fail",
        ),
        (
            "audit",
            {"audit": {"failure": "no space", "notSealed": None, "onFailure": "open", "shipping": {}, "witnesses": {}}},
            "warn",
        ),
        (
            "audit",
            {
                "audit": {
                    "failure": None,
                    "notSealed": None,
                    "onFailure": "open",
                    "shipping": {"syslog": {"error": "x"}},
                    "witnesses": {},
                }
            },
            "warn",
        ),
        (
            "audit",
            {"audit": {"failure": None, "notSealed": "x", "onFailure": "closed", "shipping": {}, "witnesses": {}}},
            "warn",
        ),
        ("audit", {"audit": None}, "fail"),
        ("audit", {"audit": None, "auditConfigured": False}, "ok"),
        ("open", {"life": "closing"}, "fail"),
        ("emergency", {"failover": {"active": "emergency"}}, "warn"),
    ],
)
def test_each_check(name, changes, expected):
    found, is_ready = outcome(name, state(**changes))
    assert found == expected
    assert is_ready == (expected != "fail")


def test_an_overdue_rotation_and_silence_are_not_ready():
    hour = 3600 * 10**9
    rotation = {"rotation": {"dueNs": 100 * hour, "failedInARow": 0}}
    assert outcome("rotation", state(), rotation, now=100 * hour) == ("ok", True)
    assert outcome("rotation", state(), rotation, now=101 * hour + 1) == ("fail", False)
    waits = {"rotation": {"dueNs": 100 * hour, "failedInARow": 0, "waits": True}}
    assert outcome("rotation", state(), waits, now=200 * hour) == ("warn", True), "an approver who is away"
    failed = {"rotation": {"dueNs": 100 * hour, "failedInARow": 2}}
    assert outcome("rotation", state(), failed, now=100 * hour) == ("warn", True)
    assert outcome("answers", state(), problem="no answer") == ("fail", False)
    assert outcome("store", state(), store="locked") == ("warn", True)
    assert outcome("store", state() | {"storeNotGenuine": {"ring": "a row was changed"}}) == ("warn", True)
    found = checks(state(), rotation, "", "", 102 * hour)
    assert ready(found, frozenset({"rotation"}))
