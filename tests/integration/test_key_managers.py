"""Several key managers of one process: on one token and on two, with one audit log, opened and closed together."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import structlog
from nacl.signing import VerifyKey
from prometheus_client import CollectorRegistry, generate_latest
from tests.support.audit_logs import keys_of
from tests.support.chaos import Chaos, wrap
from tests.support.managers import start, until
from tests.support.policed import key, moving
from tests.support.scrapes import Scrape

import hsmcore
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.cli.app import run
from hsmcore.errors import (
    BadArgument,
    ConfigurationError,
    DoubleSign,
    EngineClosed,
    KeyNotFound,
    NotInitialized,
    PolicyRefused,
)
from hsmcore.failover.bindings import left_by_a_crash
from hsmcore.metrics import collector, render
from hsmcore.serve import attached

pytestmark = pytest.mark.integration

KEYS = ({"name": "blocks", "kind": "ed25519"}, {"name": "transactions", "kind": "ed25519"})
ROTATES = {"intervalDays": 30, "overlapDays": 0}


def block(document: dict[str, Any]) -> dict[str, Any]:
    """The key manager of a configuration of one."""
    return dict(document["sequencer"]["keyManager"])


def of_tokens(tmp_path: Path, blocks: Any, transactions: Any, **beside: Any) -> dict[str, Any]:
    """Two key managers, each with its key on the token given for it."""
    return {
        "sequencer": {
            "keyManagers": {
                "blocks": block(blocks.config("blocks", stateFile=str(tmp_path / "blocks.db"), keyRotation=ROTATES))
                | {"maxCacheSize": 0, "requestTimeoutMs": 5000},
                "transactions": block(transactions.config("transactions", maxCacheSize=0)),
            },
            **beside,
        }
    }


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def checked(path: Path) -> bool:
    layout = Layout(path)
    return verify(layout, Trust(tuple(keys_of(layout)))).ok


@pytest.mark.parametrize("tokens", [1, 2], ids=["one-token", "two-tokens"])
async def test_one_rotates_while_the_other_signs(tokens, fresh_token, tmp_path):
    made = [fresh_token(*KEYS) for _ in range(tokens)]
    log = tmp_path / "audit.log"
    config = of_tokens(tmp_path, made[0], made[-1], auditLogFile=str(log), audit={"durability": "write"})
    async with hsmcore.create_key_managers(config) as managers:
        blocks, transactions = managers["blocks"], managers["transactions"]
        assert blocks.public_key == made[0].keys["blocks"].public_key
        signed: Counter[str] = Counter()
        going = True

        async def load(name: str) -> None:
            """Every signature is by a key that was current while it was made."""
            manager = managers[name]
            while going:
                message = b"%s %d" % (name.encode(), signed[name])
                receipt = await manager.sign_with_receipt(message)
                VerifyKey(receipt.public_key).verify(message, receipt.signature)
                assert receipt.public_key in {version.public_key for version in manager.keys()}  # noqa: SIM118
                signed[name] += 1

        tasks = [start(load(name)) for name in managers for _ in range(3)]
        versions = {blocks.public_key}
        for _ in range(3):
            before = signed["transactions"]
            await blocks.rotate_key("test")
            versions.add(blocks.public_key)
            assert signed["transactions"] > before
        going = False
        await asyncio.gather(*tasks)
        assert len(versions) == 4
        assert transactions.public_key == made[-1].keys["transactions"].public_key
        assert [version.public_key for version in transactions.keys()] == [transactions.public_key]  # noqa: SIM118
        assert versions <= {version.public_key for version in blocks.keys()}  # noqa: SIM118
        message = b"which key"
        assert not await transactions.verify(message, await blocks.sign(message))
    made_by: Counter[str] = Counter()
    of_transactions = made[-1].keys["transactions"].public_key.hex()
    public = {"blocks": {key.hex() for key in versions}, "transactions": {of_transactions}}
    for record in records(log):
        if record["operation"] == "sign":
            assert record["public_key"] in public[record["manager"]]
            made_by[record["manager"]] += 1
    assert made_by["transactions"] == signed["transactions"]
    assert made_by["blocks"] >= signed["blocks"] + 1
    assert {record["manager"] for record in records(log) if record["operation"] == "close"} == set(managers)
    assert checked(log)


async def test_what_each_has_is_its_own(fresh_token, tmp_path):
    token = fresh_token(*KEYS)
    log = tmp_path / "audit.log"
    config = of_tokens(tmp_path, token, token, auditLogFile=str(log))
    managers = hsmcore.create_key_managers(config)
    heard: list[tuple[str, str]] = []
    off = managers.on("initialized", lambda details: heard.append(("initialized", details["manager"])))
    for name in ("closed", "key-generated"):
        managers.on(name, lambda details, name=name: heard.append((name, details["manager"])))
    with pytest.raises(NotInitialized):
        await managers["blocks"].initialize()
    with pytest.raises(NotInitialized):
        await managers.sign(b"a", kind="raw")
    with pytest.raises(NotInitialized):
        await hsmcore.create_key_managers(token.config("blocks")).sign(b"a")
    async with managers:
        await managers["blocks"].generate_key()
        await managers["transactions"].sign(b"a")
        rotations = [managers[name]._background.rotation for name in ("blocks", "transactions")]
        await until(lambda: all(one is None or one.seen is not None for one in rotations))
        state = managers.describe()
        scrape = Scrape((await asyncio.to_thread(render, managers))[0])
        registry = CollectorRegistry()
        registry.register(collector(managers))
        assert Scrape(generate_latest(registry)).samples.keys() == scrape.samples.keys()
        with pytest.raises(BadArgument, match="one key manager"):
            async with attached(managers, "127.0.0.1:0"):
                pass
    off()
    assert sorted(heard[:2]) == [("initialized", "blocks"), ("initialized", "transactions")]
    assert heard[2] == ("key-generated", "blocks")
    assert sorted(heard[3:]) == [("closed", "blocks"), ("closed", "transactions")]
    assert state["life"] == "open"
    assert {name: one["life"] for name, one in state["keyManagers"].items()} == dict.fromkeys(managers, "open")
    assert state["audit"]["lastSeq"] > 0
    assert scrape("hsmcore_signatures_total", manager="transactions") == 1
    assert scrape("hsmcore_signatures_total", manager="blocks") == 0
    assert scrape("hsmcore_member_up", manager="blocks", level="primary") == 1
    with pytest.raises(EngineClosed):
        await managers["blocks"].sign(b"a")
    assert managers.describe()["keyManagers"]["blocks"]["life"] == "closed"


async def test_a_message_goes_to_the_key_of_its_kind(fresh_token, tmp_path):
    token = fresh_token(*KEYS)
    log = tmp_path / "audit.log"
    config = of_tokens(tmp_path, token, token, auditLogFile=str(log))
    for name, kind in (("blocks", "digest32"), ("transactions", "raw")):
        config["sequencer"]["keyManagers"][name]["policy"] = {"kinds": [kind]}
    async with hsmcore.create_key_managers(config) as managers:
        for kind, name, message in (("digest32", "blocks", bytes(range(32))), ("raw", "transactions", b"a text")):
            VerifyKey(token.keys[name].public_key).verify(message, await managers.sign(message, kind=kind))
            assert managers.for_kind(kind) is managers[name]
        for kind in ("off-chain", "x" * 100_000, None):
            with pytest.raises(BadArgument if kind and len(kind) > 9 else PolicyRefused) as caught:
                await managers.sign(b"\xffsolana offchain", kind=kind)
            assert len(str(caught.value)) < 300
    refused = [record for record in records(log) if record.get("error") == "POLICY_REFUSED"]
    assert len(refused) == 2
    assert checked(log)


async def test_a_format_of_one_key_is_known_to_the_others(fresh_token, tmp_path):
    """A key that signs raw bytes signs no block of the other key's chain; kinds need not be named."""
    token = fresh_token(*KEYS)
    own = {"kind": "block", "prefix": "4c32424b", "length": 44, "position": {"offset": 4, "bytes": 8}}
    config = of_tokens(tmp_path, token, token, auditLogFile=str(tmp_path / "audit.log"))
    managers = config["sequencer"]["keyManagers"]
    managers["blocks"]["policy"] = {"kinds": ["block"], "formats": [own]}
    managers["transactions"]["policy"] = {"kinds": ["raw", "tx-v0"]}
    block = b"L2BK" + (7).to_bytes(8) + b"a" * 32
    async with hsmcore.create_key_managers(config) as managers:
        VerifyKey(managers["blocks"].public_key).verify(block, await managers.sign(block))
        with pytest.raises(PolicyRefused, match="block"):
            await managers["transactions"].sign(block)
        with pytest.raises(DoubleSign):
            await managers.sign(block[:-1] + b"b")
        transaction = moving(key(1), 5)
        for message in (b"raw", transaction):
            VerifyKey(managers["transactions"].public_key).verify(message, await managers.sign(message))
        with pytest.raises(PolicyRefused):
            await managers.sign(transaction, kind="block")
        with pytest.raises(PolicyRefused):
            await managers.sign(bytes(32))
    assert checked(tmp_path / "audit.log")


