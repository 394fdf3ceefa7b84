"""hsmcore-client, clients/python: the wheel alone in an environment of its own, against the real gateway."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from scripts.wheels import MINORS, build, found_interpreters
from tests.integration.test_batching import batching
from tests.support.authority import Authority
from tests.support.doc_blocks import block
from tests.support.environments import NEEDED, Environment
from tests.support.gateways import gateway
from tests.support.loops import one_loop
from tests.support.paths import ROOT
from tests.support.size import each

from hsmcore import verify_batched

PROGRAM = ROOT / "tests" / "support" / "pure_client.py"
each_python = pytest.mark.parametrize("python", each(2, [f"python3.{minor}" for minor in MINORS]))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of what is here."""
    return build(
        Path(sys.executable), ROOT / "clients" / "python", tmp_path_factory.mktemp("wheel") / "raw", "bdist_wheel"
    )


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """It alone, and what verifying needs."""
    made = Environment(tmp_path_factory.mktemp("environment") / "venv")
    made.install(wheel)
    made.lend(*NEEDED)
    return made


def bare(python, wheel, folder):
    """An environment of another interpreter with the wheel alone."""
    found = next((path for path in found_interpreters() if path.name == python), None)
    if found is None:
        pytest.skip(f"there is no {python} here")
    made = Environment(folder / "venv", found)
    made.install(wheel)
    return made


class Running:
    """The program in another environment, that asks one gateway."""

    def __init__(self, environment, address, tls=None):
        line = [environment.python, "-I", PROGRAM, json.dumps([address, tls])]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    async def __aenter__(self):
        assert json.loads(await self._line()) == "test"
        return self

    async def __aexit__(self, *_):
        with self._process:
            loaded = await asyncio.to_thread(lambda: self._process.communicate(timeout=60)[0])
        assert (self._process.returncode, loaded) == (0, "[]\n")

    async def _line(self):
        line = await asyncio.to_thread(self._process.stdout.readline)
        assert line, "the program has ended"
        return line

    async def do(self, *said):
        """Have it do something. Returns what it says of it."""
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()
        return json.loads(await self._line())


def is_signed(public_key, message, signature):
    try:
        VerifyKey(bytes.fromhex(public_key)).verify(message, bytes.fromhex(signature))
    except BadSignatureError:
        return False
    return True


