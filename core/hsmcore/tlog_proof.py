"""What a C2SP tlog-proof of a batched message says, but for its signature. docs/BATCHING.md has the form.

Needs no native core: hsmcore.audit.batch_proof and hsmcore.gateway.batched verify signatures, each with its own means.
"""

from __future__ import annotations

import hashlib
import re
from binascii import a2b_base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

KINDS: Final[Sequence[str]] = ("", "tx-legacy", "tx-v0", "tx-v1", "off-chain", "", "", "digest32", "raw")
"""By the number in a leaf; "" is of none."""
MOST_BYTES: Final = 1 << 16
_LAST: Final = rb"[AEIMQUYcgkosw048]="
"""The end of 32 bytes in base64, whose last two bits are 0."""
_HASH: Final = rb"[A-Za-z0-9+/]{42}" + _LAST
_NUMBER: Final = rb"(0|[1-9][0-9]{0,18})\n"
_FORM: Final = re.compile(
    rb"c2sp\.org/tlog-proof@v1\nextra ([A-Za-z0-9+/]{12}|[A-Za-z0-9+/]{54}" + _LAST + rb")\n"
    rb"index " + _NUMBER + rb"((?:" + _HASH + rb"\n){0,63})\n"
    rb"(([!-*,-~]{1,64})/" + _NUMBER + _NUMBER + rb"(" + _HASH + rb")\n"
    rb"hsmcore/batch-root/v1 " + _NUMBER + rb"time " + _NUMBER + rb")\n.+",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a proof says, if its checkpoint is signed. `text`: of the checkpoint, which `note` has with signatures."""

    domain: str
    epoch: int
    index: int
    kind: str
    size: int
    root: bytes
    time_ns: int
    text: bytes
    note: bytes


def shown(message: bytes, proof: bytes) -> Shown | None:
    """Return what a proof says of a message; None unless its path leads from the message to the root."""
    found = _FORM.fullmatch(proof) if len(proof) <= MOST_BYTES else None
    if found is None:
        return None
    epoch, size, first, time_ns = (int(found[group]) for group in (6, 7, 9, 10))
    extra, index = a2b_base64(found[1]), int(found[2])
    kind = KINDS[extra[0]] if extra[0] < len(KINDS) else ""
    if not kind or index >= size or int.from_bytes(extra[1:9], "big") != first + index:
        return None
    digest = hashlib.sha256(message).digest()
    leaf = hashlib.sha256(b"\0" + extra[:9] + digest + extra[9:]).digest()
    root = a2b_base64(found[8])
    if _root(leaf, index, size - 1, list(map(a2b_base64, found[3].split()))) != root:
        return None
    note = proof[found.start(4) :]
    return Shown(found[5].decode(), epoch, first + index, kind, size, root, time_ns, found[4], note)


def _root(node: bytes, index: int, last: int, path: Sequence[bytes]) -> bytes | None:
    """Return the root that a path leads to (RFC 9162, section 2.1.3.2); None if it has another length."""
    for sibling in path:
        if not last:
            return None
        if index & 1 or index == last:
            node = hashlib.sha256(b"\1" + sibling + node).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = hashlib.sha256(b"\1" + node + sibling).digest()
        index, last = index >> 1, last >> 1
    return None if last else node