async def test_if_one_cannot_be_opened_none_stays_open(fresh_token, tmp_path):
    token, other = fresh_token(*KEYS), fresh_token(*KEYS)
    config = of_tokens(tmp_path, token, other, auditLogFile=str(tmp_path / "audit.log"))
    blocks = config["sequencer"]["keyManagers"]["blocks"]
    label = blocks["config"]["keyLabel"]
    blocks["config"]["keyLabel"] = "absent"
    managers = hsmcore.create_key_managers(config)
    with pytest.raises(KeyNotFound, match=r"^key manager blocks: "):
        await managers.initialize()
    assert {manager.describe()["life"] for manager in managers.values()} <= {"new", "closed"}
    assert managers.describe()["audit"] is None
    blocks["config"]["keyLabel"] = label
    async with hsmcore.create_key_managers(config) as managers:  # nothing holds the log or the tokens
        await managers["transactions"].sign(b"a")
    assert checked(tmp_path / "audit.log")


async def test_two_with_one_key_are_refused(fresh_token, tmp_path):
    """Also if the configuration names the key in two ways."""
    token = fresh_token(*KEYS)
    config = of_tokens(tmp_path, token, token)
    settings = config["sequencer"]["keyManagers"]["transactions"]["config"]
    del settings["keyLabel"]
    settings["keyId"] = token.keys["blocks"].id
    with pytest.raises(ConfigurationError, match="keys of its own") as caught:
        await hsmcore.create_key_managers(config).initialize()
    assert caught.value.path == "$.sequencer.keyManagers.transactions"


