"""The console's server is a process of its own: what strangers do costs the signer nothing, and its end little."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support.leaks import children
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.web import ask, asked

import hsmcore
from hsmcore.config import Monitoring
from hsmcore.config.secret import Secret
from hsmcore.members.control.process import Child
from hsmcore.serve import attached
from hsmcore.serve.access import Access, HeldTokens
from hsmcore.serve.answers import Answers

pytestmark = pytest.mark.integration
HERE = {"listen": "127.0.0.1:0"}
OPERATOR = "o" * 40
EPHEMERAL = {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}}
SIGNER = """
    import asyncio, sys
    import hsmcore, hsmcore.serve

    async def main():
        manager = hsmcore.create_key_manager({config})
        async with manager, hsmcore.serve.attached(manager, "127.0.0.1:0") as site:
            print(site.address, flush=True)
            await asyncio.to_thread(sys.stdin.read)

    asyncio.run(main())
"""


def server_of(pid):
    """The console's server of a process that has started nothing else."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    [found] = {int(each) for task in tasks for each in (task / "children").read_text().split()}
    return found


def started_since(others):
    """The console's server of this process."""
    [found] = children() - others
    return found


def seconds_of(pid):
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def signer():
    """A key manager with its console in another process, and the console's address."""
    program = textwrap.dedent(SIGNER).replace("{config}", repr({"keyManager": EPHEMERAL}))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as running:
        try:
            yield running, running.stdout.readline().strip()
        finally:
            if running.poll() is None:
                running.communicate(timeout=30)


