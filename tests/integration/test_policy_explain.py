"""`hsmcore policy explain`: for each refusal that names it, it says the same reason."""

from __future__ import annotations

import asyncio
import json
import os
from base64 import b64encode
from contextlib import nullcontext
from typing import Any

import pytest
from solders.pubkey import Pubkey
from tests.integration.test_key_managers import KEYS, of_tokens
from tests.integration.test_policy import policed
from tests.integration.test_rotation import rules
from tests.support import payloads
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.policed import calling, key, moving, ordered
from tests.support.wire_site import document, site

import hsmcore
from hsmcore.cli.app import run as cli
from hsmcore.errors import PolicyRefused
from hsmcore.gateway import Client

pytestmark = pytest.mark.integration
AUTHORITY = {"transactions": {"role": "authority", "programs": {"System": ["Transfer"]}}}
PAYER = {"transactions": {"role": "fee-payer"}}
CALLERS = {"callers": {"blocks": {"kinds": ["block"], "inFlight": 8, "perSecond": 100}, "all": {}}}
ROOT = b"default/0\n1\n" + b64encode(bytes(32)) + b"\nhsmcore/batch-root/v1 0\ntime 1\n"
Case = tuple[bytes, dict[str, Any]]
BYTES: list[Case] = [
    (b"raw", {}),
    (b"\x82" * 70, {}),
    (bytes(32), {"kind": "prehashed"}),
    (b"raw", {"kind": "block"}),
    (moving(key(1), 1), {"kind": "block"}),
    (moving(key(1), 1), {"position": 1}),
    (ordered(1, domain="another"), {}),
    (payloads.ordered("block", 1 << 63), {}),
    (ordered(7), {"position": 8}),
    (ordered(5), {}),  # at the floor
    (ordered(1_000_006), {}),  # beyond maxAhead
    (ROOT, {}),
    (b"\xffhsmcore\x01\x02", {}),
]
NAMED: list[Case] = [
    (b"raw", {}),
    (b"raw", {"caller": "mallory"}),
    (b"raw", {"caller": "blocks"}),
    (b"\x82", {"caller": "all"}),
]


def command_of(path, capfd):
    """Returns `explain(message, how)`, whose results are the exit code and the document."""

    async def explain(message, how):
        options = [word for name, value in how.items() for word in (f"--{name}", str(value))]
        command = ["policy", "explain", message.hex(), *options, "--config", str(path), "--json"]
        code = await asyncio.to_thread(cli, command)
        said = capfd.readouterr()
        assert said.out, said.err
        return code, json.loads(said.out)

    return explain


async def refusal(manager, message, how):
    """Why the key manager does not sign a message."""
    claims = {name: value for name, value in how.items() if name != "caller"}
    with hsmcore.caller(how["caller"]) if "caller" in how else nullcontext():
        work = manager.sign_digest(message) if how.get("kind") == "prehashed" else manager.sign(message, **claims)
        with pytest.raises(PolicyRefused) as caught:
            await work
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("kinds", "policy", "cases"),
    [
        pytest.param(["tx-v0", "block"], {}, BYTES, id="bytes"),
        pytest.param(["tx-v0"], AUTHORITY, [(moving(key(1), 1), {}), (calling(key(1), key(7)), {})], id="authority"),
        pytest.param(["tx-v0"], PAYER, [(moving(key(1), 1), {})], id="fee-payer"),
        pytest.param(["raw", "block"], CALLERS, NAMED, id="callers"),
    ],
)
@one_loop
async def test_it_gives_the_reason_of_each_refusal(world, tmp_path, capfd, kinds, policy, cases):
    path, config = tmp_path / "config.json", policed(world, tmp_path, kinds, **policy)
    path.write_text(json.dumps(config))
    explain = command_of(path, capfd)
    async with opened(config) as manager:
        if cases is BYTES:
            await manager.sign(ordered(5))
            floor = ["policy", "floor", "set", "block", "5", "--reason", "a test", "--config", str(path)]
            assert await asyncio.to_thread(cli, floor) == 0
            capfd.readouterr()
        for message, how in cases:
            why = await refusal(manager, message, how)
            code, found = await explain(message, how | {"key": manager.public_key.hex()})
            assert (code, found["signed"], found["why"]) == (1, False, why)
        if policy is CALLERS:
            assert (await explain(ordered(9), {"caller": "all"}))[1]["limits"] == {}
            code, found = await explain(ordered(9), {"caller": "blocks"})
            assert (code, found["limits"]) == (0, {"perSecond": 100, "inFlight": 8})
        if "transactions" in policy:
            own, role = moving(Pubkey.from_bytes(manager.public_key), 1), policy["transactions"]["role"]
            code, found = await explain(own, {"key": manager.address})
            assert (found["role"], found["key"]) == (role, manager.public_key.hex())
            if role == "authority":
                assert (code, found["why"]) == (0, None)
            else:  # it pays, and is an account of the transfer, too
                assert found["why"] == await refusal(manager, own, {})


