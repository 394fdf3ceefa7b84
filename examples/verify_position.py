"""Verify what a position of a public log is bound to, without hsmcore: with hashlib and PyNaCl alone.

    python verify_position.py POLICY_FILE DIGEST_HEX POSITION PROOF_FILE

If it ends with 0: no other digest has this position in any history of the log that the policy's quorum of witnesses has
seen. DIGEST_HEX is the SHA-256 of the payload that was signed. docs/PUBLIC_LOG.md has the formats.
"""

import hashlib
import re
import sys
from base64 import b64decode, b64encode
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

NUMBER = r"(0|[1-9][0-9]{0,18})"
HASH = r"[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
NAME = r"([^ +\x00-\x1f]+)"
KEY = rf"{NAME}\+([0-9a-f]{{8}})\+(B[A-P][A-Za-z0-9+/]{{42}})"
POLICY = re.compile(rf"origin {NAME}\nfirst {NUMBER}\nquorum ([1-9][0-9]?)\n((?:witness {KEY}\n)+)")
PROOF = re.compile(rf"c2sp\.org/tlog-proof@v1\nindex {NUMBER}\n((?:{HASH}\n){{0,63}})\n(.+)", re.DOTALL)
NOTE = re.compile(rf"({NAME}\n{NUMBER}\n({HASH})\n)\n((?:— [^ +\x00-\x1f]+ [A-Za-z0-9+/]+={{0,2}}\n){{1,64}})")
MOST = 2**63 - 1


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


def witnesses_of(lines: str) -> dict[tuple[str, bytes], bytes]:
    """Public keys by name and key id. Raises ValueError for an id that is not the key's."""
    found = {}
    for name, key_id, encoded in re.findall(rf"witness {KEY}\n", lines):
        data = b64decode(encoded)
        if sha256(name.encode(), b"\n", data)[:4].hex() != key_id:
            raise ValueError(f"the key id of {name} does not belong to its key")
        found[name, bytes.fromhex(key_id)] = data[1:]
    return found


def witnessed(policy: str, note: str) -> tuple[int, bytes, set[bytes]] | None:
    """Size and root of a checkpoint, and the keys of the witnesses of the policy that have cosigned it; None for one of
    another log, of another form, below the quorum, or with a wrong cosignature."""
    rules, found = POLICY.fullmatch(policy), NOTE.fullmatch(note)
    if rules is None or found is None or found[2] != rules[1] or int(found[3]) > MOST:
        return None
    try:
        witnesses, seen = witnesses_of(rules[4]), set()
        for _, name, value in (line.split(" ") for line in found[5].split("\n")[:-1]):
            data = b64decode(value)
            if len(data) < 5 or b64encode(data).decode() != value:
                return None
            key = witnesses.get((name, data[:4]))
            if key is None:
                continue  # of the log itself, or of a witness that the policy does not name
            text = b"cosignature/v1\ntime %d\n%b" % (int.from_bytes(data[4:12], "big"), found[1].encode())
            VerifyKey(key).verify(text, data[12:])
            seen.add(key)
    except (BadSignatureError, ValueError):  # ValueError: not base64, not 64 bytes
        return None
    return (int(found[3]), b64decode(found[4]), seen) if len(seen) >= int(rules[3]) else None


def verify(policy: bytes, digest: bytes, position: int, proof: bytes) -> int | None:
    """The number of witnesses that have seen this digest at the position; None if the proof does not hold."""
    if len(proof) > 65536 or len(digest) != 32:
        return None
    try:
        rules, found = POLICY.fullmatch(policy.decode()), PROOF.fullmatch(proof.decode())
    except ValueError:  # not UTF-8
        return None
    shown = None if rules is None or found is None else witnessed(policy.decode(), found[3])
    if shown is None:
        return None
    index, (size, root, seen) = int(found[1]), shown
    if int(rules[2]) + index != position or index >= size:
        return None
    path = [b64decode(line) for line in found[2].split()]
    return len(seen) if root_of(sha256(b"\x00\x01", digest), index, size, path) == root else None


if __name__ == "__main__":
    given, digest, position, proof = sys.argv[1:5]
    result = verify(Path(given).read_bytes(), bytes.fromhex(digest), int(position), Path(proof).read_bytes())
    sys.exit("NOT valid" if result is None else print(result))
