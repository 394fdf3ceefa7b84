"""Each program in examples/ runs as a newcomer starts it, and prints what it promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nacl.signing import VerifyKey
from tests.support import batches
from tests.vectors.make_positions import cases

from hsmcore.base.base58 import base58

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("softhsm")]

EXAMPLES = Path(__file__).parents[2] / "examples"
SOLANA = ("keychain_signer", "solana_py", "anchorpy_payer")
PROGRAMS = (
    "sign",
    "batch",
    "failover",
    "rotation_with_handover",
    "two_keys",
    "takeover",
    *SOLANA,
    "audit",
    "verify_batched",
    "verify_key_set",
    "verify_position",
    "follow_positions",  # tests/integration/test_public_log.py
)
PUBLIC = {
    "hsmcore",
    "hsmcore.errors",
    "hsmcore.handover",
    "hsmcore.metrics",
    "hsmcore.serve",
    "hsmcore.solana",
    "hsmcore.tracing",
}


def run(name: str) -> str:
    """Its standard output. It finds no token, no configuration and no state of anybody's."""
    environment = {key: value for key, value in os.environ.items() if key not in ("SOFTHSM2_CONF", "XDG_STATE_HOME")}
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, f"{pattern} is not in:\n{text}"
    return match[1]


def test_every_program_has_a_test_and_a_line_in_the_readme():
    assert {path.stem for path in EXAMPLES.glob("[!_]*.py")} == set(PROGRAMS)
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}.py`" in readme for name in PROGRAMS)


def test_a_batched_signature_is_verified_from_the_command_line(tmp_path):
    [signed] = batches.of([b"hello"], domain="my-rollup", epoch=2)
    (tmp_path / "message").write_bytes(b"hello")
    (tmp_path / "proof").write_bytes(signed.proof)
    for program in ([sys.executable, "verify_batched.py"], ["node", "verify_batched.mjs"]):
        for key, expected in ((batches.PUBLIC, "my-rollup 2 0 raw\n"), (bytes(32), "")):
            command = [program[0], EXAMPLES / program[1], key.hex(), tmp_path / "message", tmp_path / "proof"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert (done.stdout, done.returncode) == (expected, 0 if expected else 1), done.stderr


def test_a_position_is_verified_from_the_command_line(tmp_path):
    [good] = [one for one in cases() if one["name"] == "good"]
    for name in ("policy", "proof"):
        (tmp_path / name).write_text(good[name])
    for program in ([sys.executable, "verify_position.py"], ["node", "verify_position.mjs"]):
        for digest, expected in ((good["digest"], "3\n"), ("00" * 32, "")):
            given = [tmp_path / "policy", digest, str(good["position"]), tmp_path / "proof"]
            command = [program[0], EXAMPLES / program[1], *given]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert (done.stdout, done.returncode) == (expected, 0 if expected else 1), done.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_only_the_public_interface_is_used(path):
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        assert {name for name in modules if name.split(".")[0] == "hsmcore"} <= PUBLIC
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            assert isinstance(node.value, ast.Name), ast.unparse(node)
            assert node.value.id == "self", ast.unparse(node)


def test_sign():
    text = run("sign")
    signature, public_key = found(r"^signature +([0-9a-f]{128})$", text), found(r"^public key ([0-9a-f]{64})$", text)
    VerifyKey(bytes.fromhex(public_key)).verify(b"state root 4711", bytes.fromhex(signature))
    assert found(r"^address +(\w+)$", text) == base58(bytes.fromhex(public_key))
    assert found(r"^verified +(\w+)$", text) == "True"
    assert found(r"^forged +(\w+)$", text) == "False"
    assert found(r"^signed by +(.+)$", text) == "softhsm:example of level primary, key 01"
    assert int(found(r"^took +(\d+) µs$", text)) > 0
    assert found(r"^refused +(.+)$", text) == "BAD_ARGUMENT, retryable: False"


def test_batch():
    text = run("batch")
    assert found(r"^batch +(.+), [\d,]+/s$", text) == "256 signatures, 256 verified"
    assert found(r"^one by one (.+), [\d,]+/s$", text) == "256 signatures, the same: True"
    assert found(r"^refused +(.+)$", text) == "MESSAGE_TOO_LARGE"


@pytest.mark.slow("a token that goes and comes back")
def test_failover():
    text = run("failover")
    happened = [line for line in text.splitlines() if line.startswith(("token", "failover", "failback"))]
    assert happened == ["token a is gone", "failover: softhsm:b signs", "token a is back", "failback: softhsm:a signs"]
    assert int(found(r"^signed +(\d+) on primary, \d+ on secondary, none lost$", text)) > 0
    assert int(found(r"^signed +\d+ on primary, (\d+) on secondary, none lost$", text)) > 0


def test_rotation_with_handover():
    text = run("rotation_with_handover")
    new = found(r"^rotated +01 → (\w+)$", text)
    assert len(new) == 32
    assert found(r"^handover +01 → (\w+)$", text) == new
    assert text.index("handover") < text.index("rotated")
    assert found(r"^obeys new +(\w+)$", text) == "True"
    assert found(r"^old key +still verifies: (\w+)$", text) == "True"
    assert found(r"^new key +(.+)$", text) == "verifies: True, as before: False"


def test_two_keys():
    text = run("two_keys")
    by_name = found(r"^blocks +([0-9a-f]{128})$", text)
    assert found(r"^by kind +([0-9a-f]{128})$", text) == by_name
    assert found(r"^messages +([0-9a-f]{128})$", text) != by_name
    assert found(r"^refused +(.+)$", text) == "POLICY_REFUSED"
    recorded = re.findall(r"^record +\d+: (.+)$", text, re.MULTILINE)
    assert recorded == ["blocks ok", "blocks ok", "messages ok", "None error"]


def test_takeover():
    text = run("takeover")
    assert found(r"^bound +block 42 ([0-9a-f]{64})$", text)
    assert found(r"^signed +([0-9a-f]{128})$", text)
    assert found(r"^unfinished (.+)$", text) == "None"


def test_keychain_signer():
    text = run("keychain_signer")
    assert found(r"^signed +(.+)$", text) == "complete: True, verified: True"
    assert found(r"^chain +(.+)$", text) == "executed, 1,000,000 lamports"
    assert found(r"^batch +(.+)$", text) == "99 executed, refused: SIGNER_SIGNING_FAILED"
    assert found(r"^text +(.+)$", text) == "verified: True"


def test_solana_py():
    text = run("solana_py")
    assert found(r"^sent +(\w+)$", text) == "True"
    assert found(r"^received +(.+)$", text) == "1,000,000 lamports"


def test_anchorpy_payer():
    """Without anchorpy, whose newest release does not install beside the solders of these tests: 0.21 needs an old
    construct-typing, hence solana-py 0.36.6, hence solders 0.26."""
    text = run("anchorpy_payer")
    assert found(r"^built +(.+)$", text) == "empty slot: True"
    assert found(r"^signed +(.+)$", text) == "verified: True"
    assert found(r"^chain +(.+)$", text) == "executed, 1,000,000 lamports"


def test_audit():
    text = run("audit")
    signed, recorded = re.findall(r"as record (\d+)", text), re.findall(r"^record +(\d+): ", text, re.MULTILINE)
    assert len(signed) == 3
    assert recorded == signed
    assert found(r"^verify +(.+)$", text) == "ok (exit code 0)"
    assert found(r"^changed +(.+)$", text) == "failed (exit code 1)"
