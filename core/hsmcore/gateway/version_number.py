"""A version of a key by its number, as every process of a gateway knows it."""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple, Protocol

from hsmcore.base.keyring import KeyVersion

_OWN_BITS: Final = 30
"""Numbers made of public keys have one more bit, which is set: no ring grows so long, and a client that takes a number
for a signed integer of 32 bits can hold them."""


class PublicKey(Protocol):
    """The key of a version."""

    @property
    def id(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def public_key(self) -> bytes: ...


class Version(NamedTuple):
    """A version of a key. `created_ns`: since 1970; None: not known."""

    number: int
    key: PublicKey
    created_ns: int | None

    def to_json(self) -> dict[str, Any]:
        """Return what MANAGE says of it."""
        key = {"id": self.key.id, "algorithm": self.key.algorithm, "publicKey": self.key.public_key.hex()}
        return {"version": self.number, "createdNs": self.created_ns, **key}

    @classmethod
    def of_json(cls, said: Any) -> Version:
        """Return what `to_json` was given."""
        key = KeyVersion(said["id"], "", said["algorithm"], bytes.fromhex(said["publicKey"]), -1)
        return cls(said["version"], key, said["createdNs"])


def is_own(number: int) -> bool:
    """Whether a number is made of the public key."""
    return bool(number >> _OWN_BITS)


def own_number(public_key: bytes) -> int:
    """Return the number of a version that is in no key ring."""
    head = int.from_bytes(hashlib.sha256(public_key).digest()[:4], "big")
    return head >> (32 - _OWN_BITS) | 1 << _OWN_BITS
