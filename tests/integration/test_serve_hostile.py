"""Hostile requests to the console: nothing leaks, nothing is held up, all other clients are served."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import ssl
import statistics
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.certificates import self_signed
from tests.support.console import served_here
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.size import share
from tests.support.web import ask, asked, connection, raw

import hsmcore
from hsmcore.base.listening import http
from hsmcore.serve import attached
from hsmcore.serve.checks import NAMES
from hsmcore.serve.feed import MAX_OF_ADDRESS

pytestmark = pytest.mark.integration
OPERATOR = "o" * 40
RULES = {"monitoring": {"listen": "127.0.0.1:0", "operatorToken": OPERATOR}}
LEAKS = (b"Traceback", b"hsmcore/serve", b"site-packages", b'File "')


@pytest.fixture
def no_answer_hangs(monkeypatch):
    served_here(monkeypatch)
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.5)


def link(address):
    where = urlsplit(address)
    return socket.create_connection((where.hostname, where.port), timeout=20)


@one_loop
async def test_a_body_of_ten_megabytes_is_refused_before_it_is_read(world):
    async with opened(world.config(**RULES)) as manager, attached(manager) as site:
        for path in ("/api/actions/drain", "/api/state", "/nothing"):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OPERATOR}\r\n"

            def send(head=head):
                sent = 0
                with link(site.address) as client:
                    client.sendall(f"{head}Content-Length: {10 << 20}\r\n\r\n".encode())
                    try:
                        for _ in range(160):
                            client.sendall(bytes(1 << 16))
                            sent += 1 << 16
                        answer = client.recv(4096)
                    except (BrokenPipeError, ConnectionResetError):
                        answer = b""
                return sent, answer

            sent, answer = await asyncio.to_thread(send)
            assert not answer or int(answer.split()[1]) in (404, 405, 413)
            assert path != "/api/actions/drain" or sent < 10 << 20 or answer.split()[1] == b"413"
        chunked = f"POST /api/actions/drain HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {OPERATOR}\r\n"
        chunks = b"".join(b"1000\r\n" + bytes(4096) + b"\r\n" for _ in range(4))
        answer = await asyncio.to_thread(
            raw, site.address, f"{chunked}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks
        )
        assert b" 413 " in answer
        assert (await asked(site.address, "/readyz")).status == 200


BAD_REQUESTS = [
    b"\0" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /api/actions/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    b"GET /%ff%fe%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://evil/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET //main.js HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /api/audit/99999999999999999999999 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /api/audit/consistency?old=%00&size=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /api/state HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
]  # fmt: skip


@one_loop
async def test_what_is_no_request_gets_no_more_than_a_refusal(world, tmp_path):
    config = world.config(auditLogFile=str(tmp_path / "audit.log"), **RULES)
    async with opened(config) as manager, attached(manager) as site:
        for request in BAD_REQUESTS:
            answer = await asyncio.to_thread(raw, site.address, request)
            if answer:
                assert answer.startswith(b"HTTP/1.1 "), request[:80]
                assert 400 <= int(answer.split()[1]) < 500, (request[:80], answer[:80])
            assert not any(leak in answer for leak in LEAKS)
            assert b"root:" not in answer
        assert (await asked(site.address, "/readyz")).status == 200


@one_loop
async def test_a_body_that_is_no_order_is_refused(world):
    async with opened(world.config(**RULES)) as manager, attached(manager) as site:
        for body in (b"", b"{", b"[]", b"null", b'"x"', b'{"reason":', b"\xff\xfe", b"[" * 4000, b'{"reason":1e999}',
                     b'{"a":' * 500 + b"1" + b"}" * 500, b"NaN"):  # fmt: skip
            answer = await asked(site.address, "/api/actions/drain", "POST", token=OPERATOR, body=body)
            assert answer.status == 400, body[:40]
            assert not any(leak in answer.body for leak in LEAKS)


@pytest.fixture(scope="module")
def lasting():
    """A console for many requests: of a key manager that was never opened."""
    config = {"keyManager": {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}, **RULES}}
    loop = asyncio.new_event_loop()
    from hsmcore.serve.attach import settings_of
    from hsmcore.serve.site import Site
    from hsmcore.serve.source import ManagerSource

    manager = hsmcore.create_key_manager(config)
    site = Site(ManagerSource(manager, loop), settings_of(manager.config, None), "0")
    loop.close()
    site.start()
    yield site.address
    site.close()


@given(st.binary(max_size=300), st.sampled_from([b"", b"GET ", b"POST /api/actions/", b"GET /api/audit/"]))
@settings(max_examples=share(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_bring_anything_but_refusals(lasting, data, start):
    answer = raw(lasting, start + data + b"\r\n\r\n")
    assert not answer or (answer.startswith(b"HTTP/1.1 ") and int(answer.split()[1]) in (400, 401, 403, 404, 405, 421))
    assert not any(leak in answer for leak in LEAKS)


@given(st.text(max_size=60))
@settings(max_examples=share(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_opens_a_file(lasting, path):
    from urllib.parse import quote

    assert ask(lasting, "/" + quote("../" * 3 + path)).status in (404, 421)


def test_another_host_or_origin_gets_nothing(lasting):
    port = urlsplit(lasting).port
    for host, status in ((f"localhost:{port}", 503), (f"127.0.0.1:{port}", 503), ("evil.example", 421), ("", 421),
                         ("localhost.evil.example:80", 421), (f"evil.example:{port}", 421)):  # fmt: skip
        assert ask(lasting, "/readyz", headers={"Host": host}).status == status
    for origin, status in (
        (lasting, 400),
        ("http://evil.example", 403),
        ("null", 403),
        (f"http://localhost:{port}", 403),
        (f"ftp://127.0.0.1:{port}", 403),
        (f"127.0.0.1:{port}", 403),
        (f"https://127.0.0.1:{port}", 400),  # a proxy has taken TLS off
    ):
        answer = ask(lasting, "/api/actions/x", "POST", token=OPERATOR, body=b"{}", headers={"Origin": origin})
        assert answer.status == status, origin


def test_a_query_that_takes_long_to_read_is_refused_before(lasting):
    for path in ("/readyz", "/keys", "/nothing"):
        assert ask(lasting, f"{path}?{'a&' * 513}").status == 414
    checks = "&".join(f"exclude={name}" for name in NAMES)
    assert ask(lasting, f"/readyz?{checks}&{checks}").status == 200


# ---- connections ----


@one_loop
async def test_a_request_that_never_ends_loses_its_place(world, no_answer_hangs):
    async with opened(world.config(**RULES)) as manager, attached(manager) as site:
        beginnings = [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n",
                      b"POST /api/actions/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
                      b"Authorization: Bearer " + OPERATOR.encode() + b"\r\n\r\n{"]  # fmt: skip
        for text in beginnings:
            begun = time.monotonic()
            await asyncio.to_thread(raw, site.address, text, end=False)  # returns when the server closes
            assert time.monotonic() - begun < 10
        drip = await asyncio.to_thread(slowly, site.address)
        assert drip < 10
        assert (await asked(site.address, "/readyz")).status == 200


def slowly(address):
    """A header, a byte at a time: each byte must not give it more time."""
    begun = time.monotonic()
    with link(address) as client:
        try:
            for letter in b"GET / HTTP/1.1\r\nX: " + b"x" * 1000:
                client.sendall(bytes([letter]))
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            pass
    return time.monotonic() - begun


async def rate(manager, count=1000):
    """Signatures in a second of this process's processor time, of which other programs take none."""
    messages = [os.urandom(40) for _ in range(count)]
    begun = time.process_time()
    await manager.sign_many(messages)
    return count / (time.process_time() - begun)


