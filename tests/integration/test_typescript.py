"""The TypeScript client, clients/typescript: its own tests, and the same against a gateway with a token behind it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.support import key_sets
from tests.support.authority import Authority
from tests.support.batches import (
    Case,
    by_node,
    lines_of_signatures,
    malformed,
    manipulated,
    of,
)
from tests.support.gateways import Cutter, gateway
from tests.support.size import share

from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query

pytestmark = pytest.mark.integration
PACKAGE = Path(__file__).parents[2] / "clients" / "typescript"
WITH_A_TOKEN = ("real", "rotation", "block")
ALONE = ("wire", "fuzz", "client", "again", "list", "batched", "key-set", "key-manager", "sequencer", "vectors")
ALONE += ("payload", "trace", "unfinished")
"""Files of tests that need no gateway."""
NODE = shutil.which("node")
AT_LENGTH = [pytest.mark.deep, pytest.mark.timeout(900)]
needs_node = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder with the tests, built."""
    assert (PACKAGE / "node_modules").is_dir(), "clients/typescript is not installed: run scripts/setup test"
    # Tests in other processes build too.
    with (PACKAGE / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([NODE, "scripts/build.mjs"], cwd=PACKAGE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return PACKAGE / "build" / "test"


def passes(built: Path, name: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a file of tests with Node's runner."""
    done = subprocess.run(
        [NODE, "--test", "--test-reporter=spec", str(built / f"{name}.test.js")],
        cwd=PACKAGE,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass 0" not in done.stdout
    assert "DeprecationWarning" not in done.stdout + done.stderr


def against(options: Mapping[str, Any], transactions: int = 1000) -> dict[str, str]:
    """The environment that tells tests of a gateway."""
    return {"HSMCORE_TEST_GATEWAY": json.dumps(options), "HSMCORE_TEST_TRANSACTIONS": str(transactions)}


@needs_node
@pytest.mark.parametrize("name", ALONE)
def test_of_its_own(built, name):
    passes(built, name)


@needs_node
@pytest.mark.deep
@pytest.mark.timeout(900)
def test_the_parser_at_length(built):
    passes(built, "fuzz", {"HSMCORE_TEST_FUZZ": "1000000"})


@needs_node
def test_every_file_of_tests_is_run(built):
    """A file that is added must be added here as well."""
    assert {path.name for path in built.glob("*.test.js")} == {f"{name}.test.js" for name in (*ALONE, *WITH_A_TOKEN)}


PROGRAM = """
import { createTransactionMessage, setTransactionMessageFeePayerSigner } from "@solana/kit";
import { HsmError, KeyManagerFactory } from "hsmcore-client";
import { createHsmcoreSigner } from "hsmcore-client/solana";

const signer = createHsmcoreSigner(KeyManagerFactory.create({ gateway: { address: "unix:x" } }));
export const message = setTransactionMessageFeePayerSigner(signer, createTransactionMessage({ version: 0 }));
export const retryable = (error: HsmError): boolean => error.retryable;
"""


@needs_node
@pytest.mark.parametrize("kind", ["module", "commonjs"])
def test_a_project_with_what_the_readme_installs_compiles_strictly(built, tmp_path, kind):
    """As `npm install` leaves it: what `npm pack` packs, beside the packages that its README names."""
    modules, ours = tmp_path / "node_modules", PACKAGE / "node_modules"
    pack = [
        "npm",
        "pack",
        "--json",
        "--offline",
        "--pack-destination",
        str(tmp_path),
        "--cache",
        str(tmp_path / "cache"),
    ]
    packed = json.loads(subprocess.run(pack, cwd=PACKAGE, check=True, capture_output=True).stdout)
    [made] = packed if isinstance(packed, list) else packed.values()
    assert {"LICENSE", "README.md"} <= {one["path"] for one in made["files"]}
    with tarfile.open(tmp_path / made["filename"]) as archive:
        archive.extractall(tmp_path, filter="data")
    modules.mkdir()
    (tmp_path / "package").rename(modules / "hsmcore-client")
    [line] = re.findall("`npm install (@.*)`", (PACKAGE / "README.md").read_text())
    for name in (*line.split(), "@types/node"):
        (modules / name).parent.mkdir(exist_ok=True)
        (modules / name).symlink_to(ours / name)
    (tmp_path / "package.json").write_text(json.dumps({"type": kind}))
    (tmp_path / "program.ts").write_text(PROGRAM)
    strict = ["--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--skipLibCheck", "false"]
    options = ["--noEmit", "--target", "es2022", "--module", "nodenext", "--types", "node", *strict]
    tsc = [NODE, ours / "typescript" / "bin" / "tsc", *options, "program.ts"]
    done = subprocess.run(tsc, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@needs_node
@pytest.mark.timeout(300)
def test_2000_manipulated_proofs_are_refused(built):
    module = built.parents[1] / "dist" / "esm" / "index.js"
    good = [case for blind in (False, True) for case in (Case("", b"m%d" % at, one.proof)
            for at, one in enumerate(of([b"m%d" % at for at in range(13)], first=500, blind=blind)))]  # fmt: skip
    assert all(by_node(good, module))
    cases = [*manipulated(Random(22), 2000), *malformed()]
    assert [case for case, accepted in zip(cases, by_node(cases, module), strict=True) if accepted] == []
    forms = list(lines_of_signatures())
    accepted = by_node([case for case, _ in forms], module)
    assert [case.what for (case, holds), found in zip(forms, accepted, strict=True) if found is not holds] == []


@needs_node
@pytest.mark.timeout(300)
def test_2000_manipulated_sets_of_keys_are_refused(built):
    module = built.parents[1] / "dist" / "esm" / "index.js"
    assert all(key_sets.by_client(key_sets.good(), module))
    cases = [*key_sets.manipulated(Random(22), 2100), *key_sets.forms()]
    taken = key_sets.by_client(cases, module)
    assert len(cases) >= 2000
    assert [case for case, one in zip(cases, taken, strict=True) if one] == []


def passes_against(built: Path, name: str, folder: Path, config: Mapping[str, Any], **rules: Any) -> None:
    """Run a file of tests against a gateway. `rules`: of its block `gateway`, and `options` and `transactions`."""
    options, transactions = rules.pop("options", {}), rules.pop("transactions", 1000)

    async def run() -> None:
        async with gateway(folder, config, **rules) as served:
            environment = against({"address": served.addresses[0], **options}, transactions)
            await asyncio.to_thread(passes, built, name, environment)

    asyncio.run(run())


@needs_node
@pytest.mark.parametrize("transactions", [share(1000), pytest.param(10_000, marks=AT_LENGTH)])
def test_transactions_that_the_gateway_signs_are_executed(built, fresh_token, tmp_path, transactions):
    passes_against(built, "sequencer", tmp_path, fresh_token().config(), transactions=transactions)


@needs_node
def test_with_a_token(built, fresh_token, tmp_path):
    log = tmp_path / "audit.log"
    passes_against(built, "real", tmp_path, fresh_token().config(auditLogFile=str(log)), options={"connections": 2})
    trace = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    [[found]] = Query(Layout(log), None, None, trace).blocks()
    assert (found["operation"], found["message_sha256"]) == ("sign", sha256(b"traced").hexdigest())


@needs_node
def test_with_a_policy(built, fresh_token, tmp_path):
    policy = {"kinds": ["block", "batch-root"], "domain": "chain"}
    config = fresh_token().config(stateFile=str(tmp_path / "s.db"), policy=policy, batching={"intervalMs": 1})
    passes_against(built, "block", tmp_path, config)


@needs_node
def test_an_application_s_own_rotation_with_backups(built, fresh_token, tmp_path):
    rotation = {"enabled": False, "backupEnabled": True, "backupLocation": str(tmp_path)}
    config = fresh_token({"name": "p256", "kind": "ecdsa-p256"}).config("p256", keyRotation=rotation)
    passes_against(built, "rotation", tmp_path, config)


@needs_node
@pytest.mark.parametrize("name", [{"dns": ["gateway.test"]}, {"ips": ["127.0.0.1"]}], ids=["name", "address"])
def test_over_tls(built, fresh_token, tmp_path, name):
    authority = Authority(tmp_path)
    own = authority.issue("gateway", **name)
    certificate, key = authority.issue("sequencer", uris=["spiffe://l2.test/sequencer"])
    rules = {
        "listen": ["tls:127.0.0.1:0"],
        "tls": {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file},
        "clients": {"sequencer": {"names": ["spiffe://l2.test/sequencer"], "keys": ["default"], "manages": True}},
    }
    tls = {"caFile": authority.file, "certFile": certificate, "keyFile": key}
    tls |= {"serverName": "gateway.test"} if "dns" in name else {}
    passes_against(built, "real", tmp_path, fresh_token().config(), options=tls, **rules)


Tell = Callable[[str], Awaitable[None]]


async def load(
    built: Path, address: str, during: Callable[[Tell], Awaitable[None]], *, blocks: bool = False, **more: Any
) -> dict[str, Any]:
    """Have a program of the client sign without end while `during` runs, which may give it commands. `blocks`: one of
    its callers signs state roots, in order. `more`: of its options. Returns what became of its messages."""
    options = {"address": address, "connections": 4, **more}
    program = await asyncio.to_thread(
        subprocess.Popen,
        [NODE, str(built / "load.js")],
        env={**os.environ, **against(options), "HSMCORE_TEST_BLOCKS": "default" if blocks else ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with program:
        assert program.stdin is not None
        assert program.stdout is not None

        async def told(command: str) -> str:
            program.stdin.write(f"{command}\n")
            return await asyncio.to_thread(program.stdout.readline)

        async def tell(command: str) -> None:
            assert await told(command) == "done\n"

        try:
            await during(tell)
            return json.loads(await told("end"))
        finally:
            program.kill()


def signers(log: Path) -> dict[str, Counter[str]]:
    """By which keys each message was signed, and how often, as the audit log has it."""
    by: dict[str, Counter[str]] = {}
    for block in Query(Layout(log), None, None, {"operation": "sign"}).blocks():
        for record in block:
            if record["result"] == "ok":
                by.setdefault(record["message_sha256"], Counter())[record["key_id"]] += 1
    return by


@needs_node
@pytest.mark.parametrize("kills", [share(4, 2), pytest.param(20, marks=AT_LENGTH)])
def test_kills_of_the_gateway_lose_nothing_and_sign_nothing_with_two_keys(built, fresh_token, tmp_path, kills):
    # With rotation, the ring outlasts the process, whose successor numbers its versions in another way.
    rules = {"stateFile": str(tmp_path / "state.db"), "keyRotation": {"intervalDays": 30, "overlapDays": 2}}
    config = fresh_token().config(auditLogFile=str(tmp_path / "audit.log"), **rules)

    async def run() -> dict[str, Any]:
        async with gateway(tmp_path, config) as served:

            async def killing(tell: Tell) -> None:
                for number in range(kills):
                    await tell("wait 150")
                    if number % 3 == 1:
                        await tell("rotate")
                        await tell("wait 150")  # what is open now is for the new key
                    await served.kill()
                    await served.start()
                await tell("wait 150")

            return await load(built, served.addresses[0], killing)

    said, by = asyncio.run(run()), signers(tmp_path / "audit.log")
    assert said["twice"] == []
    assert said["failed"] == {}
    assert said["made"] == said["settled"] == said["signed"] == len(by)
    assert len({key for keys in by.values() for key in keys}) > 1
    assert {message: keys for message, keys in by.items() if len(keys) > 1} == {}


@needs_node
@pytest.mark.parametrize("signatures", [2_000, pytest.param(50_000, marks=AT_LENGTH)])
def test_connections_that_are_cut_anywhere_cost_no_second_signature(built, fresh_token, tmp_path, signatures):
    config = fresh_token().config(auditLogFile=str(tmp_path / "audit.log"), maxCacheSize=0)

    async def run() -> tuple[dict[str, Any], int]:
        async with gateway(tmp_path, config):
            cutter = Cutter(Random(1), str(tmp_path / "sign.sock"), 40_000)
            await cutter.listen(str(tmp_path / "cut.sock"))

            async def cutting(tell: Tell) -> None:
                await tell(f"wait {signatures}")
                cutter.cutting = False

            try:
                return await load(built, f"unix:{tmp_path}/cut.sock", cutting), cutter.cuts
            finally:
                await cutter.close()

    (said, cuts), by = asyncio.run(run()), signers(tmp_path / "audit.log")
    assert cuts > 10
    assert said["made"] == said["settled"] == said["signed"]
    assert said["twice"] == []
    assert len(by) == said["signed"]
    assert {message for message, keys in by.items() if keys.total() > 1} == set()