def stranger(address, number, count):
    """Send requests from an address of the loopback that no other stranger has, one after the other."""
    where, answers = urlsplit(address), 0
    long = f"GET /{'x' * 8000} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    asks = [f"GET /{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in ("readyz", "keys", "api/state")]
    with socket.create_connection((where.hostname, where.port), 20, (f"127.0.1.{number}", 0)) as link:
        for turn in range(count):
            link.sendall(asks[turn // 8 % 3] if turn % 8 == 0 else long)
            head, end, rest = b"", b"", b""
            while not end:
                got = link.recv(65536)
                if not got:
                    return answers
                head += got
                head, end, rest = head.partition(b"\r\n\r\n")
            left = int(re.search(rb"content-length: (\d+)", head)[1]) - len(rest)
            while left > 0:
                left -= len(link.recv(65536))
            answers += 1
    return answers


def test_a_flood_of_strangers_is_paid_by_the_server_and_not_by_the_signer():
    with signer() as (running, address):
        server = server_of(running.pid)
        assert ask(address, "/readyz").status == 200
        before = {pid: seconds_of(pid) for pid in (running.pid, server)}
        answers = sum(stranger(address, number, 190) for number in range(1, 13))
        spent = {pid: seconds_of(pid) - before[pid] for pid in before}
        assert answers == 12 * 190
        assert spent[running.pid] < spent[server] / 4


@one_loop
async def test_a_server_that_nobody_asks_sleeps():
    others = children()
    async with opened({"keyManager": EPHEMERAL}) as manager, attached(manager, "127.0.0.1:0") as site:
        assert (await asked(site.address, "/readyz")).status == 200
        tasks = Path(f"/proc/{started_since(others)}/task")

        def wakes():
            texts = [(task / "status").read_text() for task in tasks.iterdir()]
            return sum(int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", text)[1]) for text in texts)

        async def sleeps():
            before = wakes()
            await asyncio.sleep(1)
            return wakes() - before <= 6

        await becomes(sleeps)


@one_loop
async def test_signing_goes_on_when_the_server_is_killed_and_the_console_comes_back():
    others = children()
    async with opened({"keyManager": EPHEMERAL}) as manager, attached(manager, "127.0.0.1:0") as site:
        assert (await asked(site.address, "/readyz")).status == 200
        first = started_since(others)
        os.kill(first, signal.SIGKILL)
        await asyncio.gather(*(manager.sign(b"%d" % number) for number in range(20)))
        assert (await asked(site.address, "/readyz")).status == 200  # it waited in the socket's queue
        assert started_since(others) != first
        state = (await asked(site.address, "/api/state")).json()
        assert state["members"][0]["counters"]["signatures"] >= 20


@one_loop
async def test_a_signal_for_the_whole_group_leaves_the_end_of_the_server_to_the_signer():
    others = children()
    async with opened({"keyManager": EPHEMERAL}) as manager, attached(manager, "127.0.0.1:0") as site:
        server = started_since(others)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(server, number)
        assert (await asked(site.address, "/readyz")).status == 200
        assert started_since(others) == server


def test_the_server_ends_with_a_signer_that_is_killed_and_gives_the_address_back():
    with signer() as (running, address):
        server = os.pidfd_open(server_of(running.pid))
        try:
            running.kill()
            running.wait()
            assert select.select([server], [], [], 20)[0]
        finally:
            os.close(server)
    where = urlsplit(address)
    with socket.socket() as again:
        again.bind((where.hostname, where.port))


@one_loop
async def test_the_server_gets_no_secret(world, monkeypatch):
    config = world.config(monitoring={**HERE, "operatorToken": {"env": "CONSOLE_TOKEN"}})
    monkeypatch.setenv("CONSOLE_TOKEN", OPERATOR)
    given = []

    class Seen(Child):
        def __init__(self, environment, **options):
            given.append(json.dumps(environment))
            super().__init__(environment, **options)

        def call(self, name, arguments, *rest):
            given.append(json.dumps(arguments))
            return super().call(name, arguments, *rest)

    monkeypatch.setattr("hsmcore.serve.site.Child", Seen)
    async with opened(config) as manager, attached(manager) as site:
        await manager.sign(b"m")
        assert (await asked(site.address, "/api/state", token=OPERATOR)).status == 200
        refused = await asked(site.address, "/api/actions/rotate", "POST", token=OPERATOR, body=b'{"reason": "r"}')
        assert refused.status == 400  # no rotation is configured
    text = "".join(given)
    assert "signatures" in text
    assert OPERATOR not in text
    assert world.pin not in text


# ---- the answers ----


class Told:
    """A source that counts what it is asked."""

    manager = None
    beside = True

    def __init__(self):
        self.config = hsmcore.load({"keyManager": EPHEMERAL})
        self.described, self.recorded = 0, []

    async def describe(self):
        self.described += 1
        return {"members": [], "failover": None}

    async def record(self, *record):
        self.recorded.append(record)


def answers_of(source):
    return Answers(source, Access(HeldTokens.of(Monitoring.model_validate({"operatorToken": Secret.plain(OPERATOR)}))))


@one_loop
async def test_what_acts_asks_for_the_token_again():
    source = Told()
    answers = answers_of(source)
    for header, status in (("Bearer " + "w" * 40, 403), ("", 403), (f"Bearer {OPERATOR}", 400)):
        (found, _), problem = await answers.of("act", [header, "192.0.2.1", "rotate", '{"reason": "r"}'])
        assert (found, problem) == (status, "")
    assert source.recorded == []


@one_loop
async def test_the_state_is_read_as_often_as_the_signer_allows(monkeypatch):
    source = Told()
    answers = answers_of(source)
    for _ in range(5):
        await asyncio.gather(*(answers.of("look", [False]) for _ in range(20)))
    assert source.described == 1
    monkeypatch.setattr("hsmcore.serve.answers.STATE_SECONDS", 0.0)
    await answers.of("look", [False])
    assert source.described == 2


@one_loop
async def test_an_answer_that_fails_says_nothing_of_why_and_the_others_go_on(monkeypatch):
    async def fails(_self, _kind):
        raise RuntimeError("a word of the inside")

    monkeypatch.setattr(Answers, "_metrics", fails)
    others = children()
    async with opened({"keyManager": EPHEMERAL}) as manager, attached(manager, "127.0.0.1:0") as site:
        server = started_since(others)
        answer = await asked(site.address, "/metrics")
        assert (answer.status, b"inside" in answer.body) == (503, False)
        assert (await asked(site.address, "/keys")).status == 404  # it has none, says the signer
        assert started_since(others) == server
