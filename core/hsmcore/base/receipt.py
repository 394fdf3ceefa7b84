"""Receipts: a signature with its circumstances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

from hsmcore.base.keyring import KeyVersion
from hsmcore.errors import InvalidMessageType

LevelName = Literal["primary", "secondary", "emergency"]


class Signs(Protocol):
    """A member, as receipts name it."""

    name: str
    level_name: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """A signature and its circumstances. Holds no secret."""

    signature: bytes
    """64 bytes: Ed25519 (RFC 8032), or ECDSA r || s with a low s."""
    key_id: str
    """The key's CKA_ID in hexadecimal."""
    public_key: bytes
    """32 bytes (Ed25519) or 65 (0x04 || X || Y)."""
    member: str
    """The token that signed, such as "softhsm:sequencer"."""
    level: str
    """The level that the member belongs to: "primary", "secondary" or "emergency"."""
    cached: bool
    """True if the signature came from the cache, without asking the token."""
    latency_ns: int
    """Nanoseconds from the call to the answer, as the caller saw them."""
    audit_seq: int | None
    """The sequence number of the audit record; None if nothing is recorded."""

    @classmethod
    def of(cls, signature: bytes, version: KeyVersion, place: Signs, *, cached: bool = False) -> Self:
        """Return one that has no audit record and no latency yet."""
        return cls(signature, version.id, version.public_key, place.name, place.level_name, cached, 0, None)


def signature_bytes(signature: object) -> bytes:
    """Return a caller's signature. Raises InvalidMessageType."""
    if not isinstance(signature, (bytes, bytearray, memoryview)):
        raise InvalidMessageType(f"a signature must be bytes-like, not {type(signature).__name__}")
    try:
        return bytes(signature)
    except ValueError as error:
        raise InvalidMessageType(f"a signature must be bytes-like: {error}") from None


class DigestSignature(NamedTuple):
    """A signature of a digest."""

    signature: bytes
    """64 bytes: ECDSA r || s with a low s."""
    recovery_id: int | None
    """0 to 3 for a secp256k1 key: with it, digest and signature give the public key. None for a P-256 key."""


class Unfinished(NamedTuple):
    """The newest payload of a domain, which may not have been handed out."""

    kind: str
    position: int
    digest: bytes
    """SHA-256 of the message."""
    message: bytes | None
    """None: it was not kept (`policy.keepMessageBytes`), or what is kept is not what was bound."""