@one_loop
async def test_it_shows_what_would_leave_owned_accounts(world, tmp_path, capfd):
    owned = {str(key(number)): {"perMinute": 100} for number in (1, 2)}
    transactions = {"programs": {"System": ["Transfer"]}, "owned": owned}
    path, config = tmp_path / "config.json", policed(world, tmp_path, ["tx-v0"], transactions=transactions)
    path.write_text(json.dumps(config))
    explain = command_of(path, capfd)
    for _ in range(2):  # it counts nothing
        code, found = await explain(moving(key(1), 100), {})
        assert (code, found["moves"]) == (0, {str(key(1)): 100})
    assert (await explain(moving(key(3), 101), {}))[1]["moves"] is None
    code, found = await explain(moving(key(2), 101), {})
    assert (code, found["moves"]) == (1, {str(key(2)): 101})
    async with opened(config) as manager:
        assert found["why"] == await refusal(manager, moving(key(2), 101), {})


async def test_it_knows_the_key_of_the_ring(fresh_token, tmp_path, capfd):
    config = policed(fresh_token(), tmp_path, ["tx-v0"], rules=rules(tmp_path), **AUTHORITY)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    explain = command_of(path, capfd)
    code, found = await explain(moving(key(1), 1), {})
    assert (code, found["role"], found["key"]) == (0, "authority", None)  # no key has signed: it is not looked at
    async with opened(config) as manager:
        old = Pubkey.from_bytes(manager.public_key)
        assert (await explain(moving(old, 1), {}))[0] == 0
        await manager.rotate_key()
        code, found = await explain(moving(old, 1), {})
        assert (code, found["key"]) == (1, manager.public_key.hex())
        assert found["why"] == await refusal(manager, moving(old, 1), {})


@one_loop
async def test_it_knows_the_clients_of_the_gateway(world, tmp_path, capfd):
    own = {"uid": [os.getuid() + 1], "keys": ["default"]}
    clients = {"app": {**own, "uid": [os.getuid()], "kinds": ["tx-v0"], "perSecond": 5}, "other": own}
    config = policed(world, tmp_path, ["tx-v0", "raw"], transactions={"programs": {"System": ["Transfer"]}})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document(config, tmp_path, clients)))
    explain = command_of(path, capfd)
    async with site(config, tmp_path, clients) as served, Client(served.addresses[0]) as km:
        with pytest.raises(PolicyRefused) as caught:
            await km.sign(b"raw")
    assert "policy explain" in str(caught.value)
    code, found = await explain(b"raw", {"caller": "app"})
    assert (code, found["clientLimits"]) == (1, {"perSecond": 5, "inFlight": 256})
    assert str(caught.value).startswith(f"{found['why']}. ")
    assert (await explain(b"raw", {"caller": "other"}))[0] == 0
    code, found = await explain(moving(key(1), 1), {"caller": "app"})
    assert (code, found["role"], found["limits"]) == (0, None, None)


@one_loop
async def test_it_knows_what_another_key_manager_s_formats_are(fresh_token, tmp_path, capfd):
    """A block is no raw message for the key beside it, and a client may use one of two keys."""
    form = {"kind": "block", "prefix": "4c32424b", "length": 76, "position": {"offset": 4}}
    config = of_tokens(tmp_path, *[fresh_token(*KEYS)] * 2)
    managers = config["sequencer"]["keyManagers"]
    managers["blocks"] |= {"policy": {"kinds": ["block"], "formats": [form]}}
    managers["transactions"] |= {"policy": {"kinds": ["raw"]}}
    path, clients = tmp_path / "config.json", {"app": {"uid": [1], "keys": ["blocks"]}}
    path.write_text(json.dumps({**config["sequencer"], "gateway": {"clients": clients}}))
    explain, block = command_of(path, capfd), b"L2BK" + bytes(72)
    async with hsmcore.create_key_managers(config) as opened_ones:
        why = await refusal(opened_ones["transactions"], block, {})
    code, found = await explain(block, {"key-manager": "transactions"})
    assert (code, found["kind"], found["why"]) == (1, "block", why)
    code, found = await explain(b"raw", {"key-manager": "transactions", "caller": "app"})
    assert (code, found["why"]) == (1, "client 'app' may not use a key manager 'transactions'")
    assert (await explain(block, {"key-manager": "blocks", "caller": "app"}))[0] == 0
