"""What Vault's face refuses: strangers, what a client may not, what no key here can do, and what is no request."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import ssl
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solders.pubkey import Pubkey
from tests.support.authority import Authority
from tests.support.loops import one_loop
from tests.support.managers import becomes, until
from tests.support.policed import moving
from tests.support.scrapes import Scrape
from tests.support.size import share
from tests.support.vault_site import TOKEN, NearCore, b64, called, near_site, site

from hsmcore.base.listening import http
from hsmcore.base.listening.connections import MAX_CONNECTIONS
from hsmcore.gateway.vault.face import Transit

pytestmark = pytest.mark.integration
M = b"a message"
SIGN, VERIFY, KEY = "/v1/transit/sign/default", "/v1/transit/verify/default", "/v1/transit/keys/default"
DENIED = "permission denied"
NAME = "hsmcore_gateway_requests_total"
OUTCOMES = ("OK", "POLICY_REFUSED", "BAD_ARGUMENT", "QUEUE_FULL", "INTERNAL")


async def refusals(vault):
    """Records of refused strangers: who, why and what."""
    found = [record async for record in vault.manager.audit.query(match={"operation": "gateway-refused"})]
    return [(record["label"], record["why"], record["command"]) for record in found]


async def is_refused(vault, *said):
    return said in await refusals(vault)


@one_loop
async def test_a_stranger_is_refused_recorded_and_costs_no_call(world, shim, tmp_path, capfd):
    config = world.config(settings={"modulePath": shim.path}, auditLogFile=str(tmp_path / "audit.log"), maxCacheSize=0)
    wrong = secrets.token_hex(20)
    async with site(config, tmp_path) as vault:
        calls = shim.calls("C_Sign")
        body = {"input": b64(M)}
        # One of each before the many: of those, not each has a record of its own.
        assert await vault.refused(403, "POST", SIGN, body, token=wrong) == DENIED
        other = Authority(tmp_path, "other")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await vault.asked("POST", SIGN, body, token=None, issued=other.issue("mallory", dns=["app.example"]))
        unknown = vault.authority.issue("unknown", dns=["unknown.example"])
        assert await vault.refused(403, "POST", SIGN, body, token=None, issued=unknown) == DENIED
        for method, path in (("POST", SIGN), ("POST", VERIFY), ("GET", KEY), ("LIST", "/v1/transit/keys"),
                             ("GET", "/v1/auth/token/lookup-self")):  # fmt: skip
            assert await vault.refused(403, method, path, body, token=None) == DENIED
            assert await vault.refused(403, method, path, body, token=wrong) == DENIED
        for header in ("Bearer " + wrong, "Bearer", "Basic " + TOKEN, TOKEN):
            assert await vault.refused(403, "POST", SIGN, body, token=None, headers={"Authorization": header}) == DENIED
        assert shim.calls("C_Sign") == calls

        async def recorded():
            why = {one[1] for one in await refusals(vault)}
            return {"unknown token", "no token", "unknown certificate"} < why

        await becomes(recorded)
        found = await refusals(vault)
        why = {one[1] for one in found}
        assert ("127.0.0.1", "unknown token", f"POST {SIGN}") in found
        assert any("CERTIFICATE" in one for one in why), why
        await vault.data("POST", SIGN, body)
    log = (tmp_path / "audit.log").read_text() + "".join(capfd.readouterr())
    assert wrong not in log
    assert TOKEN not in log


@one_loop
async def test_a_client_is_known_by_its_certificate(world, tmp_path):
    clients = {
        "by-name": {"names": ["dns:app.example", "spiffe://example.com/app"], "keys": ["default"]},
        "by-token": {"token": TOKEN, "keys": ["default"]},
    }
    async with site(world.config(auditLogFile=str(tmp_path / "audit.log")), tmp_path, clients) as vault:
        for names in ({"dns": ["app.example"]}, {"uris": ["spiffe://example.com/app"]}):
            issued = vault.authority.issue("app", **names)
            about = await vault.data("GET", "/v1/auth/token/lookup-self", token=None, issued=issued)
            assert about["display_name"] == "by-name"
            assert await vault.data("POST", SIGN, {"input": b64(M)}, token=None, issued=issued)
        about = await vault.data("GET", "/v1/auth/token/lookup-self", issued=issued)  # a token says more
        assert about["display_name"] == "by-token"
        wrong = secrets.token_hex(20)
        assert await vault.refused(403, "POST", SIGN, {"input": b64(M)}, token=wrong, issued=issued) == DENIED
        signed = [record async for record in vault.manager.audit.query(match={"operation": "sign"})]
        assert {record["caller"] for record in signed} == {"by-name"}


@one_loop
async def test_a_key_that_is_not_listed_is_as_one_that_is_none(world, tmp_path):
    blocks = {name: world.config(key)["sequencer"]["keyManager"] for name, key in
              (("mine", "ed25519"), ("other", "ecdsa-p256"))}  # fmt: skip
    clients = {"app": {"token": TOKEN, "keys": ["mine"]}}
    config = {"sequencer": {"keyManagers": blocks, "auditLogFile": str(tmp_path / "audit.log")}}
    async with site(config, tmp_path, clients) as vault:
        for name in ("other", "none", "%2e%2e", "mine%00", "a" * 200):
            for method, path in (("POST", "sign"), ("POST", "verify"), ("GET", "keys")):
                assert await vault.refused(403, method, f"/v1/transit/{path}/{name}", {"input": b64(M)}) == DENIED
        await becomes(lambda: is_refused(vault, "app", "key not listed", "POST /v1/transit/sign/other"))


@one_loop
async def test_what_policy_and_client_do_not_list_is_refused_with_the_reason(world, shim, tmp_path):
    rules = {"policy": {"kinds": ["tx-v0", "raw"]}, "auditLogFile": str(tmp_path / "audit.log")}
    config = world.config(settings={"modulePath": shim.path}, stateFile=str(tmp_path / "state.db"), **rules)
    clients = {"app": {"token": TOKEN, "keys": ["default"], "kinds": ["tx-v0"]},
               "all": {"token": TOKEN[::-1], "keys": ["default"]}}  # fmt: skip
    async with site(config, tmp_path, clients) as vault:
        good = moving(Pubkey.from_bytes(vault.manager.public_key), 1)
        calls = shim.calls("C_Sign")
        assert "kind raw" in await vault.refused(403, "POST", SIGN, {"input": b64(M)})
        assert ("app", "kind raw not listed", "sign default") in await refusals(vault)
        text = await vault.refused(403, "POST", SIGN, {"input": b64(bytes(32))}, token=TOKEN[::-1])
        assert "digest32" in text
        assert shim.calls("C_Sign") == calls
        items = [{"input": b64(message), "reference": str(at)} for at, message in enumerate((M, good, bytes(32)))]
        found = (await vault.data("POST", SIGN, {"batch_input": items}))["batch_results"]
        assert ["error" in one for one in found] == [True, False, True]
        assert [one["reference"] for one in found] == ["0", "1", "2"]
        assert await vault.data("POST", SIGN, {"input": b64(M)}, token=TOKEN[::-1])


@one_loop
async def test_too_much_is_refused_with_the_time_to_wait(world, tmp_path):
    clients = {"app": {"token": TOKEN, "keys": ["default"], "perSecond": 1, "inFlight": 2}}
    async with site(world.config(), tmp_path, clients) as vault:
        batch = {"batch_input": [{"input": b64(M)}] * 3}
        assert "3 items" in await vault.refused(400, "POST", SIGN, batch)
        verify = {"batch_input": [{"input": b64(M), "signature": f"vault:v1:{b64(bytes(64))}"}] * 3}
        assert "3 items" in await vault.refused(400, "POST", VERIFY, verify)
        assert await vault.data("POST", SIGN, {"input": b64(M)})

        async def limited():
            return (await vault.asked("POST", SIGN, {"input": b64(M)})).status == 429

        await becomes(limited)
        reply = await vault.asked("POST", SIGN, {"input": b64(M)})
        if reply.status == 429:  # the machine may be slow, and a second over
            assert reply.headers["retry-after"] == "1"
            assert "1 signatures a second" in reply.json()["errors"][0]


UNSUPPORTED = [
    ({"context": b64(b"c")}, "context"), ({"signature_algorithm": "pss"}, "signature_algorithm"),
    ({"salt_length": "hash"}, "salt_length"), ({"hash_algorithm": "sha1"}, "hash_algorithm 'sha1'"),
    ({"algorithm": "sha3-256"}, "hash_algorithm 'sha3-256'"), ({"hash_algorithm": ["sha2-256"]}, "hash_algorithm"),
    ({"marshaling_algorithm": "p1363"}, "marshaling_algorithm 'p1363'"), ({"marshaling_algorithm": {}}, "must be text"),
    ({"prehashed": True}, "prehashed"), ({"prehashed": "true"}, "prehashed"), ({"prehashed": 1}, "prehashed"),
    ({"key_version": -1}, "key_version"), ({"key_version": 1.5}, "key_version"), ({"key_version": True}, "key_version"),
    ({"key_version": "x"}, "key_version"), ({"key_version": 7}, "no version 7"), ({"key_version": 10**30}, "number"),
    ({"batch_input": []}, "missing batch"), ({"batch_input": {}}, "batch_input"),
    ({"kind": "nonsense"}, "kind 'nonsense'"), ({"kind": "prehashed"}, "kind 'prehashed'"),
    ({"kind": 7}, "must be text"),
    ({"position": -1}, "position"), ({"position": "x"}, "position"), ({"input": None}, "missing input"),
    ({"input": "YQ"}, "base64"), ({"input": "Y Q="}, "base64"), ({"input": "é"}, "base64"),
    ({"input": ["YQ=="]}, "base64"), ({"input": ""}, "input is empty"),
]  # fmt: skip
WRONG = [
    ({}, "missing signature"), ({"signature": "x"}, "vault:vN:"), ({"hmac": "vault:v1:x"}, "hmac"),
    ({"signature": "vault:v0:YQ=="}, "vault:vN:"), ({"signature": "vault:v9:YQ=="}, "no version"),
    ({"signature": "vault:v1:Y"}, "base64"), ({"hmac": "h"}, "hmac"),
    ({"signature": "vault:v99999999999999999999:YQ=="}, "vault:vN:"), ({"signature": 1}, "missing signature"),
]  # fmt: skip


@one_loop
async def test_each_request_to_sign_or_verify_is_counted_once_by_outcome(world, tmp_path, capfd):
    clients = {"app": {"token": TOKEN, "keys": ["default"], "inFlight": 4},
               "few": {"token": TOKEN[::-1], "keys": ["default"], "perSecond": 1}}  # fmt: skip
    async with site(world.config(), tmp_path, clients) as vault:

        def counted(client):
            scrape = Scrape.of(vault.manager)
            found = {outcome: scrape.all(NAME, client=client, outcome=outcome) for outcome in OUTCOMES}
            assert sum(map(sum, found.values())) == sum(scrape.all(NAME, client=client))
            return {outcome: count for outcome, [count] in ((o, c) for o, c in found.items() if c)}

        signed = await vault.data("POST", SIGN, {"input": b64(M)})
        for bad in ({}, {"input": ""}):  # each item has its own answer, and the batch is one request
            await vault.data("POST", SIGN, {"batch_input": [{"input": b64(M)}, bad]})
        await vault.data("POST", VERIFY, {"input": b64(M), **signed})
        await until(lambda: counted("app") == {"OK": 4})
        for path in (KEY, "/v1/auth/token/lookup-self", "/v1/sys/health"):
            assert (await vault.asked("GET", path)).status == 200
        await vault.refused(403, "POST", SIGN, {"input": b64(M)}, token="x" * 40)
        await asyncio.to_thread(talk, vault, HEAD + b"Content-Length: 100\r\n\r\n{", shut=True)
        await until(lambda: counted("app") == {"OK": 4})
        await vault.refused(403, "POST", "/v1/transit/sign/other", {"input": b64(M)})
        await until(lambda: counted("app") == {"OK": 4, "POLICY_REFUSED": 1})
        for body in (b"{", {"input": ""}, {"batch_input": [{"input": b64(M)}] * 5}):
            await vault.refused(400, "POST", SIGN, body)
        await until(lambda: counted("app") == {"OK": 4, "POLICY_REFUSED": 1, "BAD_ARGUMENT": 3})

        async def limited():
            return (await vault.asked("POST", SIGN, {"input": b64(M)}, token=TOKEN[::-1])).status == 429

        await becomes(limited)
        await until(lambda: counted("few").get("QUEUE_FULL") == 1)

        assert "failed" not in capfd.readouterr().err  # to hang up is no failure of the gateway's


@one_loop
async def test_what_a_key_cannot_do_is_refused_by_name(world, tmp_path):
    async with site(world.config(), tmp_path) as vault:
        for body, said in UNSUPPORTED:
            text = await vault.refused(400, "POST", SIGN, {"input": b64(M), **body})
            assert said in text, (body, text)
        for algorithm in ("sha1", "sha2-384", "none", "nonsense", "%00"):
            assert "hash_algorithm" in await vault.refused(400, "POST", f"{SIGN}/{algorithm}", {"input": b64(M)})
            assert "hash_algorithm" in await vault.refused(400, "POST", f"{VERIFY}/{algorithm}", {"input": b64(M)})
        for body, said in WRONG:
            assert said in await vault.refused(400, "POST", VERIFY, {"input": b64(M), **body})
        wrap = {"X-Vault-Wrap-TTL": "60"}
        assert "Wrap" in await vault.refused(400, "POST", SIGN, {"input": b64(M)}, headers=wrap)


@one_loop
async def test_what_is_no_request_of_the_api_is_refused(world, tmp_path):
    async with site(world.config(), tmp_path) as vault:
        for body in (b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 4000, b"NaN", b'{"a":' * 5000 + b"1" + b"}" * 5000):
            assert "JSON" in await vault.refused(400, "POST", SIGN, body)
        assert await vault.refused(400, "POST", SIGN, b"") == "missing input"
        for method, path in (
            *(("GET", path) for path in ("/", "/v1/secret/data/x", "/v2/transit/keys", "/v1//transit/keys")),
            *(("POST", f"/v1/transit/{path}") for path in ("encrypt/default", "sign", "keys/a/b", "sign/default/")),
        ):
            assert await vault.refused(404, method, path) == "unsupported path"
        for method, path in (("GET", SIGN), ("DELETE", KEY), ("POST", "/v1/sys/health"), ("LIST", KEY)):
            assert await vault.refused(405, method, path) == "unsupported operation"
        assert await vault.data("GET", KEY)


def talk(vault, data, *, shut=False):
    """What comes back for some bytes, until the server closes. `shut`: hang up instead."""
    with (
        socket.create_connection(vault.where, timeout=20) as plain,
        vault.trusting().wrap_socket(plain, server_hostname=vault.where[0]) as link,
    ):
        link.sendall(data)
        found = b""
        try:
            while not shut and (part := link.recv(65536)):
                found += part
        except (ConnectionResetError, ssl.SSLEOFError):
            pass
        return found


HEAD = f"POST {SIGN} HTTP/1.1\r\nHost: h\r\nX-Vault-Token: {TOKEN}\r\n".encode()


@one_loop
async def test_a_slow_request_ends_and_holds_up_no_other(world, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.5)
    async with near_site(world.config(), tmp_path) as (vault, _core):
        whole = f"GET {KEY} HTTP/1.1\r\nHost: h\r\nX-Vault-Token: {TOKEN}\r\n\r\n".encode()
        parts = (HEAD[:20], HEAD + b"Content-Length: 100\r\n\r\n{", whole + HEAD[:20])
        slow = [asyncio.create_task(asyncio.to_thread(talk, vault, part)) for part in parts]
        while not all(task.done() for task in slow):
            await vault.data("POST", SIGN, {"input": b64(M)})
        assert [task.result()[:12] for task in slow] == [b"", b"", b"HTTP/1.1 200"]


@one_loop
async def test_a_crowd_of_idle_connections_keeps_no_client_out(world, tmp_path):
    async with site(world.config(auditLogFile=str(tmp_path / "audit.log")), tmp_path) as vault:

        def crowd():
            with ExitStack() as rest:
                for number in range(MAX_CONNECTIONS + 40):
                    link = rest.enter_context(socket.create_connection(vault.where, timeout=20))
                    if number % 8 == 0:  # silent ones, and some that speak TLS and then nothing
                        with suppress(OSError):
                            rest.enter_context(vault.trusting().wrap_socket(link, server_hostname=vault.where[0]))
                assert vault.ask("POST", SIGN, {"input": b64(M)}).status == 200

        await asyncio.to_thread(crowd)
        await vault.data("GET", KEY)
        await becomes(lambda: is_refused(vault, "127.0.0.1", "it said nothing", "https"))


TEXT = st.one_of(
    st.text(max_size=20), st.sampled_from(["YQ==", "vault:v1:YQ==", f"vault:v1:{b64(bytes(64))}", "true", "1", "jws"])
)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)
ITEM = st.fixed_dictionaries({}, optional=dict.fromkeys(("input", "signature", "reference", "context", "hmac"), VALUE))
BODY = st.one_of(
    VALUE,
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("input", "signature", "hash_algorithm", "marshaling_algorithm", "prehashed"), VALUE),
            **dict.fromkeys(("key_version", "signature_algorithm", "salt_length", "context", "hmac"), VALUE),
            "batch_input": st.one_of(VALUE, st.lists(ITEM, max_size=4)),
        },
    ),
)


async def app_of(core):
    return Transit(core, core.tls).app()


@pytest.mark.parametrize("run", ["uvloop"], indirect=True)
def test_no_body_brings_anything_but_an_answer_or_a_refusal(world, tmp_path, run):
    opened = site(world.config(), tmp_path)
    vault = run(opened.__aenter__())

    async def made():  # in the loop
        return NearCore(vault.served)

    core = run(made())
    app = run(app_of(core))

    @given(BODY, st.sampled_from([SIGN, VERIFY]))
    @settings(max_examples=share(300))
    def check(body, path):
        status, said = run(called(app, path, json.dumps(body).encode()))
        assert status in (200, 400), (status, said)
        assert said.keys() == {"errors"} or "data" in said

    @given(st.binary(max_size=200), st.sampled_from([SIGN, VERIFY]))
    @settings(max_examples=share(100))
    def check_bytes(body, path):
        assert run(called(app, path, body))[0] in (200, 400)

    try:
        check()
        check_bytes()
    finally:
        core.close()
        run(opened.__aexit__(None, None, None))
