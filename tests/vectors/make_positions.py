"""Proofs of positions in a public log, good ones and hostile ones: `python -m tests.vectors.make_positions` prints
positions.json. From docs/PUBLIC_LOG.md, the RFC and PyNaCl alone: nothing of hsmcore makes them."""

from __future__ import annotations

import hashlib
import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

from nacl.signing import SigningKey
from tests.support.rfc6962 import leaf_of, path_of, root_of
from tests.support.witness_server import line_of, vkey

ORIGIN, FIRST, SIZE = "example.com/my-rollup/block", 1000, 300
LOG = SigningKey(hashlib.sha256(b"the log").digest())
WITNESSES = [SigningKey(hashlib.sha256(b"witness %d" % n).digest()) for n in range(3)]
NAMES = [f"witness.example/w{n}" for n in range(3)]
TIME = 1_900_000_000
DIGESTS = [hashlib.sha256(b"block %d" % n).digest() for n in range(SIZE)]
OTHER = hashlib.sha256(b"another block").digest()
GAPS = {7: b"\0", 8: b"\2"}
"""Leaves of positions that were given up."""


def entries(other: int | None = None) -> list[bytes]:
    """The leaves; `other`: one of them is of another payload."""
    return [GAPS.get(n, b"\1" + (OTHER if n == other else digest)) for n, digest in enumerate(DIGESTS)]


def policy(quorum: int = 2, origin: str = ORIGIN, first: int = FIRST, names: list[str] = NAMES) -> str:
    keys = [vkey(name, 4, bytes(one.verify_key)) for name, one in zip(names, WITNESSES, strict=True)]
    return "".join(
        f"{line}\n"
        for line in (f"origin {origin}", f"first {first}", f"quorum {quorum}", *(f"witness {k}" for k in keys))
    )


def inclusion(index: int, leaves: list[bytes]) -> list[bytes]:
    return path_of(index, list(map(leaf_of, leaves)))


def text_of(leaves: list[bytes], origin: str = ORIGIN, size: int | None = None) -> bytes:
    hashed = b64encode(root_of(list(map(leaf_of, leaves)))).decode()
    return f"{origin}\n{len(leaves) if size is None else size}\n{hashed}\n".encode()


def cosigned(number: int, text: bytes, *, prefix: bytes = b"cosignature/v1\n", name: str | None = None) -> bytes:
    signature = WITNESSES[number].sign(prefix + b"time %d\n" % TIME + text).signature
    public_key = bytes(WITNESSES[number].verify_key)
    return line_of(name or NAMES[number], 4, public_key, TIME.to_bytes(8, "big") + signature)


def proof(
    index: int,
    leaves: list[bytes],
    lines: list[bytes] | None = None,
    *,
    said: int | None = None,
    text: bytes | None = None,
    path: list[bytes] | None = None,
) -> str:
    text = text or text_of(leaves)
    own = line_of(ORIGIN, 1, bytes(LOG.verify_key), LOG.sign(text).signature)
    lines = [own, *(cosigned(n, text) for n in range(3))] if lines is None else lines
    hashes = inclusion(index, leaves) if path is None else path
    head = ["c2sp.org/tlog-proof@v1", f"index {index if said is None else said}"]
    head += [b64encode(one).decode() for one in hashes]
    return "\n".join(head) + "\n\n" + (text + b"\n" + b"".join(lines)).decode()


def changed(line: bytes, at: int) -> bytes:
    """A signature line with a bit of its value changed."""
    begin, _, value = line.rstrip(b"\n").rpartition(b" ")
    data = bytearray(b64decode(value))
    data[at] ^= 1
    return begin + b" " + b64encode(data) + b"\n"


