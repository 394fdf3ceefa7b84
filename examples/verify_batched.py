"""Verify the proof of a batched signature, without hsmcore: with hashlib and PyNaCl alone.

    python verify_batched.py PUBLIC_KEY_HEX MESSAGE_FILE PROOF_FILE

Prints the domain, the epoch and the message's number, or exits with 1. docs/BATCHING.md has the formats.
"""

import hashlib
import re
import sys
from base64 import b64decode, b64encode
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

KINDS = {1: "tx-legacy", 2: "tx-v0", 3: "tx-v1", 4: "off-chain", 7: "digest32", 8: "raw"}
NUMBER = r"(0|[1-9][0-9]{0,18})\n"
HASH = r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
PROOF = re.compile(
    r"c2sp\.org/tlog-proof@v1\n"
    r"extra ([A-Za-z0-9+/]{12}|[A-Za-z0-9+/]{54}[AEIMQUYcgkosw048]=)\n"
    rf"index {NUMBER}((?:{HASH}\n){{0,63}})\n"
    rf"((?P<domain>[!-*,-~]{{1,64}})/{NUMBER}{NUMBER}({HASH})\nhsmcore/batch-root/v1 {NUMBER}time {NUMBER})\n"
    r"((?:— [^ +\x00-\x1f]+ [A-Za-z0-9+/]+={0,2}\n){1,64})"
)


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def root_of(node: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """RFC 9162, section 2.1.3.2."""
    last = size - 1
    for sibling in path:
        if last == 0:
            return None
        if index % 2 == 1 or index == last:
            node = sha256(b"\x01", sibling, node)
            while index % 2 == 0 and index > 0:
                index, last = index // 2, last // 2
        else:
            node = sha256(b"\x01", node, sibling)
        index, last = index // 2, last // 2
    return node if last == 0 else None


def verify(public_key: bytes, message: bytes, proof: bytes) -> tuple[str, int, int, str] | None:
    """Domain, epoch, number and kind of the message; None if the proof does not hold."""
    try:
        found = PROOF.fullmatch(proof.decode()) if len(proof) <= 65536 and len(public_key) == 32 else None
        lines = [] if found is None else [line.split(" ") for line in found[11].split("\n")[:-1]]
        signatures = [(name, value, b64decode(value)) for _, name, value in lines]
    except ValueError:  # not UTF-8, or not base64
        return None
    if found is None or any(len(data) < 5 or b64encode(data).decode() != value for _, value, data in signatures):
        return None
    extra, (index, epoch, size, first) = b64decode(found[1]), (int(found[group]) for group in (2, 6, 7, 9))
    kind = KINDS.get(extra[0])
    if kind is None or index >= size or int.from_bytes(extra[1:9], "big") != first + index:
        return None
    leaf = sha256(b"\x00", extra[:9], sha256(message), extra[9:])
    if root_of(leaf, index, size, [b64decode(line) for line in found[3].split()]) != b64decode(found[8]):
        return None
    origin = f"{found['domain']}/{found[6]}"
    key_id = sha256(origin.encode(), b"\n\x01", public_key)[:4]
    own = [data[4:] for name, _, data in signatures if (name, data[:4]) == (origin, key_id)]
    try:
        for signature in own:
            VerifyKey(public_key).verify(found[4].encode(), signature)
    except (BadSignatureError, ValueError):
        return None
    return (found["domain"], epoch, first + index, kind) if own else None


if __name__ == "__main__":
    result = verify(bytes.fromhex(sys.argv[1]), Path(sys.argv[2]).read_bytes(), Path(sys.argv[3]).read_bytes())
    sys.exit("NOT valid" if result is None else print(*result))