async def test_whatever_one_raises_all_are_closed(fresh_token, tmp_path, monkeypatch):
    token = fresh_token(*KEYS)
    log = tmp_path / "audit.log"
    managers = hsmcore.create_key_managers(of_tokens(tmp_path, token, token, auditLogFile=str(log)))
    await managers.initialize()
    path = managers["blocks"]._path
    close = path.close

    async def fails() -> None:
        monkeypatch.setattr(path, "close", close)
        raise KeyNotFound("cannot be closed")

    monkeypatch.setattr(path, "close", fails)
    with pytest.raises(KeyNotFound, match="key manager blocks: cannot be closed"):
        await managers.close()
    assert managers["transactions"].describe()["life"] == "closed"
    assert managers.describe()["audit"] is None
    await managers.close()
    assert managers["blocks"].describe()["life"] == "closed"
    assert checked(log)


async def test_a_key_of_one_token_signs_the_checkpoints_of_all(fresh_token, tmp_path):
    """The last one covers the last record, though the token with the key could be closed before the other one."""
    token, other = fresh_token(*KEYS), fresh_token(*KEYS, {"name": "audit", "kind": "ed25519"})
    log = tmp_path / "audit.log"
    signing = {"signingKey": {"hsmKeyId": other.keys["audit"].id}}
    managers = hsmcore.create_key_managers(of_tokens(tmp_path, token, other, auditLogFile=str(log), audit=signing))
    async with managers:
        await managers["blocks"].sign(b"a")
        await managers["transactions"].sign(b"b")
        await managers.audit.checkpoint()
    layout = Layout(log)
    assert [key.public_key for key in keys_of(layout)] == [other.keys["audit"].public_key]
    report = verify(layout, Trust(tuple(keys_of(layout))))
    assert report.ok
    assert int(layout.checkpoint.read_text().splitlines()[1]) == len(records(log))
    assert records(log)[-1]["operation"] == "close"


async def test_what_a_crash_left_is_that_of_each_key_manager(fresh_token, tmp_path):
    """A message that one may have signed binds only that one; the other one's clean end says nothing of it."""
    token = fresh_token(*KEYS)
    log = tmp_path / "audit.log"
    config = of_tokens(tmp_path, token, token, auditLogFile=str(log))
    managers = hsmcore.create_key_managers(config)
    await managers.initialize()
    await managers["blocks"].sign(b"a block")
    await managers["transactions"].sign(b"a transaction")
    await managers["transactions"].close()
    await managers.audit.flush()
    left = tmp_path / "left"
    left.mkdir()
    await asyncio.to_thread(_copy, Layout(log), left)
    await managers.close()
    again = hsmcore.create_key_managers(of_tokens(tmp_path, token, token, auditLogFile=str(left / "audit.log")))
    async with again:
        found = {name: [row.key for row in await left_by_a_crash(manager.audit)] for name, manager in again.items()}
    assert found == {"blocks": [token.keys["blocks"].public_key], "transactions": []}


def _copy(layout: Layout, folder: Path) -> None:
    shutil.copytree(layout.folder, folder / layout.folder.name)
    for file in (layout.log, layout.default_key):
        shutil.copy(file, folder / file.name)


