"""`hsmcore gateway` as a process: how it begins, ends and is killed, and what its clients notice."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
from nacl.signing import VerifyKey
from tests.support.authority import Authority
from tests.support.chaos import Chaos, wrap
from tests.support.loops import one_loop
from tests.support.managers import becomes, until
from tests.support.wire import read_signed
from tests.support.wire_site import ME, Peer, document, sign
from tests.support.zygote import CLI, Forked

from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type

pytestmark = pytest.mark.integration
M = b"a message"
START = "import sys; from hsmcore.cli.app import run; sys.exit(run(sys.argv[1:]))"
GIVEN = "import os; os.environ['LISTEN_PID'] = str(os.getpid()); os.dup2({fd}, 3); " + START


class Process:
    """A gateway in a process of its own."""

    def __init__(self, folder, config, *, script="", fds=(), **environment):
        self.path = str(folder / "sign.sock")
        file = folder / "gateway.json"
        file.write_text(json.dumps(config))
        line, env = ["gateway", "--config", str(file), "--json"], {**os.environ, **environment}
        if script:
            line = [sys.executable, "-c", script, *line]
            self.child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, pass_fds=fds)
        else:
            self.child = Forked([CLI, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)

    async def said(self):
        """The line that it prints once it listens."""
        line = await asyncio.to_thread(self.child.stdout.readline)
        assert line, self.child.stderr.read().decode()
        return json.loads(line)

    async def ended(self):
        """Its exit code, and what it wrote to stderr."""
        _, said = await asyncio.to_thread(self.child.communicate)
        return self.child.returncode, said.decode()

    @asynccontextmanager
    async def peer(self, nonce=None):
        """A connection after HELLO."""
        peer = Peer(*await asyncio.open_unix_connection(self.path))
        try:
            await peer.hello(nonce)
            yield peer
        finally:
            await peer.close()


@asynccontextmanager
async def gateway(folder, config, **how):
    """A gateway that runs; it is killed at the end if it still does."""
    process = Process(folder, config, **how)
    try:
        process.shown = await process.said()
        yield process
    finally:
        if process.child.poll() is None:
            process.child.kill()
        await process.ended() if not process.child.stdout.closed else None


@one_loop
async def test_it_says_where_it_listens_and_leaves_nothing_behind(world, tmp_path):
    async with gateway(tmp_path, document(world.config(), tmp_path)) as process:
        assert process.shown["addresses"] == [f"unix:{process.path}"]
        assert os.stat(process.path).st_mode & 0o777 == 0o660  # noqa: PTH116
        async with process.peer() as peer:
            await peer.signed(sign(1, M))
            process.child.send_signal(signal.SIGTERM)
            assert (await peer.next()).type is Type.GOAWAY
            assert await peer.ends() == b""
        assert await process.ended() == (0, "")
        assert "sign.sock" not in os.listdir(tmp_path)  # noqa: PTH208


@one_loop
async def test_sigterm_answers_what_is_open_and_refuses_what_comes(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    config = document(chaos.config(settings={"sessions": 2}), tmp_path, drainMs=60_000)
    nonce = os.urandom(16)
    async with gateway(tmp_path, config) as process, process.peer(nonce) as peer:
        first = await peer.signed(sign(1, b"first"))
        before = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True)
        peer.send(sign(2, M, timeout_ms=120_000))
        await until(lambda: chaos.calls("C_Sign") > before)
        process.child.send_signal(signal.SIGTERM)
        found = await peer.next()
        left, _ = wire.read_goaway(found.body)
        assert left == 60_000
        refusal = await peer.refused(sign(3, b"too late"))
        assert (refusal.status, refusal.retryable, refusal.maybe_signed) == ("BUSY", True, False)
        assert refusal.retry_after_ms == 1000
        assert await peer.signed(sign(1, b"first", again=True)) == first  # an answer from before is still there
        with pytest.raises(FileNotFoundError):
            await asyncio.open_unix_connection(process.path)
        chaos.release()
        found = await peer.next()
        assert (found.type, found.request) == (Type.SIGNED, 2)
        assert await peer.ends() == b""
        assert (await process.ended())[0] == 0


@one_loop
async def test_a_drain_under_load_loses_no_answer(world, tmp_path):
    config = document(world.config(maxCacheSize=0), tmp_path)
    async with gateway(tmp_path, config) as process, process.peer() as peer:
        key = next(one.public_key for one in peer.welcome.keys if one.current)
        sent = range(1, 201)
        peer.send(*(sign(number, b"%d" % number) for number in sent))
        await peer.next()
        process.child.send_signal(signal.SIGTERM)
        answers = {}
        try:
            while True:
                found = await peer.next()
                if found.type is not Type.GOAWAY:
                    answers[found.request] = found
        except EOFError:
            pass
        assert len(answers) == len(sent) - 1
        for number, found in answers.items():
            if found.type is Type.SIGNED:
                VerifyKey(key).verify(b"%d" % number, read_signed(found.body).signature)
            else:
                refusal = wire.read_error(found.body)
                assert (refusal.status, refusal.maybe_signed) == ("BUSY", False)
        assert (await process.ended())[0] == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT])
@one_loop
async def test_no_signal_ends_it_without_the_answers(world, tmp_path, number):
    config = document(world.config(maxCacheSize=0), tmp_path, {"app": {**ME["app"], "inFlight": 1000}})
    async with gateway(tmp_path, config) as process, process.peer() as peer:
        sent = range(1, 901)
        peer.send(*(sign(each, b"%d" % each) for each in sent))
        found = [await peer.next()]
        process.child.send_signal(number)
        while len(found) < len(sent):
            found.append(await peer.next())
            if found[-1].type is Type.GOAWAY:
                found.pop()
        answers = [wire.read_error(one.body).status if one.type is Type.ERROR else "OK" for one in found]
        if number != signal.SIGQUIT:
            assert set(answers) == {"OK"}
            await peer.signed(sign(1000, M))
            process.child.send_signal(signal.SIGTERM)
        else:
            assert set(answers) <= {"OK", "BUSY"}  # it drains
        assert (await process.ended())[0] == 0


TOKENS = ["t" * 32, "u" * 32, "v" * 32]


async def status_of(authority, port, token):
    """What the gateway answers to a request with this token over HTTPS."""
    context = ssl.create_default_context(cafile=authority.file)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    head = f"GET /v1/auth/token/lookup-self HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {token}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    said = await reader.read()
    writer.close()
    return int(said.split()[1])


@one_loop
async def test_sighup_has_clients_and_tokens_read_again(world, tmp_path):
    authority, log = Authority(tmp_path), tmp_path / "audit.jsonl"
    own, issued = authority.issue("gateway", ips=["127.0.0.1"]), authority.issue("named", dns=["named.example"])
    context = ssl.create_default_context(cafile=authority.file)
    context.load_cert_chain(issued.certificate, issued.key)
    token = tmp_path / "token"
    token.write_text(TOKENS[0])
    token.chmod(0o600)
    web = {"token": {"file": str(token)}, "keys": ["default"]}
    app, named_too = {**ME["app"], "inFlight": 64}, {"names": ["dns:named.example"], "keys": ["default"]}
    clients = {"app": app, "web": web, "named": named_too}
    more = {
        "listen": [f"unix:{tmp_path}/sign.sock", "tls:127.0.0.1:0", "https:127.0.0.1:0"],
        "tls": {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file},
    }
    config, nonce = world.config(auditLogFile=str(log)), os.urandom(16)
    async with gateway(tmp_path, document(config, tmp_path, clients, **more)) as process, process.peer(nonce) as peer:
        tls, https = (int(one.rsplit(":", 1)[1]) for one in process.shown["addresses"][1:])
        first = await peer.signed(sign(1, M))
        named = Peer(*await asyncio.open_connection("127.0.0.1", tls, ssl=context))
        await named.hello()
        await named.signed(sign(1, M))
        assert [await status_of(authority, https, one) for one in TOKENS] == [200, 403, 403]

        def again(text):
            (tmp_path / "gateway.json").write_text(text)
            process.child.send_signal(signal.SIGHUP)

        async def is_told():
            line = await asyncio.to_thread(process.child.stderr.readline)
            assert b"cannot be used" in line
            assert not any(one.encode() in line for one in TOKENS)

        # The token's file is replaced: connections of others go on.
        token.write_text(TOKENS[1])
        again(json.dumps(document(config, tmp_path, clients, **more)))
        await becomes(lambda: has_status(authority, https, TOKENS[1], 200))
        assert await status_of(authority, https, TOKENS[0]) == 403
        assert await peer.signed(sign(1, M, again=True)) == first
        # What cannot be used changes nothing.
        for bad in ("{", json.dumps(document(config, tmp_path, {"app": {"uid": [1], "keys": ["no"]}}, **more))):
            again(bad)
            await is_told()
        token.write_text("short")
        again(json.dumps(document(config, tmp_path, clients, **more)))
        await is_told()
        assert [await status_of(authority, https, one) for one in TOKENS] == [403, 200, 403]
        token.write_text(TOKENS[2])
        # One client is gone; one has other rules, and gets its answers on its next connection.
        fewer = {"app": {**ME["app"], "inFlight": 8}, "web": web}
        again(json.dumps(document(config, tmp_path, fewer, **more)))
        assert (await peer.next()).type is Type.GOAWAY
        assert await peer.signed(sign(1, M, again=True)) == first
        assert (await peer.refused(sign(2, M))).status == "BUSY"
        assert (await named.next()).type is Type.GOAWAY
        assert (await named.refused(sign(2, M))).status == "BUSY"
        assert wire.read_error((await named.next()).body).status == "POLICY_REFUSED"
        assert await named.ends() == b""
        async with process.peer(nonce) as next_one:
            assert next_one.welcome.credits == 8
            assert await next_one.signed(sign(1, M, again=True)) == first
            await next_one.signed(sign(2, M))
        assert [await status_of(authority, https, one) for one in TOKENS] == [403, 403, 200]
        stranger = Peer(*await asyncio.open_connection("127.0.0.1", tls, ssl=context))
        assert wire.read_error((await stranger.next()).body).status == "POLICY_REFUSED"
        await stranger.close()
        await named.close()
        process.child.send_signal(signal.SIGTERM)
        assert await process.ended() == (0, "")


async def has_status(authority, port, token, status):
    return await status_of(authority, port, token) == status


@one_loop
async def test_a_socket_of_the_service_manager_is_used_and_stays(world, tmp_path):
    path = tmp_path / "sign.sock"
    with socket.socket(socket.AF_UNIX) as bound, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        bound.bind(str(path))
        bound.listen()
        told.bind(str(tmp_path / "notify"))
        fd = bound.fileno()
        how = {
            "script": GIVEN.format(fd=fd),
            "fds": (fd,),
            "LISTEN_FDS": "1",
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
        }
        async with gateway(tmp_path, document(world.config(), tmp_path), **how) as process:
            assert await asyncio.to_thread(told.recv, 100) == b"READY=1"
            async with process.peer() as peer:
                await peer.signed(sign(1, M))
            process.child.send_signal(signal.SIGTERM)
            assert (await process.ended())[0] == 0
            assert await asyncio.to_thread(told.recv, 100) == b"STOPPING=1"
        assert path.exists()
        waits = socket.socket(socket.AF_UNIX)
        waits.connect(str(path))  # until the next gateway
        waits.close()


@one_loop
async def test_a_socket_that_is_not_configured_is_refused(world, tmp_path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "other.sock"))
        fd = bound.fileno()
        process = Process(
            tmp_path, document(world.config(), tmp_path), script=GIVEN.format(fd=fd), fds=(fd,), LISTEN_FDS="1"
        )
        code, said = await process.ended()
    assert code == 2
    assert "other.sock" in said


@one_loop
async def test_a_configuration_without_clients_is_refused_before_anything_opens(world, tmp_path):
    process = Process(tmp_path, world.config())
    code, said = await process.ended()
    assert code == 2
    assert "$.sequencer.gateway: is missing" in said
