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
KEY = r"([^ +\x00-\x1f]+)\+([0-9a-f]{8})\+(B[A-P][A-Za-z0-9+/]{42})"
POLICY = re.compile(rf"origin ([^ +\x00-\x1f]+)\nfirst {NUMBER}\nquorum ([1-9][0-9]?)\n((?:witness {KEY}\n)+)")
PROOF = re.compile(
    rf"c2sp\.org/tlog-proof@v1\nindex {NUMBER}\n((?:{HASH}\n){{0,63}})\n"
    rf"(([^ +\x00-\x1f]+)\n{NUMBER}\n({HASH})\n)\n"
    r"((?:— [^ +\x00-\x1f]+ [A-Za-z0-9+/]+={0,2}\n){1,64})"
)
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


def verify(policy: bytes, digest: bytes, position: int, proof: bytes) -> int | None:
    """The number of witnesses that have seen this digest at the position; None if the proof does not hold."""
    try:
        rules = POLICY.fullmatch(policy.decode())
        found = PROOF.fullmatch(proof.decode()) if len(proof) <= 65536 and len(digest) == 32 else None
        if rules is None or found is None:
            return None
        lines = [line.split(" ") for line in found[7].split("\n")[:-1]]
        signatures = [(name, value, b64decode(value)) for _, name, value in lines]
        witnesses = witnesses_of(rules[4])
    except ValueError:  # not UTF-8, or not base64
        return None
    if any(len(data) < 5 or b64encode(data).decode() != value for _, value, data in signatures):
        return None
    index, size, root = int(found[1]), int(found[5]), b64decode(found[6])
    if found[4] != rules[1] or int(rules[2]) + index != position or not index < size <= MOST:
        return None
    if root_of(sha256(b"\x00\x01", digest), index, size, [b64decode(line) for line in found[2].split()]) != root:
        return None
    seen = set()
    for name, _, data in signatures:
        key = witnesses.get((name, data[:4]))
        if key is None:
            continue  # of the log itself, or of a witness that the policy does not name
        text = b"cosignature/v1\ntime %d\n%b" % (int.from_bytes(data[4:12], "big"), found[3].encode())
        try:
            VerifyKey(key).verify(text, data[12:])
        except (BadSignatureError, ValueError):
            return None
        seen.add(key)
    return len(seen) if len(seen) >= int(rules[3]) else None


if __name__ == "__main__":
    given, digest, position, proof = sys.argv[1:5]
    result = verify(Path(given).read_bytes(), bytes.fromhex(digest), int(position), Path(proof).read_bytes())
    sys.exit("NOT valid" if result is None else print(result))
