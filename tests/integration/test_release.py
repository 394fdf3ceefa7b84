"""A release's provenance: signed by a key in an HSM, and refused by its verifier when anything is not as signed."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from scripts.release import without_bill

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OTHER_KEY = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"  # of RFC 8032


def script(name, *arguments):
    line = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("release")
    dist = folder / "dist"
    dist.mkdir()
    for name in (f"hsmcore-{VERSION}-cp313-cp313-manylinux_2_34_x86_64.whl", f"hsmcore-{VERSION}.tar.gz"):
        (dist / name).write_bytes(name.encode())
    config = folder / "releaser.json"
    config.write_text(json.dumps(world.config()))
    said = script("release.py", config, "--dist", dist, "--rehearsal")
    assert said.returncode == 0, said.stderr
    return dist


@pytest.fixture
def release(made, tmp_path, world):
    """A folder with files that stand for a release, its provenance, and the releaser's public key."""
    shutil.copytree(made, tmp_path / "dist")
    return tmp_path / "dist", world.keys["ed25519"].public_key.hex()


def test_what_was_signed_is_verified(release):
    dist, public_key = release
    said = script("verify_release.py", public_key, "--dist", dist, "--rehearsal")
    assert (said.returncode, said.stdout) == (0, "verified: 3 files\n"), said.stderr
    assert (dist / "run.txt").read_bytes() == (ROOT / "requirements" / "run.txt").read_bytes()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    said = script("verify_release.py", public_key, "--dist", dist, "--rehearsal", "--commit", commit.strip())
    assert said.returncode == 0, said.stderr
    [envelope] = [json.loads(path.read_text()) for path in dist.glob("*.intoto.jsonl")]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"


def change_file(dist):
    next(dist.glob("*.whl")).write_bytes(b"other")


def remove_file(dist):
    next(dist.glob("*.tar.gz")).unlink()


def change_hashes(dist):
    (dist / "run.txt").write_text("idna\n")


def add_file(dist):
    (dist / "hsmcore-9.whl").touch()


def change_envelope(dist, change):
    [path] = dist.glob("*.intoto.jsonl")
    envelope = json.loads(path.read_text())
    change(envelope)
    path.write_text(json.dumps(envelope))


def change_statement(dist):
    def change(envelope):
        statement = json.loads(base64.b64decode(envelope["payload"]))
        statement["subject"] = statement["subject"][:1]
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    change_envelope(dist, change)


def change_type(dist):
    change_envelope(dist, lambda envelope: envelope.update(payloadType="text/plain"))


def remove_signature(dist):
    change_envelope(dist, lambda envelope: envelope["signatures"].clear())


def spoil(dist):
    next(dist.glob("*.intoto.jsonl")).write_text("[]")


def test_what_is_not_as_signed_is_refused(release, tmp_path):
    dist, public_key = release
    for tamper, reason in (
        (change_file, "is not the file that was signed"),
        (change_hashes, "run.txt is not the file that was signed"),
        (remove_file, "is missing"),
        (add_file, "is in no statement"),
        (change_statement, "that key has not signed it"),
        (change_type, "the envelope holds no in-toto statement"),
        (remove_signature, "that key has not signed it"),
        (spoil, "is malformed"),
    ):
        copy = tmp_path / tamper.__name__
        shutil.copytree(dist, copy)
        tamper(copy)
        said = script("verify_release.py", public_key, "--dist", copy, "--rehearsal")
        assert (said.returncode, reason in said.stderr) == (1, True), (tamper.__name__, said.stderr)


def test_another_key_another_commit_and_a_rehearsal_are_refused(release):
    dist, public_key = release
    assert "that key has not signed it" in script("verify_release.py", OTHER_KEY, "--dist", dist, "--rehearsal").stderr
    said = script("verify_release.py", public_key, "--dist", dist, "--rehearsal", "--commit", "0" * 40)
    assert (said.returncode, "it was built from commit" in said.stderr) == (1, True)
    said = script("verify_release.py", public_key, "--dist", dist)
    assert (said.returncode, "it was a rehearsal" in said.stderr) == (1, True)
    assert script("verify_release.py", "zz", "--dist", dist).returncode == 1


def test_a_wheel_without_its_bill_is_not_released(tmp_path):
    wheel, bill = tmp_path / "hsmcore-1-cp313-cp313-linux_x86_64.whl", tmp_path / "hsmcore.cdx.json"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hsmcore-1.dist-info/sboms/hsmcore.cdx.json", "{}")
    assert without_bill(tmp_path) == [wheel.name], "there is none beside it"
    bill.write_text("{}")
    assert without_bill(tmp_path) == []
    bill.write_text('{"newer": 1}')
    assert without_bill(tmp_path) == [wheel.name]


def test_files_of_no_commit_are_not_released(tmp_path):
    said = script("release.py", tmp_path / "releaser.json", "--dist", tmp_path)
    assert said.returncode == 1
    assert re.match(
        "release: (there are changes that are not committed|the files in .* were not built from)", said.stderr
    )