def over_tls(folder):
    """Settings of a gateway that keeps its port, and what its client needs."""
    authority = Authority(folder)
    own, mine = authority.issue("gateway", ips=["127.0.0.1"]), authority.issue("client", dns=["sequencer.test"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "listen": [f"tls:127.0.0.1:{port}"],
        "tls": {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file},
        "clients": {"test": {"names": ["dns:sequencer.test"], "keys": ["default"], "manages": True}},
    }
    return settings, [mine.certificate, mine.key, authority.file]


@pytest.mark.integration
@pytest.mark.slow("a gateway is started three times")
@pytest.mark.parametrize("over", ["unix", "tls"])
@one_loop
async def test_the_wheel_alone_signs_batches_verifies_follows_a_rotation_and_outlives_the_gateway(
    environment, fresh_token, tmp_path, over
):
    settings, tls = over_tls(tmp_path) if over == "tls" else ({}, None)
    config = batching(fresh_token(), tmp_path, ["raw", "batch-root"], intervalMs=1)
    async with gateway(tmp_path, config, **settings) as served, Running(environment, served.addresses[0], tls) as one:
        first, signatures = await one.do("sign", "a message", 100)
        assert all(is_signed(first, b"a message %d" % n, each) for n, each in enumerate(signatures))
        assert await one.do("verify", "a message 7", signatures[7]) is True
        assert await one.do("verify", "a message 8", signatures[7]) is False
        proof, key, holds, again = await one.do("batched", "one of many")
        assert (key, holds, again) == (first, [True, False], True)
        assert verify_batched(bytes.fromhex(key), b"one of many", proof.encode())
        assert await one.do("refused") == ["EmptyMessage", "hsmcore_client.errors", False]

        await one.do("begin")
        for _ in range(2):
            await one.do("more_than", 20)
            await served.kill()
            await served.start()
        await one.do("more_than", 20)
        found = await one.do("end")
        assert all(key == first and is_signed(key, b"load %d" % number, each) for number, key, each in found)
        for rest in range(4):  # none was lost, and none came twice
            numbers = [number for number, *_ in found if number % 4 == rest]
            assert numbers == [4 * at + rest for at in range(len(numbers))]

        listed = await one.do("rotate")
        second, [signature] = await one.do("sign", "after it", 1)
        assert listed == [first, second]
        assert is_signed(second, b"after it 0", signature)
        assert await one.do("verify", "a message 7", signatures[7]) is True


@pytest.mark.integration
@each_python
@one_loop
async def test_each_python_signs_and_says_what_is_missing_to_verify(wheel, fresh_token, tmp_path, python):
    alone = bare(python, wheel, tmp_path)
    config = batching(fresh_token(), tmp_path, ["raw", "batch-root"], intervalMs=1)
    async with gateway(tmp_path, config) as served, Running(alone, served.addresses[0]) as one:
        key, [signature] = await one.do("sign", "m", 1)
        assert is_signed(key, b"m 0", signature)
        said = "to verify, cryptography is needed: pip install 'cryptography>=44'"
        assert await one.do("verify", "m 0", signature) == said
        assert await one.do("batched", "m") == said
        await one.do("sign", "m", 1)
    batches = [line for line in (tmp_path / "audit.log").read_text().splitlines() if '"batch-root"' in line]
    assert batches == []  # nothing was sent that could not be verified


ALL = """
import json, pkgutil, sys
import hsmcore_client

hsmcore_client.Client, hsmcore_client.ClientTls, hsmcore_client.HsmError
first = [name for name in sys.modules if name.startswith("hsmcore_client.")]
failed = {}
for module in pkgutil.walk_packages(hsmcore_client.__path__, "hsmcore_client."):
    try:
        __import__(module.name)
    except ModuleNotFoundError as error:
        failed[module.name] = error.name.partition(".")[0]
print(json.dumps([first, failed]))
"""


@each_python
def test_nothing_else_is_imported_but_where_something_is_verified(wheel, tmp_path, python):
    """In an environment that has nothing else."""
    alone = bare(python, wheel, tmp_path)
    first, failed = json.loads(alone.run("-c", ALL))
    assert [name for name in first if name.startswith(("hsmcore_client.tlog", "hsmcore_client._pure"))] == []
    verifying = {"_pure", "tlog.batch_proof", "tlog.key_set", "tlog.note", "tlog.proof_bytes"}
    assert failed == {f"hsmcore_client.{name}": "cryptography" for name in verifying}


def test_beside_hsmcore_each_is_itself(environment):
    """Both in one process: neither takes anything from the other."""
    program = f"""
import sys
sys.path.append({str(environment.packages)!r})
import hsmcore, hsmcore.gateway, hsmcore_client
from hsmcore_client.tlog.note import verify
assert hsmcore_client.Client is not hsmcore.gateway.Client
assert not issubclass(hsmcore_client.HsmError, hsmcore.HsmError)
assert verify.__module__ == "hsmcore_client._pure"
homes = {{module.__file__.rpartition("/hsmcore/")[0] for name, module in sys.modules.items()
         if name.partition(".")[0] == "hsmcore" and getattr(module, "__file__", None)}}
assert homes == {{{str(ROOT / "core")!r}}}, homes
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_program_that_runs_with_either(environment):
    either = block("clients/python/README.md", "python", 2) + "print(Client.__module__, hsmcore.HsmError.__module__)"
    assert environment.run("-c", either) == "hsmcore_client.gateway.client.client hsmcore_client.errors\n"
    done = subprocess.run([sys.executable, "-c", either], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "hsmcore.gateway.client.client hsmcore.errors\n"


TYPED = """
from typing import assert_type

import hsmcore_client
from hsmcore_client import Client, ClientTls, HsmError, KeySet, QueueFull


async def use(tls: ClientTls, note: bytes, key: bytes) -> bytes:
    async with Client("tls:signer.example:7443", tls=tls) as km:
        km.on("key-changed", print)
        receipt = await km.sign_with_receipt(hsmcore_client.payload("block", "d", 1, bytes(32)), kind="block")
        assert_type(receipt, hsmcore_client.Receipt)
        assert_type(receipt.audit_seq, int | None)
        batched = await km.sign_batched(b"m")
        assert_type(batched.proof, bytes)
        assert_type(hsmcore_client.verify_batched(key, b"m", batched.proof), bool)
        assert_type(KeySet.trust(note, key).current.public_key, bytes)
        try:
            return await km.sign(b"m")
        except QueueFull as error:
            assert_type(error.retry_after_ms, int)
            raise hsmcore_client.errors.BadArgument(str(error)) from None
        except HsmError as error:
            assert_type(error.retryable, bool)
            raise
"""
TYPOS = (
    "hsmcore_client.KeyManager",
    "hsmcore_client.Clint",
    "hsmcore_client.gateway.Clint",
    "hsmcore_client.Client(7)",
)


@pytest.mark.timeout(600)
def test_a_strict_type_checker_finds_each_typo_and_nothing_else(wheel, tmp_path):
    alone = Environment(tmp_path / "venv")
    alone.install(wheel)
    typos = "".join(f"    {line}\n" for line in TYPOS)
    (tmp_path / "program.py").write_text(f"{TYPED}\n\ndef typos() -> None:\n{typos}")
    line = [sys.executable, "-m", "mypy", "--strict", "--python-executable", alone.python, "--cache-dir", "cache"]
    done = subprocess.run([*line, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    found = {int(line) for line in re.findall(r"program\.py:(\d+): error", done.stdout)}
    first = TYPED.count("\n") + 4
    assert found == set(range(first, first + len(TYPOS))), done.stdout + done.stderr
