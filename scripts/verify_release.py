#!/usr/bin/env python3
"""Check a release: that the releaser's key has signed the provenance, and that it names each file with its digest.

    python scripts/verify_release.py PUBLIC_KEY [--dist dist] [--commit COMMIT]

PUBLIC_KEY is the releaser's Ed25519 key, 64 hexadecimal digits, from a place that you trust: never from the release
itself. Needs PyNaCl, and nothing of hsmcore. Exit code 1 and a reason unless everything is right.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"


class Refused(Exception):
    """Why the release cannot be trusted."""


def main() -> int:
    """Check the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Check the signed provenance of a release.")
    parser.add_argument("public_key", help="the releaser's, 64 hexadecimal digits")
    parser.add_argument("--dist", type=Path, default=Path("dist"))
    parser.add_argument("--commit", help="the commit that it must come from")
    parser.add_argument("--rehearsal", action="store_true", help="accept a rehearsal")
    options = parser.parse_args()
    try:
        subjects = check(options.dist, options.public_key, options.commit, rehearsal=options.rehearsal)
    except Refused as reason:
        print(f"verify-release: {reason}", file=sys.stderr)
        return 1
    print(f"verified: {subjects} files")
    return 0


def check(dist: Path, public_key: str, commit: str | None, *, rehearsal: bool) -> int:
    """The number of files of a release that is as its releaser signed it. Raises Refused."""
    found = sorted(dist.glob("*.intoto.jsonl"))
    if len(found) != 1:
        raise Refused(f"{dist} must have one file *.intoto.jsonl, and has {len(found)}")
    try:
        statement = json.loads(payload_of(json.loads(found[0].read_text()), public_key))
        digests = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
        definition = statement["predicate"]["buildDefinition"]
        said_commit, said_rehearsal = definition["externalParameters"]["commit"], definition["internalParameters"]
        if statement["_type"] != STATEMENT or statement["predicateType"] != PREDICATE:
            raise Refused("the statement is not a provenance of SLSA, version 1")
        if said_rehearsal["rehearsal"] is not False and not rehearsal:
            raise Refused("it was a rehearsal")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{found[0].name} is malformed: {type(error).__name__}") from None
    if commit is not None and said_commit != commit:
        raise Refused(f"it was built from commit {said_commit}")
    if len(digests) != len(statement["subject"]) or not digests:
        raise Refused("a file is named twice, or none is")
    check_files(dist, digests, {found[0].name})
    return len(digests)


def payload_of(envelope: dict[str, Any], public_key: str) -> bytes:
    """The payload of a DSSE envelope that the key has signed. Raises Refused."""
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise Refused("the envelope holds no in-toto statement")
    payload = base64.b64decode(envelope["payload"], validate=True)
    kind = PAYLOAD_TYPE.encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    try:
        key = VerifyKey(bytes.fromhex(public_key))
    except ValueError:
        raise Refused("the public key must be 64 hexadecimal digits") from None
    for each in envelope["signatures"]:
        try:
            key.verify(signed, base64.b64decode(each["sig"], validate=True))
        except (BadSignatureError, ValueError):
            continue
        return payload
    raise Refused("that key has not signed it")


def check_files(dist: Path, digests: dict[str, str], beside: set[str]) -> None:
    """Raise Refused unless the folder has the named files with these digests, and no others."""
    present = {path.name for path in dist.iterdir()} - beside
    for name in sorted(digests.keys() - present):
        raise Refused(f"{name} is missing")
    for name in sorted(present - digests.keys()):
        raise Refused(f"{name} is in no statement")
    for name, digest in sorted(digests.items()):
        if hashlib.sha256((dist / name).read_bytes()).hexdigest() != digest:
            raise Refused(f"{name} is not the file that was signed")


if __name__ == "__main__":
    sys.exit(main())