async def test_a_key_ring_from_before_is_not_left_behind(fresh_token, tmp_path):
    """The one of a key manager that stood alone, when it becomes one of several."""
    token, log = fresh_token(*KEYS), str(tmp_path / "audit.log")
    alone = token.config("blocks", keyRotation=ROTATES, auditLogFile=log)
    async with hsmcore.create_key_manager(alone) as manager:
        await manager.rotate_key("test")
        key, store = manager.public_key, str(manager.config.key_manager.state_path)
    config = of_tokens(tmp_path, token, token, auditLogFile=log)
    blocks = config["sequencer"]["keyManagers"]["blocks"]
    del blocks["stateFile"]
    with pytest.raises(hsmcore.StoreBehind, match=store):
        await hsmcore.create_key_managers(config).initialize()
    blocks["stateFile"] = store
    async with hsmcore.create_key_managers(config) as managers:
        assert managers["blocks"].public_key == key


def test_commands_work_with_the_key_manager_that_is_named(fresh_token, tmp_path, capsys, monkeypatch):
    """What they record names it, too; commands of the audit log need no name, since all have one log."""
    token = fresh_token(*KEYS)
    log, file = tmp_path / "audit.log", tmp_path / "config.json"
    file.write_text(json.dumps(of_tokens(tmp_path, token, token, auditLogFile=str(log))))
    monkeypatch.setenv("HSMCORE_CONFIG", str(file))

    def command(*arguments: str) -> Any:
        assert run([*arguments, "--json"]) == 0, capsys.readouterr()
        return json.loads(capsys.readouterr().out)

    for name in ("blocks", "transactions"):
        signed = command("sign", "--text", "a", "--key-manager", name)
        assert signed["publicKey"] == token.keys[name].public_key.hex()
    command("keys", "generate", "--label", "new", "--key-manager", "transactions")
    command("rotate", "status", "--key-manager", "blocks")
    assert command("audit", "verify")["ok"]
    [generated] = [record for record in records(log) if record.get("command") == "keys generate"]
    assert generated["manager"] == "transactions"
    assert command("doctor", "--key-manager", "blocks")["outcome"] in ("ok", "warn")
    structlog.reset_defaults()
    logging.getLogger("hsmcore").handlers.clear()


async def signs_all(manager: hsmcore.KeyManager, messages: list[bytes]) -> list[bytes]:
    """Sign each, again after an error that says it can be repeated: a token that is away is such an error."""

    async def one(message: bytes) -> bytes:
        while True:
            try:
                return await manager.sign(message, timeout=20)
            except hsmcore.HsmError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(0.01)

    return await asyncio.gather(*map(one, messages))


@pytest.mark.chaos
@pytest.mark.parametrize("action", ["kill-all-sessions", "logout", "remove-token"])
async def test_a_fault_of_the_token_they_share_loses_no_request_of_either(action, fresh_token, tmp_path):
    token = fresh_token(*KEYS)
    chaos = Chaos(tmp_path, wrap(token, "blocks"))
    other = Chaos(tmp_path, wrap(token, "transactions"))
    config = {"keyManagers": {"blocks": block(chaos.config()), "transactions": block(other.config())}}
    more = {"milliseconds": 200} if action == "remove-token" else {}
    async with hsmcore.create_key_managers(config) as managers:
        for round_ in range(3):
            chaos.fault("C_SignInit", action, **more)
            messages = [b"%d of round %d" % (number, round_) for number in range(50)]
            answers = await asyncio.gather(*(signs_all(one, messages) for one in managers.values()))
            for name, signatures in zip(managers, answers, strict=True):
                key = VerifyKey(token.keys[name].public_key)
                for message, signature in zip(messages, signatures, strict=True):
                    key.verify(message, signature)


@pytest.mark.chaos
async def test_in_a_host_of_its_own_a_module_is_initialized_again(fresh_token, tmp_path):
    """In one process it is for both: see test_shared_module.py."""
    token = fresh_token(*KEYS)
    made, blocks = [], {}
    for name in ("blocks", "transactions"):
        folder = tmp_path / name
        folder.mkdir()
        made.append(Chaos(folder, wrap(token, name)))
        blocks[name] = block(made[-1].config(settings={"isolation": "process"}))
    async with hsmcore.create_key_managers({"keyManagers": blocks}) as managers:
        for chaos in made:
            for function in ("C_SignInit", "C_OpenSession"):
                chaos.fault(function, "return", ckr="CKR_CRYPTOKI_NOT_INITIALIZED", every=1)
        for name, manager in managers.items():
            VerifyKey(token.keys[name].public_key).verify(b"again", await manager.sign(b"again", timeout=10))
