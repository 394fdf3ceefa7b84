"""What the device stores: objects with capabilities and domains, and the keys in them."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from .codes import Algorithm, DeviceError, Error, Kind

LABEL_BYTES = 40
MAX_OBJECTS = 256
GENERATED, IMPORTED, IMPORTED_WRAPPED = 0x01, 0x02, 0x10

CURVES: dict[int, ec.EllipticCurve] = {Algorithm.EC_P256: ec.SECP256R1(), Algorithm.EC_K256: ec.SECP256K1()}
WRAP_KEY_BYTES = {Algorithm.AES128_CCM_WRAP: 16, Algorithm.AES192_CCM_WRAP: 24, Algorithm.AES256_CCM_WRAP: 32}
_HASHES: dict[int, hashes.HashAlgorithm] = {20: hashes.SHA1(), 32: hashes.SHA256()}  # noqa: S303


@dataclass(slots=True)
class Stored:
    """One object. `secret` is the private key, the wrap key, K-ENC || K-MAC, or an opaque object's content."""

    id: int
    kind: Kind
    algorithm: int
    capabilities: int
    domains: int
    label: bytes
    secret: bytes = field(repr=False)
    delegated: int = 0
    origin: int = GENERATED
    sequence: int = 0

    def info(self) -> bytes:
        """As GET OBJECT INFO gives it."""
        return struct.pack(
            "!QHHHBBBB40sQ",
            self.capabilities,
            self.id,
            len(self.secret),
            self.domains,
            self.kind,
            self.algorithm,
            self.sequence,
            self.origin,
            self.label,
            self.delegated,
        )


class Store:
    """All objects by id and type."""

    def __init__(self) -> None:
        self._objects: dict[tuple[int, int], Stored] = {}
        self._sequences: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Stored]:
        return iter(sorted(self._objects.values(), key=lambda stored: (stored.id, stored.kind)))

    def find(self, object_id: int, kind: int, domains: int) -> Stored:
        """An object that shares a domain with `domains`; others do not exist for the asker."""
        found = self._objects.get((object_id, kind))
        if found is None or not found.domains & domains:
            raise DeviceError(Error.OBJECT_NOT_FOUND)
        return found

    def add(self, new: Stored) -> int:
        """Take an object in; id 0: the device chooses one. Returns its id."""
        if len(self._objects) >= MAX_OBJECTS:
            raise DeviceError(Error.STORAGE_FAILED)
        while new.id == 0 or (new.origin == GENERATED and new.id == 0xFFFF):
            candidate = int.from_bytes(os.urandom(2), "big")
            new.id = 0 if (candidate, new.kind) in self._objects else candidate
        place = (new.id, new.kind)
        if place in self._objects:
            raise DeviceError(Error.OBJECT_EXISTS)
        new.sequence = self._sequences.get(place, -1) + 1 & 0xFF
        self._sequences[place] = new.sequence
        self._objects[place] = new
        return new.id

    def remove(self, stored: Stored) -> None:
        """Forget an object."""
        del self._objects[stored.id, stored.kind]


def generate_private(algorithm: int) -> bytes:
    """A new private key: an Ed25519 seed, or the scalar of an elliptic curve key."""
    if algorithm == Algorithm.ED25519:
        return os.urandom(32)
    if algorithm not in CURVES:
        raise DeviceError(Error.INVALID_DATA)
    number = ec.generate_private_key(CURVES[algorithm]).private_numbers().private_value
    return number.to_bytes(32, "big")


def _ec_private(key: Stored) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(key.secret, "big"), CURVES[key.algorithm])


def public_key(key: Stored) -> bytes:
    """32 bytes (Ed25519), or X || Y."""
    if key.algorithm == Algorithm.ED25519:
        return ed25519.Ed25519PrivateKey.from_private_bytes(key.secret).public_key().public_bytes_raw()
    if key.algorithm not in CURVES:
        raise DeviceError(Error.INVALID_DATA)
    form = serialization.PublicFormat.UncompressedPoint
    return _ec_private(key).public_key().public_bytes(serialization.Encoding.X962, form)[1:]


def sign_eddsa(key: Stored, message: bytes) -> bytes:
    """64 bytes."""
    if key.algorithm != Algorithm.ED25519:
        raise DeviceError(Error.INVALID_DATA)
    return ed25519.Ed25519PrivateKey.from_private_bytes(key.secret).sign(message)


def sign_ecdsa(key: Stored, digest: bytes) -> bytes:
    """A DER signature of a digest."""
    hash_ = _HASHES.get(len(digest))
    if key.algorithm not in CURVES or hash_ is None:
        raise DeviceError(Error.INVALID_DATA)
    return _ec_private(key).sign(digest, ec.ECDSA(Prehashed(hash_)))
