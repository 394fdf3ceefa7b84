"""`init --gateway`, and the commands that ask a gateway instead of a token."""

import asyncio
import json
import signal
import subprocess
from contextlib import asynccontextmanager

import pytest
from nacl.signing import VerifyKey
from tests.support.authority import Authority
from tests.support.loops import one_loop
from tests.support.wire_site import site
from tests.support.zygote import CLI, Forked, run

pytestmark = pytest.mark.integration


def said(*arguments):
    """What a command prints as JSON."""
    done = run(CLI, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return json.loads(done.stdout)


def failed(*arguments):
    """Exit code and error of a command."""
    done = run(CLI, *arguments, "--json")
    return done.returncode, json.loads(done.stdout or done.stderr)["error"]["message"]


@asynccontextmanager
async def process(*arguments):
    child = Forked([CLI, *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield json.loads(await asyncio.to_thread(child.stdout.readline))
        child.send_signal(signal.SIGTERM)
        await asyncio.to_thread(child.communicate)
        assert child.returncode == 0
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()


@one_loop
async def test_what_init_made_is_served_and_asked_without_the_key(tmp_path):
    state = str(tmp_path / "state")
    made = await asyncio.to_thread(said, "init", "--state", state, "--gateway")
    address = f"unix:{state}/gateway.sock"
    asks = ["--gateway", address]
    async with process("gateway", "--state", state) as shown:
        assert shown["addresses"] == [address]
        signed = await asyncio.to_thread(said, "sign", "--text", "hello", *asks)
        assert (signed["publicKey"], signed["member"]) == (made["publicKey"], address)
        VerifyKey(bytes.fromhex(made["publicKey"])).verify(b"hello", bytes.fromhex(signed["signature"]))
        good = await asyncio.to_thread(said, "verify", "--text", "hello", "--signature", signed["signature"], *asks)
        assert good == {"valid": True}
        [key] = await asyncio.to_thread(said, "keys", "list", *asks)
        assert (key["id"], key["publicKey"], key["signs"]) == (made["keyId"], made["publicKey"], True)
        assert key["address"] == made["address"]
        about = await asyncio.to_thread(said, "doctor", *asks)
        assert (about["client"], about["keyManagers"], about["currentKeyId"]) == ("me", ["default"], made["keyId"])
        of_list = ("doctor", "--gateway", f"unix:{state}/nothing.sock,{address}", "--json")
        done = await asyncio.to_thread(run, CLI, *of_list)
        assert json.loads(done.stdout)["address"] == address
        code, why = await asyncio.to_thread(failed, "sign", "--text", "hello", *asks, "--key-manager", "other")
        assert code == 1
        assert "may not use a key manager 'other'" in why
    code, why = await asyncio.to_thread(failed, "sign", "--text", "hello", *asks)
    assert code == 1
    assert "cannot be reached" in why


@one_loop
async def test_a_gateway_elsewhere_is_asked_with_a_certificate(world, tmp_path):
    authority = Authority(tmp_path)
    own, mine = authority.issue("gateway", ips=["127.0.0.1"]), authority.issue("client", dns=["sequencer.test"])
    given = {
        "listen": ["tls:127.0.0.1:0"],
        "tls": {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file},
    }
    clients = {"app": {"names": ["dns:sequencer.test"], "keys": ["default"]}}
    async with site(world.config(), tmp_path, clients, **given) as gateway:
        [address] = gateway.served.addresses
        files = f"{mine.certificate},{mine.key},{authority.file}"
        signed = await asyncio.to_thread(said, "sign", "--text", "hello", "--gateway", address, "--tls", files)
        assert signed["publicKey"] == next(iter(world.keys.values())).public_key.hex()
        code, why = await asyncio.to_thread(failed, "sign", "--text", "hello", "--gateway", address)
        assert (code, why) == (2, '--gateway: tls belongs to a "tls:" address, and only to one')


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--tls", "a,b,c"], "--tls goes with --gateway"),
        (["--gateway", "unix:/x", "--tls", "a,b"], "expected CERTIFICATE,KEY,AUTHORITIES"),
        (["--gateway", "http://x"], "the address of a gateway must be"),
    ],
)
def test_options_that_do_not_go_together(arguments, problem):
    code, why = failed("sign", "--text", "hello", *arguments)
    assert code == 2
    assert problem in why
