"""The processes of a gateway that speak TLS and HTTP: what they hold, what they may say, how they end and come back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.support import vault_site
from tests.support.authority import Authority
from tests.support.leaks import children
from tests.support.loops import one_loop
from tests.support.managers import becomes, until
from tests.support.scrapes import Scrape
from tests.support.vault_site import b64
from tests.support.wire_site import ME, document, refusals, sign, site

from hsmcore.errors import HsmError
from hsmcore.gateway import connection, front_process, fronts
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type

pytestmark = pytest.mark.integration
M, TOKEN = b"a message", "t" * 40
SIGN = "/v1/transit/sign/default"


class Gateway:
    """A gateway with all faces. `site`: its Unix socket and TLS; `vault`: HTTPS."""

    def __init__(self, served, authority, named):
        self.site, self.authority, self.named = served, authority, named
        where = ("127.0.0.1", int(served.addresses[2].rsplit(":", 1)[1]))
        self.vault = vault_site.Site(where, served.served, authority)

    @property
    def context(self):
        context = ssl.create_default_context(cafile=self.authority.file)
        context.load_cert_chain(self.named.certificate, self.named.key)
        return context

    def front(self, face):
        """The process of a face."""
        [found] = [one for one in self.site.served.fronts._running if one.face == face]
        return found._process.pid


def settings(tmp_path, **more):
    authority = Authority(tmp_path)
    own, named = authority.issue("gateway", ips=["127.0.0.1"]), authority.issue("named", dns=["named.example"])
    clients = {
        "app": {**ME["app"], "inFlight": 4096},
        "named": {"names": ["dns:named.example"], "keys": ["default"], "inFlight": 4096},
        "web": {"token": TOKEN, "keys": ["default"]},
    }
    gateway = {
        "listen": [f"unix:{tmp_path}/sign.sock", "tls:127.0.0.1:0", "https:127.0.0.1:0"],
        "tls": {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file},
        **more,
    }
    return authority, named, clients, gateway


@asynccontextmanager
async def opened(config, tmp_path, **more):
    authority, named, clients, gateway = settings(tmp_path, **more)
    async with site(config, tmp_path, clients, **gateway) as served:
        yield Gateway(served, authority, named)


async def signs(gateway):
    """Whether both fronts serve."""
    try:
        async with gateway.site.over_tls(gateway.context) as peer:
            await peer.hello()
            await peer.signed(sign(1, M))
        return bool(await gateway.vault.data("POST", SIGN, {"input": b64(M)}, token=TOKEN))
    except (OSError, EOFError):
        return False


@one_loop
async def test_one_that_ends_is_started_again_and_costs_no_answer_and_no_other_connection(world, tmp_path):
    nonce = os.urandom(16)
    async with opened(world.config(), tmp_path) as gateway, gateway.site.peer() as near:
        async with gateway.site.over_tls(gateway.context) as peer:
            await peer.hello(nonce)
            first = await peer.signed(sign(1, M))
            assert await gateway.vault.data("POST", SIGN, {"input": b64(M)}, token=TOKEN)
            for face in ("tls", "https"):
                os.kill(gateway.front(face), signal.SIGKILL)
            assert await peer.ends() == b""
        await near.signed(sign(1, M))
        await becomes(lambda: signs(gateway))
        async with gateway.site.over_tls(gateway.context) as peer:
            await peer.hello(nonce)
            assert await peer.signed(sign(1, M, again=True)) == first
        assert Scrape.of(gateway.site.manager).all("hsmcore_gateway_front_restarts_total") == [2]
        assert gateway.site.server.repeated == 1


@one_loop
async def test_one_that_says_nothing_is_killed(world, tmp_path, monkeypatch):
    monkeypatch.setattr(fronts, "LOST_SECONDS", 1.0)
    async with opened(world.config(), tmp_path) as gateway:
        before = gateway.front("tls")
        os.kill(before, signal.SIGSTOP)
        await until(lambda: gateway.site.served.fronts.restarts >= 1)
        await becomes(lambda: signs(gateway))
        assert gateway.front("tls") != before


@one_loop
async def test_they_end_with_the_process_that_has_the_keys_whatever_ends_it(world, tmp_path):
    authority, _, clients, gateway = settings(tmp_path)
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps(document(world.config(), tmp_path, clients, **gateway)))
    script = "import sys; from hsmcore.cli.app import run; sys.exit(run(sys.argv[1:]))"
    line = [sys.executable, "-c", script, "gateway", "--config", str(file), "--json"]
    child = await asyncio.create_subprocess_exec(*line, stdout=subprocess.PIPE, start_new_session=True)
    try:
        port = json.loads(await child.stdout.readline())["addresses"][2].rsplit(":", 1)[1]
        fronts_of = children_of(child.pid)
        assert len(fronts_of) == 2
        for pid in fronts_of:  # what a terminal or a service manager sends to all of them ends none
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(pid, number)
            assert os.getsid(pid) == pid
        asked = vault_site.Site(("127.0.0.1", int(port)), None, authority).asked("GET", "/v1/sys/health", token=None)
        assert (await asked).status == 200
        assert children_of(child.pid) == fronts_of
    finally:
        child.kill()
        await child.wait()
    await until(lambda: not any(is_alive(pid) for pid in fronts_of))


def children_of(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(each) for task in tasks for each in (task / "children").read_text().split()}


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@one_loop
async def test_they_get_no_secret(world, tmp_path, monkeypatch):
    given, started, written = [], fronts.started, fronts.FrontProcess._write
    monkeypatch.setenv("SOMETHING_SECRET", "a secret of the environment")

    def seen(environment, main, descriptors):
        given.append(json.dumps(environment))
        return started(environment, main, descriptors)

    def noted(front, said):
        given.append(json.dumps(said))
        written(front, said)

    monkeypatch.setattr(fronts, "started", seen)
    monkeypatch.setattr(fronts.FrontProcess, "_write", noted)
    async with opened(world.config(), tmp_path) as gateway:
        assert await signs(gateway)
        await gateway.site.served.fronts.follow()
        for face in ("tls", "https"):
            kinds = descriptors_of(gateway.front(face))
            assert not any("softhsm" in one or "audit" in one or "memfd" in one for one in kinds), kinds
    text = "".join(given)
    assert "dns:named.example" in text
    for secret in (TOKEN, world.pin, "a secret of the environment"):
        assert secret not in text


def descriptors_of(pid):
    return {str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()}


def test_they_are_confined_as_a_host_process_is():
    child = fronts.started({"PATH": os.environ["PATH"]}, "tests.support.confined", (), subprocess.PIPE)
    child.stdin.write(b"%d\n" % os.getpid())
    found = json.loads(child.stdout.readline())
    child.communicate()
    assert front_process.CONFINED
    assert found == dict.fromkeys(found, "PermissionError")
    assert len(found) == 6


def test_they_import_nothing_that_they_do_not_need():
    code = "import sys, hsmcore.gateway.front_process; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"hsmcore.gateway.front.pumps", "ssl"} < set(told)
    unneeded = {"pkcs11", "cryptography", "pydantic", "sqlalchemy", "uvicorn", "starlette", "structlog"}
    assert not unneeded & {name.partition(".")[0] for name in told}
    assert not any(name.startswith(("hsmcore.config", "hsmcore.manager", "hsmcore.state")) for name in told)


@pytest.mark.parametrize(
    ("face", "name", "generation", "taken"),
    [
        ("wire", "named", 1, True),
        ("vault", "named", 1, True),
        ("vault", "web", 1, True),
        ("wire", "web", 1, False),  # known by a token only
        ("wire", "app", 1, False),  # known on a Unix socket only
        ("vault", "app", 1, False),
        ("wire", "nobody", 1, False),
        ("wire", "named", 0, False),  # of a list that is not the one now
    ],
)
@one_loop
async def test_one_speaks_for_the_clients_that_it_can_know_and_for_no_other(
    world, tmp_path, face, name, generation, taken
):
    async with opened(world.config(), tmp_path) as gateway:
        own, theirs = socket.socketpair()
        gateway.site.served.fronts.hand_over(face, generation, name, "127.0.0.1", theirs)
        reader, writer = await asyncio.open_connection(sock=own)
        writer.write(wire.hello(bytes(16), "x"))
        with suppress(ConnectionError):
            assert bool(await reader.read(100)) is taken
        writer.close()


@pytest.mark.parametrize(
    "said",
    [
        b"{", b"7", b"[]", b'["what"]', b'["refused", 0, "a", "b", "c"]', b'["refused", 1, 2, 3, 4]',
        b'["counted", [["web", "OK", -1]]]', b'["counted", [["web", "NONSENSE", 1]]]',
        b'["counted", [["who", "OK", 1]]]',
        b'["counted", 7]', b'["wire", 1, "named", "x", 1]', b'["wire", 1, "named", "x"]', b'["ready", 1]',
        b'["ended", 7]', b'["ended", [[]]]', b"\xff" * 1000,
    ],
)  # fmt: skip
@one_loop
async def test_one_that_says_nonsense_is_killed_and_believed_nothing(world, tmp_path, said):
    async with opened(world.config(), tmp_path) as gateway:
        served = gateway.site.served.fronts
        [front] = [one for one in served._running if one.face == "tls"]
        line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.send(said)
            line.setblocking(False)
            asyncio.get_running_loop().remove_reader(front._line)
            front._line.close()
            front._line = line
            front._read()
        assert front.ended.done()
        assert "nonsense" in front.problem
        assert gateway.site.server.desk.strangers == 0
        assert not gateway.site.server.desk.requests
        await becomes(lambda: signs(gateway))


@one_loop
async def test_one_that_cannot_start_is_told_and_leaves_nothing(world, tmp_path, monkeypatch):
    before = children()
    monkeypatch.setattr(fronts, "_MAIN", "hsmcore.gateway.refusals")  # which serves nothing
    with pytest.raises(HsmError, match="a front of the gateway did not start"):
        async with opened(world.config(), tmp_path):
            pass
    assert children() == before


@one_loop
async def test_a_client_behind_it_that_does_not_read_is_not_read(world, tmp_path):
    async with opened(world.config(), tmp_path) as gateway, gateway.site.over_tls(gateway.context) as peer:
        await peer.hello()
        peer.writer.transport.pause_reading()
        [served] = gateway.site.server.connections
        sent = 0

        def stands_still():
            nonlocal sent
            if peer.writer.transport.get_write_buffer_size() < 1 << 20:
                sent += 1
                peer.send(*(sign(number, bytes(4000)) for number in range(500 * sent + 1, 500 * sent + 501)))
            return served._overdue is not None or served._held_bytes >= connection.HELD_BYTES

        await until(stands_still)
        peer.writer.transport.resume_reading()
        numbers = set()
        while len(numbers) < 500 * sent:
            found = await peer.next()
            if found.type in (Type.SIGNED, Type.ERROR):
                numbers.add(found.request)


@one_loop
async def test_what_strangers_do_is_recorded_with_a_bound_and_told_to_the_signer_as_seldom(world, tmp_path):
    config = world.config(auditLogFile=str(tmp_path / "audit.log"))
    async with opened(config, tmp_path) as gateway:
        heard, front = [], next(one for one in gateway.site.served.fronts._running if one.face == "https")
        take = front._take
        front._take = lambda *said, fds: (heard.append(said), take(*said, fds=fds))
        for _ in range(60):
            assert (await gateway.vault.asked("GET", "/v1/transit/keys/default", token="x" * 40)).status == 403
            assert (await gateway.vault.asked("GET", "/v1/sys/health", token=None)).status == 200
        await until(lambda: gateway.site.server.desk.strangers == 60)
        told = [said for said in heard if said[0] == "refused"]
        assert len(told) < 40
        assert sum(said[1] for said in told) == 60
        assert not [said for said in heard if said[0] not in ("refused", "counted", "followed")]
        await becomes(lambda: has_records(gateway, tmp_path / "audit.log"))


async def has_records(gateway, log):
    await gateway.site.manager.audit.flush()
    return any(one["why"] == "unknown token" and one["label"] == "127.0.0.1" for one in refusals(log))
