"""The binary form of a batched message's proof: what its verifier does not have already. docs/BATCHING.md has it.

The text is made again from it with the message, the public key and the domain. The root is where the path leads; so a
byte that is changed leads to another root, which the signature does not cover.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final

from hsmcore.tlog.batch_proof import checkpoint, signer
from hsmcore.tlog.note import Note, signed
from hsmcore.tlog.proof import MOST_BYTES, ProofError, leaf_of, parts_of, root_of_inclusion

_PLAIN: Final = 0x10
"""The first byte is this, or the next one, and the number of the kind."""
_BLINDED: Final = 0x20
_SIGNATURE: Final = 64
_HASH: Final = 32
_MOST: Final = 10**19
"""A number in a proof is less."""


def proof_to_bytes(proof: bytes) -> bytes:
    """Return the binary form of a proof, a third smaller than the text. Raises ValueError for what is no proof, or has
    signatures of other names. Verifies nothing."""
    one = parts_of(proof)
    if one is None or not one.is_placed:
        raise ProofError("not the proof of a batched message")
    root_of_inclusion(bytes(_HASH), one.place, one.size, one.path)  # raises for a path of another length
    [(name, value), *others] = Note.parse(one.note).signatures
    if others or name != f"{one.domain}/{one.epoch}" or len(value) != 4 + _SIGNATURE:
        raise ProofError("a proof with other signatures than that of its origin has no binary form")
    blinder = one.extra[9:]
    numbers = b"".join(map(_written, (one.epoch, one.size, one.first, one.place, one.time_ns)))
    head = bytes(((_BLINDED if blinder else _PLAIN) | one.extra[0],))
    return head + value[4:] + numbers + blinder + b"".join(one.path)


def proof_from_bytes(data: bytes, message: bytes, public_key: bytes, domain: str) -> bytes:
    """Return the proof of which this is the binary form: the same text, if message, key (Ed25519, 32 bytes) and domain
    are those of the proof. Raises ValueError. Whether it holds, verify_batched says."""
    form, kind = data[0] & 0xF0 if data else 0, data[:1]
    if form not in (_PLAIN, _BLINDED) or len(data) > MOST_BYTES or len(public_key) != _HASH:
        raise ProofError("not the binary form of a proof, or not an Ed25519 key")
    at, numbers = 1 + _SIGNATURE, list[int]()
    for _ in range(5):
        number, at = _read(data, at)
        numbers.append(number)
    epoch, size, first, place, time_ns = numbers
    behind = at + (_HASH if form == _BLINDED else 0)
    path = [data[i : i + _HASH] for i in range(behind, len(data), _HASH)]
    if behind > len(data) or first + place >> 64:
        raise ProofError("not the binary form of a proof")
    extra = bytes((kind[0] ^ form,)) + (first + place).to_bytes(8, "big") + data[at:behind]
    root = root_of_inclusion(leaf_of(extra, message), place, size, path)
    text = checkpoint(domain, epoch, size, root, first, time_ns)
    lines = (
        b"c2sp.org/tlog-proof@v1",
        b"extra " + b64encode(extra),
        b"index %d" % place,
        *map(b64encode, path),
        b"",
        b"",
    )
    proof = b"\n".join(lines) + signed(text, signer(text, public_key), data[1 : 1 + _SIGNATURE])
    found = parts_of(proof)
    if found is None or not found.is_placed:
        raise ProofError("not the binary form of a proof of this domain")
    return proof


def _written(number: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first; each byte but the last has its highest bit set."""
    *low, last = (number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7))
    return bytes((*(digit | 0x80 for digit in low), last))


def _read(data: bytes, at: int) -> tuple[int, int]:
    """Read a number. Returns it, and where the next one begins. Raises ProofError for one in another form than the
    shortest."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        digit, at = data[at], at + 1
        number |= (digit & 0x7F) << shift
        if digit < 0x80:
            if number >= _MOST or (digit == 0 and shift):
                break
            return number, at
    raise ProofError("not the binary form of a proof: a number is cut off, too long or too high")
