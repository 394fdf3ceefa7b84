"""The programs in Python in README and docs, run as they stand there; ELSEWHERE names the tests that run others."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from solders.pubkey import Pubkey
from tests.support.doc_blocks import block, blocks
from tests.support.gateways import gateway
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.paths import ROOT
from tests.support.policed import ordered
from tests.support.terminal import OWN_PROCESS

import hsmcore

pytestmark = pytest.mark.integration
ELSEWHERE = {
    "clients/python/README.md": "tests/integration/test_pure_client.py",
    "docs/SOLANA.md": "tests/integration/test_solana_docs.py",
    "docs/TUTORIAL.md": "tests/integration/test_tutorial.py",
    "docs/GATEWAY.md": "tests/integration/test_gateway_vault_docs.py",
    "docs/KEYSET.md": "tests/integration/test_key_set.py makes the same calls; parsed here",
    "docs/PUBLIC_LOG.md": "needs witnesses: tests/integration/test_public_log.py makes the same calls; parsed here",
    "docs/operations/softhsm.md": "a conftest and a test: tests/integration/test_embedding.py runs them; parsed here",
    "docs/FLEET.md": "needs a fleet on PostgreSQL: tests/integration/test_fleet.py makes the same calls; parsed here",
}
HERE = {
    "README.md": 1,
    "docs/BATCHING.md": 2,
    "docs/CLIENT.md": 1,
    "docs/EMBEDDING.md": 7,
    "docs/MONITORING.md": 5,
    "docs/OPERATIONS.md": 2,
    "docs/POLICY.md": 1,
    "docs/ROTATION.md": 1,
}


def test_every_program_is_run_by_a_test():
    counts: dict[str, int] = {}
    for one in blocks("python"):
        counts[one.document] = counts.get(one.document, 0) + 1
        ast.parse(one.text) if "await" not in one.text and "async" not in one.text else compiled(one.text)
    assert {document: number for document, number in counts.items() if document not in ELSEWHERE} == HERE
    for reason in ELSEWHERE.values():
        [file] = re.findall(r"tests/\S+\.py", reason)
        assert (ROOT / file).is_file()


def compiled(program: str) -> Any:
    return compile(program, "program", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


async def run(program: str, /, **names: Any) -> dict[str, Any]:
    """Run a program with these names; the names that there are then."""
    done = eval(compiled(program), names)  # noqa: S307  # our own document
    if done is not None:
        await done
    return names


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> tuple[Path, str]:
    """A folder that `hsmcore init` made, with a name that a shell must quote, and what it printed."""
    folder = tmp_path_factory.mktemp("a b") / "state"
    made = subprocess.run([*OWN_PROCESS, "init", "--state", folder], capture_output=True, text=True, check=True)
    return folder, made.stdout


def bare(**variables: str) -> dict[str, str]:
    """An environment in which nothing was set up for hsmcore."""
    left = {name: value for name, value in os.environ.items() if not name.startswith(("HSM", "SOFTHSM"))}
    return left | {"PYTHONPATH": str(ROOT / "core")} | variables


def test_the_readme_runs_after_the_lines_that_init_prints(state):
    exports = "\n".join(re.findall(r"^  (export .*)$", state[1], re.MULTILINE))
    assert exports.count("export") == 2
    shell = f'{exports}\nexec "$0" -c "$1"'
    subprocess.run(["bash", "-ec", shell, sys.executable, block("README.md", "python")], env=bare(), check=True)


def test_the_lines_of_python_that_init_prints_sign(state):
    program = re.search(r"^  import asyncio.*?^  asyncio\.run\(main\(\)\)$", state[1], re.DOTALL | re.MULTILINE)[0]
    lines = re.sub(r"^  ", "", program, flags=re.MULTILINE)
    ended = subprocess.run([sys.executable, "-c", lines], env=bare(), capture_output=True, text=True, check=True)
    assert re.fullmatch(r"[0-9a-f]{128}\n", ended.stdout)


def test_the_command_that_init_prints_signs(state):
    command = re.search(r"^Sign on the command line: +hsmcore (.*)$", state[1], re.MULTILINE)[1]
    shell = f'exec "$0" -c "$1" {command}'
    ended = subprocess.run(
        ["bash", "-ec", shell, sys.executable, OWN_PROCESS[2]], env=bare(), capture_output=True, check=True
    )
    assert ended.stdout
    again = subprocess.run([*OWN_PROCESS, "init", "--state", state[0]], capture_output=True, text=True, check=True)
    assert command in again.stdout, "a second init says it again"


def test_the_program_on_the_site_s_front_page_runs(state, tmp_path):
    page = (ROOT / "scripts" / "site" / "index.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert "$ hsmcore init --state state " in page
    (tmp_path / "state").symlink_to(state[0])
    subprocess.run([sys.executable, "-c", program], env=bare(), cwd=tmp_path, check=True)


@one_loop
async def test_embedding(state, monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTHSM2_CONF", os.environ.get("SOFTHSM2_CONF", "/nowhere"))  # set back afterwards
    monkeypatch.chdir(tmp_path)
    program = re.sub("^", "    ", block("docs/EMBEDDING.md", "python"), flags=re.MULTILINE)
    code = f"import asyncio, hsmcore\nasync def main():\n{program}\nasyncio.run(main())\n"
    (tmp_path / "state").symlink_to(state[0])
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], env=bare(), cwd=tmp_path, check=False)
    assert ended.returncode == 0


@one_loop
async def test_embedding_goes_on(world):
    async with opened(world.config()) as km:
        for number in range(2, 6):  # then come parts of an application: tests/integration/test_workers.py runs one
            await run(block("docs/EMBEDDING.md", "python", number), km=km, hsmcore=hsmcore)


@pytest.mark.parametrize("number", [4, 5])
def test_logging(number, state):
    program = block("docs/MONITORING.md", "python", number) + (
        "from hsmcore.base.log import get_logger\nget_logger().warning('failover', member='softhsm:a')\n"
        "get_logger().info('failback')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], env=bare(), capture_output=True, text=True, check=True)
    if number == 4:
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d [\d:,]+ WARNING hsmcore event='failover' member='softhsm:a'\n", ended.stderr
        )
    else:
        assert [json.loads(line)["event"] for line in ended.stdout.splitlines()] == ["failover", "failback"]


@one_loop
async def test_batching_and_policy(fresh_token, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = {"kinds": ["batch-root"], "domain": "my-rollup"}
    rules = {"stateFile": str(tmp_path / "a.db"), "batching": {"keepLeaves": str(tmp_path / "leaves")}}
    async with opened(fresh_token().config(policy=policy, **rules)) as km:
        given = {"km": km, "hsmcore": hsmcore, "Path": Path, "message": b"a message"}
        signed = (await run(block("docs/BATCHING.md", "python"), **given))["signed"]
        again = await run(block("docs/BATCHING.md", "python", 2), km=km, index=signed.index)
        assert again["proof"] == signed.proof
    policy = {"kinds": ["block"], "domain": "my-rollup", "callers": {"block-producer": {"kinds": ["block"]}}}
    async with opened(fresh_token().config(stateFile=str(tmp_path / "b.db"), policy=policy)) as km:
        await run(block("docs/POLICY.md", "python"), km=km, hsmcore=hsmcore, position=1, digest=bytes(32))


@one_loop
async def test_several_keys_and_digests(fresh_token, tmp_path):
    token = fresh_token({"name": "one", "kind": "ed25519"}, {"name": "k1", "kind": "ecdsa-secp256k1"})
    one = token.config("one", policy={"kinds": ["block"]}, stateFile=str(tmp_path / "one.db"))
    other = token.config("k1", policy={"kinds": ["prehashed"]}, stateFile=str(tmp_path / "other.db"))
    parts = [config["sequencer"]["keyManager"] for config in (one, other)]
    config = {"keyManagers": {"blocks": parts[0]}}
    names = await run(block("docs/OPERATIONS.md", "python", 1), config=config, hsmcore=hsmcore, message=ordered(1))
    assert len(names["signature"]) == 64
    async with opened({"keyManager": parts[1]}) as km:
        given = {"km": km, "keccak256": lambda _: bytes(range(32)), "transaction": b""}
        assert (await run(block("docs/OPERATIONS.md", "python", 2), **given))["recovery_id"] in range(4)


@one_loop
async def test_console_and_monitoring(world, monkeypatch):
    import prometheus_client

    config = world.config(monitoring={"listen": "127.0.0.1:0"})
    await run(block("docs/MONITORING.md", "python", 3), config=config, hsmcore=hsmcore)
    monkeypatch.setattr(prometheus_client, "REGISTRY", prometheus_client.CollectorRegistry())
    async with opened(world.config()) as km:

        class Request:
            headers = {"accept": "text/plain"}  # noqa: RUF012  # a stand-in

        names = await run(block("docs/MONITORING.md", "python", 1), km=km, request=Request)
        assert b"hsmcore_" in names["body"]


@one_loop
async def test_spans(world, monkeypatch):
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    chosen = []
    monkeypatch.setattr(trace, "set_tracer_provider", chosen.append)
    names = await run(
        block("docs/MONITORING.md", "python", 2), config=world.config(), hsmcore=hsmcore, provider=TracerProvider()
    )
    await names["km"].close()
    assert chosen


@one_loop
async def test_a_handover(world):
    names = {"config": world.config(), "rpc_url": "http://127.0.0.1:9", "program": str(Pubkey.default())}
    await run(block("docs/ROTATION.md", "python"), hsmcore=hsmcore, **names)


@one_loop
async def test_the_gateways_client(world, tmp_path):
    program = block("docs/CLIENT.md", "python")
    first, tls = program.split("\ntls = ")
    compiled("tls = " + tls)  # needs certificates: tests/integration/test_gateway_client.py
    policy = {"kinds": ["raw", "block", "batch-root"], "domain": "my-rollup"}
    async with gateway(tmp_path, world.config(policy=policy, stateFile=str(tmp_path / "state.db"))) as served:
        here = first.replace("unix:/run/hsmcore/sign.sock", served.addresses[0])
        await run(here, message=b"a message", messages=[b"one", b"two"], digest=bytes(32))