def cases() -> Iterator[dict[str, Any]]:
    """Each case: `seen`, the witnesses that count, or null where it must be refused."""
    leaves, forked, text = entries(), entries(other=5), text_of(entries())
    own = line_of(ORIGIN, 1, bytes(LOG.verify_key), LOG.sign(text).signature)
    three = [cosigned(n, text) for n in range(3)]
    good = proof(5, leaves)

    def case(name: str, given: str, seen: int | None = None, at: int = FIRST + 5, **more: Any) -> dict[str, Any]:
        digest = more.pop("digest", DIGESTS[5]).hex()
        known = more.pop("policy", policy())
        return {"name": name, "seen": seen, "policy": known, "digest": digest, "position": at, "proof": given, **more}

    yield case("good", good, 3)
    for index in (0, 1, 255, 256, 298, 299):
        yield case(f"good at {index}", proof(index, leaves), 3, FIRST + index, digest=DIGESTS[index])
    yield case("the only leaf", proof(0, leaves[:1]), 3, FIRST, digest=DIGESTS[0])
    yield case("a quorum", proof(5, leaves, three[:2]), 2)
    yield case("any order, a stranger, one twice", proof(5, leaves, [three[2], own, three[0], three[0]]), 2)
    far = 2**63 - 1 - 5
    yield case("the highest position", good, 3, 2**63 - 1, policy=policy(first=far))
    yield case("another digest", good, digest=OTHER)
    yield case("another position", good, at=FIRST + 6)
    yield case("another first position", good, policy=policy(first=0))
    yield case("another index, another position", good.replace("index 5\n", "index 6\n"), at=FIRST + 6)
    yield case("index 2^64 more", good.replace("index 5\n", f"index {5 + 2**64}\n"))
    yield case("index with a zero", good.replace("index 5\n", "index 05\n"))
    yield case("index beyond the size", proof(5, leaves, said=300), at=FIRST + 300)
    yield case("a swapped leaf", proof(5, leaves), digest=DIGESTS[4])
    yield case("the neighbour's path", proof(4, leaves, said=5))
    yield case("a fork without witnesses", proof(5, forked, [own]), digest=OTHER)
    yield case("a fork with their cosignatures of the other", proof(5, forked, three), digest=OTHER)
    yield case("a fork that one witness has seen", proof(5, forked, [own, cosigned(0, text_of(forked))]), digest=OTHER)
    yield case("a gap", proof(7, leaves), at=FIRST + 7, digest=bytes(32))
    yield case("an inner node for a leaf", proof(5, leaves, path=inclusion(5, leaves)[1:]))
    yield case("a longer path", proof(5, leaves, path=[*inclusion(5, leaves), bytes(32)]))
    yield case("below the quorum", proof(5, leaves, three[:1]))
    yield case("one witness twice", proof(5, leaves, [three[0], three[0]]))
    yield case("one witness under the name of another", proof(5, leaves, [three[0], cosigned(0, text, name=NAMES[1])]))
    yield case("a bad cosignature", proof(5, leaves, [*three[:2], changed(three[2], 40)]))
    yield case("another time", proof(5, leaves, [*three[:2], changed(three[2], 11)]))
    yield case("a cosignature of another form", proof(5, leaves, [*three[:2], cosigned(2, text, prefix=b"")]))
    yield case("a cosignature that is cut", proof(5, leaves, [*three[:2], three[2][:-9] + b"\n"]))
    other = text_of(leaves, "example.com/other/block")
    yield case("another origin", proof(5, leaves, [cosigned(n, other) for n in range(3)], text=other))
    yield case("another origin, cosigned for this one", proof(5, leaves, three, text=other))
    larger = text_of(leaves, size=600)
    yield case("another size", proof(5, leaves, [cosigned(n, larger) for n in range(3)], text=larger))
    long = text + b"more\n"
    yield case("a line more", proof(5, leaves, [cosigned(n, long) for n in range(3)], text=long))
    yield case("no blank line", good.replace("\n\n", "\n", 1))
    yield case("no newline at the end", good[:-1])
    yield case("a hyphen for the dash", good.replace("— witness", "- witness"))
    yield case("another header", good.replace("@v1", "@v2"))
    yield case("a carriage return", good.replace("\n", "\r\n"))
    yield case("nothing", "")
    yield case("unused bits", good.replace("=\n\n", "=\n\n", 1).replace(_last(good), _spelled(_last(good)), 1))
    yield case("a quorum of none", good, policy=policy().replace("quorum 2", "quorum 0"))
    yield case("no witnesses", good, policy="".join(policy().splitlines(keepends=True)[:3]))
    *others, last = policy().splitlines(keepends=True)
    name, _, key = last.split("+", 2)
    yield case("a key id of another key", good, policy="".join([*others, f"{name}+00000000+{key}"]))
    yield case("a key of no form", good, policy=policy()[:-60] + "A" * 59 + "\n")


def _last(given: str) -> str:
    """The last hash of the path."""
    return given.partition("\n\n")[0].rpartition("\n")[2]


def _spelled(text: str) -> str:
    """The same 32 bytes in a second spelling, with unused bits."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:-2] + digits[digits.index(text[-2]) + 1] + "="


if __name__ == "__main__":
    json.dump(list(cases()), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
