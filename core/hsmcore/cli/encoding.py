"""The text forms of signatures and keys."""

from __future__ import annotations

import base64
import binascii
from typing import Final, Literal

from hsmcore.base.base58 import base58, from_base58
from hsmcore.members.control.curves import der_integers

__all__ = ["SIGNATURE_BYTES", "Format", "base58", "decode_signature", "encode", "from_base58"]

Format = Literal["hex", "base64", "base58", "raw"]

SIGNATURE_BYTES: Final = 64


def encode(data: bytes, form: Format) -> str:
    """Return bytes as text, in any form but raw."""
    if form == "base58":
        return base58(data)
    return base64.b64encode(data).decode() if form == "base64" else data.hex()


def decode_signature(given: bytes) -> bytes:
    """Decode a signature in any form that `sign` prints, or in DER (ECDSA), as OpenSSL writes it; that too raw, in hex
    or in base64. Raises ValueError."""
    for decode in (bytes, _from_text):
        signature = decode(given)
        if len(signature) != SIGNATURE_BYTES:
            signature = _from_der(signature)
        if signature:
            return signature
    raise ValueError("not a signature of 64 bytes in hex, base64, base58 or raw form, nor an ECDSA signature in DER")


def _from_text(given: bytes) -> bytes:
    for decode in (bytes.fromhex, lambda text: base64.b64decode(text, validate=True), from_base58):
        try:
            found = decode(given.decode("ascii").strip())
        except (UnicodeDecodeError, binascii.Error, ValueError):
            continue
        if len(found) == SIGNATURE_BYTES or _from_der(found):
            return found
    return b""


def _from_der(given: bytes) -> bytes:
    """Return r || s of an ECDSA signature in DER, or b""."""
    numbers = der_integers(given)
    if numbers is None or not all(0 < number < 1 << 256 for number in numbers):
        return b""
    return b"".join(number.to_bytes(32, "big") for number in numbers)