@one_loop
async def test_a_thousand_idle_connections_lock_no_client_out_and_slow_no_signature(world):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        async with opened(world.config(maxCacheSize=0, **RULES)) as manager, attached(manager) as site:
            with_them, without = [], []
            for _ in range(4):
                without.append(await rate(manager))
                with ExitStack() as stack:
                    await asyncio.to_thread(lambda: [stack.enter_context(link(site.address)) for _ in range(1000)])
                    assert (await asked(site.address, "/readyz")).status == 200
                    with_them.append(await rate(manager))
            assert max(with_them) > 0.8 * max(without)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@one_loop
async def test_it_ends_whatever_its_clients_do(world, tmp_path):
    tls = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=tls["certificateFile"])
    rules = {"monitoring": {**RULES["monitoring"], "viewerToken": "v" * 40, "tls": tls}}
    with ExitStack() as stack:
        clients = []
        async with opened(world.config(**rules)) as manager, attached(manager) as site:

            def come():
                for text in (None, b"", b"GET / HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
                    client = stack.enter_context(link(site.address))
                    clients.append(client)
                    if text is not None:
                        clients[-1] = stack.enter_context(trusting.wrap_socket(client, server_hostname="127.0.0.1"))
                        clients[-1].sendall(text)
                clients.append(stack.enter_context(link(site.address)))
                clients[-1].sendall(b"\x16\x03\x01\x00\xc8\x01")  # half a ClientHello

            await asyncio.to_thread(come)
            assert (await asked(site.address, "/readyz", tls=trusting)).status == 200
            begun = time.monotonic()
        assert time.monotonic() - begun < http.REQUEST_SECONDS
        for client in clients:
            with suppress(ConnectionResetError):
                while client.recv(4096):
                    pass


@one_loop
async def test_streams_are_counted_and_their_end_is_noticed(world, monkeypatch):
    servers = served_here(monkeypatch)
    async with opened(world.config(**RULES)) as manager, attached(manager) as site:

        def fill():
            with ExitStack() as stack:
                for head in [b""] * MAX_OF_ADDRESS + [f"Authorization: Bearer {OPERATOR}\r\n".encode()] * 16:
                    client = stack.enter_context(link(site.address))
                    client.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n")
                    assert client.recv(12) == b"HTTP/1.1 200"
                    if not head and len(servers[0].monitor.feed) == MAX_OF_ADDRESS:
                        assert ask(site.address, "/api/events").status == 503
                return ask(site.address, "/api/events", token=OPERATOR).status

        assert await asyncio.to_thread(fill) == 503
        while len(servers[0].monitor.feed):  # noqa: ASYNC110  # what is waited for happens in the server's thread
            await asyncio.sleep(0.01)


# ---- floods ----


@one_loop
async def test_a_stranger_gets_so_many_answers_and_its_connection_is_closed_a_right_token_gets_all(world, monkeypatch):
    servers = served_here(monkeypatch)
    monkeypatch.setattr("hsmcore.serve.access.STRANGERS", 3)
    async with opened(world.config(**RULES)) as manager, attached(manager) as site:
        servers[0].console._access._strangers._clock = lambda: 0.0  # no turn comes back

        def flood():
            statuses, client = [], connection(site.address)
            with suppress(ConnectionError):
                for _ in range(9):
                    client.request("GET", "/healthz")
                    answer = client.getresponse()
                    statuses.append((answer.status, len(answer.read()) > 0))
            client.close()
            return statuses

        assert await asyncio.to_thread(flood) == [(200, True)] * 4  # the last one waits for a third of a second
        assert await asyncio.to_thread(flood) == []
        for _ in range(9):
            assert (await asked(site.address, "/healthz", token=OPERATOR)).status == 200


# ---- guessing ----


@one_loop
async def test_guesses_are_limited_recorded_and_cost_the_log_little(world, tmp_path):
    log = tmp_path / "audit.log"
    async with opened(world.config(auditLogFile=str(log), **RULES)) as manager, attached(manager) as site:

        def guess():
            found = []
            for number in range(200):
                body = b'{"reason": "x", "member": "y"}'
                found.append(
                    ask(site.address, "/api/actions/drain", "POST", token=f"guess {number:034d}", body=body).status
                )
            return found

        statuses = await asyncio.to_thread(guess)
        assert statuses[:10] == [401] * 10
        assert statuses.count(429) > 150
        await manager.audit.flush()
        said = [json.loads(line) for line in log.read_text().splitlines() if '"operator-action"' in line]
        assert 20 <= len(said) < 40
        assert {one["result"] for one in said} == {"refused"}
        assert sum(one["count"] for one in said) <= 200
        assert "guess" not in log.read_text()


@one_loop
async def test_wrong_and_missing_tokens_take_the_same_time(world, monkeypatch):
    """Coarse: what is compared is in test_serve_parts; here nothing else may differ grossly on the way."""
    served_here(monkeypatch)
    monkeypatch.setattr("hsmcore.serve.access.FAILURES", 10**6)
    async with opened(world.config(**RULES)) as manager, attached(manager) as site:

        def measure():
            times = {"right": [], "wrong": [], "missing": []}
            for _ in range(60):
                for name, token in (("right", OPERATOR), ("wrong", "w" * 40), ("missing", None)):
                    begun = time.perf_counter_ns()
                    ask(site.address, "/api/actions/nothing", "POST", token=token, body=b"{}")
                    times[name].append(time.perf_counter_ns() - begun)
            return {name: statistics.median(values) for name, values in times.items()}

        medians = await asyncio.to_thread(measure)
        assert max(medians["wrong"], medians["missing"]) < 3 * min(medians["wrong"], medians["missing"])
