"""Every verifier of positions judges the shared vectors alike: Python, Node.js, Rust and a shell."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.vectors.make_positions import cases

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
verify = runpy.run_path(str(EXAMPLES / "verify_position.py"))["verify"]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "positions.json").read_text())
NODE = """
import { readFileSync } from "node:fs";
import { verifyPosition } from %s;
const all = JSON.parse(readFileSync(0));
const judge = (one) => verifyPosition(
  Buffer.from(one.policy), Buffer.from(one.digest, "hex"), BigInt(one.position), Buffer.from(one.proof));
console.log(JSON.stringify(all.map(judge)));
"""


def numbered() -> str:
    """The vectors for a reader that has no large numbers."""
    return json.dumps([one | {"position": str(one["position"])} for one in VECTORS])


def test_the_file_is_what_its_generator_makes():
    assert list(cases()) == VECTORS
    assert len({one["name"] for one in VECTORS}) == len(VECTORS)


@pytest.mark.parametrize("one", VECTORS, ids=lambda one: one["name"])
def test_python(one):
    given = one["policy"].encode(), bytes.fromhex(one["digest"]), one["position"], one["proof"].encode()
    assert verify(*given) == one["seen"]


def test_node():
    source = NODE % json.dumps((EXAMPLES / "verify_position.mjs").as_uri())
    line = [shutil.which("node") or "node", "--input-type=module", "-e", source]
    done = subprocess.run(line, input=numbered(), capture_output=True, text=True, check=True, timeout=60)
    found = dict(zip((one["name"] for one in VECTORS), json.loads(done.stdout), strict=True))
    assert found == {one["name"]: one["seen"] for one in VECTORS}


def judged(program, one, folder):
    """What a program says of a vector: its exit code, and the witnesses."""
    (folder / "policy").write_bytes(one["policy"].encode())
    (folder / "proof").write_bytes(one["proof"].encode())
    line = list(map(str, [program, folder / "policy", one["digest"], one["position"], folder / "proof"]))
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout


def expected(one):
    return (0, f"{one['seen']}\n") if one["seen"] else (1, "")


@pytest.mark.parametrize("one", VECTORS, ids=lambda one: one["name"])
def test_a_shell(one, tmp_path):
    assert judged(EXAMPLES / "verify_position.sh", one, tmp_path) == expected(one)


@pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc is not installed")
def test_rust(tmp_path):
    source = EXAMPLES / "verify_position.rs"
    line = ["rustc", "--edition", "2021", source, "-C", "link-arg=-l:libcrypto.so.3", "-o", tmp_path / "verifier"]
    subprocess.run(line, check=True, timeout=60)
    found = {one["name"]: judged(tmp_path / "verifier", one, tmp_path) for one in VECTORS}
    assert found == {one["name"]: expected(one) for one in VECTORS}


def test_each_is_short_enough_to_be_read():
    for path in EXAMPLES.glob("verify_position.*"):
        assert len(path.read_text().splitlines()) <= 120
