"""Objects under a wrap key: AES-CCM with a 13-byte nonce and a 16-byte tag. What is inside is the device's affair."""

from __future__ import annotations

import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM

from .codes import Capability, DeviceError, Error, Kind
from .objects import IMPORTED_WRAPPED, Stored

_NONCE_BYTES = 13
_HEAD = struct.Struct("!BQHHHBBBB40sQ")


def export(wrap_key: Stored, target: Stored) -> bytes:
    """The wrapped object, where both keys allow it."""
    if (
        not wrap_key.capabilities & Capability.EXPORT_WRAPPED
        or not target.capabilities & Capability.EXPORTABLE_UNDER_WRAP
    ):
        raise DeviceError(Error.INSUFFICIENT_PERMISSIONS)
    if target.capabilities & ~wrap_key.delegated:
        raise DeviceError(Error.INSUFFICIENT_PERMISSIONS)
    head = _HEAD.pack(
        wrap_key.algorithm,
        target.capabilities,
        target.id,
        len(target.secret),
        target.domains,
        target.kind,
        target.algorithm,
        target.sequence,
        target.origin,
        target.label,
        target.delegated,
    )
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESCCM(wrap_key.secret).encrypt(nonce, head + target.secret, None)


def restore(wrap_key: Stored, blob: bytes) -> Stored:
    """The object in a blob, where the wrap key allows it."""
    if not wrap_key.capabilities & Capability.IMPORT_WRAPPED:
        raise DeviceError(Error.INSUFFICIENT_PERMISSIONS)
    try:
        plain = AESCCM(wrap_key.secret).decrypt(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], None)
    except (InvalidTag, ValueError):
        raise DeviceError(Error.INVALID_DATA) from None
    fields = _HEAD.unpack_from(plain)
    _, capabilities, object_id, length, domains, kind, algorithm, _, origin, label, delegated = fields
    secret = plain[_HEAD.size :]
    if len(secret) != length:
        raise DeviceError(Error.INVALID_DATA)
    if capabilities & ~wrap_key.delegated or domains & ~wrap_key.domains:
        raise DeviceError(Error.INSUFFICIENT_PERMISSIONS)
    origin |= IMPORTED_WRAPPED
    return Stored(object_id, Kind(kind), algorithm, capabilities, domains, label, secret, delegated, origin)
