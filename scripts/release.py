#!/usr/bin/env python3
"""Put run.txt beside the wheels, and make the provenance of a release, signed by a key in an HSM:
dist/hsmcore-VERSION.intoto.jsonl.

    .venv/bin/python scripts/release.py CONFIG [--dist dist] [--rehearsal]

CONFIG is a configuration of hsmcore whose key, Ed25519, is the releaser's. The file is one DSSE envelope. Its payload
is an in-toto statement, version 1, that names each file in the folder by its SHA-256, with SLSA's predicate of
provenance, version 1: the commit, the tools by their hashes, the compiler and the libraries of this system. It refuses
a checkout with changes, files that were built from another commit, wheels without the bill of materials of the folder
and a changelog without the version, unless it is a rehearsal, which the statement then says.
scripts/verify_release.py checks it, without hsmcore.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hsmcore

ROOT = Path(__file__).resolve().parents[1]
PAYLOAD_TYPE = "application/vnd.in-toto+json"
BUILD_TYPE = "urn:hsmcore:build:wheels:v1"
"""What docs/RELEASING.md describes under "The build"."""
SYSTEM_PACKAGES = ("gcc", "libc6-dev", "cmake", "libssl-dev", "libsodium-dev", "libjansson-dev", "libp11-kit-dev")


def main() -> int:
    """Make the provenance of the files in the folder."""
    parser = argparse.ArgumentParser(description="Make the signed provenance of a release.")
    parser.add_argument("config", type=Path, help="configuration of hsmcore with the releaser's key")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--rehearsal", action="store_true", help="also with changes that are not committed")
    options = parser.parse_args()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if not options.rehearsal:
        check_ready(version, options.dist)
    shutil.copyfile(ROOT / "requirements" / "run.txt", options.dist / "run.txt")
    payload = json.dumps(statement(options.dist, version, rehearsal=options.rehearsal), sort_keys=True).encode()
    public_key, envelope = asyncio.run(sealed(options.config, payload))
    target = options.dist / f"hsmcore-{version}.intoto.jsonl"
    target.write_text(json.dumps(envelope, sort_keys=True) + "\n")
    print(f"{target.name}, signed by {public_key.hex()}")
    return 0


def git(*arguments: str) -> str:
    """What git says about this checkout."""
    line = ["git", *arguments]
    return subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def check_ready(version: str, dist: Path) -> None:
    """Exit unless all is committed, the files were built from that, and the changelog has the version with a date."""
    if git("status", "--porcelain"):
        raise SystemExit("release: there are changes that are not committed")
    built = dist / "hsmcore.build.json"
    if not built.is_file() or json.loads(built.read_text())["commit"] != git("rev-parse", "HEAD"):
        raise SystemExit(f"release: the files in {dist} were not built from this commit; run make wheel")
    if bare := without_bill(dist):
        raise SystemExit(
            f"release: without a bill of Python packages: {', '.join(bare)}; run make sbom, then make wheel"
        )
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    if not re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
        raise SystemExit(f"release: CHANGELOG.md has no heading ## [{version}] - DATE")


def without_bill(dist: Path) -> list[str]:
    """The wheels of hsmcore that lack the bill of materials which lies beside them."""
    bill = dist / "hsmcore.cdx.json"
    expected = zlib.crc32(bill.read_bytes()) if bill.is_file() else None
    bare = []
    for path in sorted(dist.glob("hsmcore-*.whl")):
        with zipfile.ZipFile(path) as archive:
            found = [info.CRC for info in archive.infolist() if info.filename.endswith("/sboms/hsmcore.cdx.json")]
        if expected is None or found != [expected]:
            bare.append(path.name)
    return bare


def statement(dist: Path, version: str, *, rehearsal: bool) -> dict[str, Any]:
    """The in-toto statement about the release's files."""
    files = sorted(path for path in dist.iterdir() if path.suffix in {".whl", ".gz", ".json"} or path.name == "run.txt")
    if not any(path.suffix == ".whl" and path.name.startswith(f"hsmcore-{version}-") for path in files):
        raise SystemExit(f"release: {dist} has no wheel of hsmcore {version}; run make wheel")
    others = [path.name for path in files if path.suffix in {".whl", ".gz"} and f"-{version}" not in path.name]
    if others:
        raise SystemExit(f"release: {dist} has files of another version: {', '.join(others)}")
    commit = git("rev-parse", "HEAD")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": path.name, "digest": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}} for path in files
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"commit": commit, "version": version},
                "internalParameters": {
                    "SOURCE_DATE_EPOCH": int(git("log", "-1", "--format=%ct")),
                    "rehearsal": rehearsal,
                },
                "resolvedDependencies": [
                    {"uri": "git+.", "digest": {"gitCommit": commit}},
                    {
                        "name": "requirements/build.txt",
                        "digest": {"sha256": sha256_of("requirements/build.txt")},
                    },
                    *({"uri": purl} for purl in system_packages()),
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:hsmcore:builder:make-release"},
                "metadata": {"finishedOn": now},
            },
        },
    }


def sha256_of(name: str) -> str:
    """The digest of a file of this checkout."""
    return hashlib.sha256((ROOT / name).read_bytes()).hexdigest()


def system_packages() -> list[str]:
    """The Debian packages that decide the bytes, with their versions; empty where dpkg is not."""
    line = ["dpkg-query", "-W", "-f", "pkg:deb/debian/${Package}@${Version}\n", *SYSTEM_PACKAGES]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=False).stdout.split()
    except FileNotFoundError:
        return []


async def sealed(config: Path, payload: bytes) -> tuple[bytes, dict[str, Any]]:
    """The public key, and the DSSE envelope around the payload."""
    kind = PAYLOAD_TYPE.encode()
    text = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    async with hsmcore.create_key_manager(config) as key_manager:
        signature = await key_manager.sign(text, timeout=30)
        public_key = key_manager.public_key
    if len(public_key) != 32:
        raise SystemExit("release: the releaser's key must be an Ed25519 key")
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": public_key.hex(), "sig": base64.b64encode(signature).decode()}],
    }
    return public_key, envelope


if __name__ == "__main__":
    sys.exit(main())
