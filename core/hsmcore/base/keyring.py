"""The key ring: the versions of one logical key, of which one signs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from hsmcore.base.base58 import base58
from hsmcore.errors import AlgorithmUnsupported, KeyDeactivated, KeyNotFound

State = Literal["active", "deactivated"]


@dataclass(frozen=True, slots=True)
class KeyVersion:
    """One key pair on the token. `index` is its index in the engine's key table; -1: not loaded in this process."""

    id: str
    label: str
    algorithm: str
    public_key: bytes
    index: int
    state: State = "active"

    @classmethod
    def of_engine(cls, info: dict[str, Any]) -> KeyVersion:
        """From the result of Engine.add_key. The id of a key without CKA_ID is made of its label."""
        return cls(
            id=info["id"].hex() or f"label:{info['label']}",
            label=info["label"],
            algorithm=info["algorithm"],
            public_key=info["public_key"],
            index=info["index"],
        )


def canonical(key_id: str) -> str:
    """The canonical spelling of a key id: lower-case hexadecimal without blanks. Other ids stay unchanged."""
    try:
        return bytes.fromhex(key_id).hex() or key_id
    except ValueError:
        return key_id


def address_of(public_key: bytes) -> str:
    """The Solana address that an Ed25519 public key is, in base58. Raises AlgorithmUnsupported for another key."""
    if len(public_key) != 32:
        hint = "Sign with an Ed25519 key; `public_key` is what others have."
        raise AlgorithmUnsupported("an address is an Ed25519 key, and the current key is none", hint=hint)
    return base58(public_key)


class VerifyingKey(Protocol):
    """What is to be known of a key that verifies."""

    @property
    def algorithm(self) -> str: ...
    @property
    def public_key(self) -> bytes: ...


def any_good(versions: Sequence[VerifyingKey], message: object, signature: bytes) -> bool:
    """Whether the signature is valid under any of the keys. Any thread."""
    from hsmcore._native import verify  # a gateway's client may never need it

    return any(verify(key.algorithm, key.public_key, message, signature) for key in versions)


def successor_label(label: str, random: bytes) -> str:
    """The label of the next key: the stem of `label` and eight hexadecimal digits, at most 40 bytes, which is the limit
    of YubiHSM 2. The stem of an AWS KMS name is its last part."""
    label = re.sub(r"\A(arn:.*:)?(alias|key)/", "", label)
    stem = re.sub(r"-[0-9a-f]{8}\Z", "", label)
    return f"{stem.encode()[:31].decode(errors='ignore')}-{random[:4].hex()}"


class KeyRing:
    """The known versions, oldest first. Not thread-safe: belongs to the event loop."""

    def __init__(self) -> None:
        self._versions: dict[str, KeyVersion] = {}
        self._current: str | None = None

    def __iter__(self) -> Iterator[KeyVersion]:
        return iter(self._versions.values())

    def __contains__(self, key_id: object) -> bool:
        return isinstance(key_id, str) and canonical(key_id) in self._versions

    def add(self, version: KeyVersion) -> KeyVersion:
        """Add a version; it replaces a version with the same id."""
        self._versions[version.id] = version
        return version

    def get(self, key_id: str) -> KeyVersion:
        """Raises KeyNotFound."""
        version = self._versions.get(canonical(key_id))
        if version is None:
            known = ", ".join(self._versions) or "none"
            raise KeyNotFound(f"no key with id {key_id!r} in the key ring (known: {known})")
        return version

    @property
    def current(self) -> KeyVersion:
        """The version that signs. Raises KeyNotFound while there is none."""
        if self._current is None:
            raise KeyNotFound("no key has been made current")
        return self._versions[self._current]

    def make_current(self, key_id: str) -> KeyVersion:
        """Raises KeyNotFound, KeyDeactivated."""
        version = self.get(key_id)
        if version.state == "deactivated":
            raise KeyDeactivated(f"key {key_id} was deactivated and signs no more")
        self._current = version.id
        return version

    def deactivate(self, key_id: str) -> KeyVersion:
        """Raises KeyNotFound. A current key stays current, so that signing fails instead of using another one."""
        version = replace(self.get(key_id), state="deactivated")
        self._versions[version.id] = version
        return version

    def remove(self, key_id: str) -> None:
        """Remove a version, except the current one. Idempotent."""
        if canonical(key_id) != self._current:
            self._versions.pop(canonical(key_id), None)

    def for_verification(self) -> list[KeyVersion]:
        """Every version, the current one first: old signatures still verify."""
        return sorted(self._versions.values(), key=lambda version: version.id != self._current)
