"""The text forms of signatures and keys."""

from __future__ import annotations

import base64
import binascii
from typing import Final, Literal

from hsmcore.base58 import base58, from_base58

__all__ = ["SIGNATURE_BYTES", "Format", "base58", "decode_signature", "encode", "from_base58"]

Format = Literal["hex", "base64", "base58", "raw"]

SIGNATURE_BYTES: Final = 64


def encode(data: bytes, form: Format) -> str:
    """Return bytes as text, in any form but raw."""
    if form == "base58":
        return base58(data)
    return base64.b64encode(data).decode() if form == "base64" else data.hex()


def decode_signature(given: bytes) -> bytes:
    """Decode a signature in any form that `sign` prints: they differ in length or alphabet. Raises ValueError."""
    if len(given) == SIGNATURE_BYTES:
        return given
    try:
        text = given.decode("ascii").strip()
        if len(text) == 2 * SIGNATURE_BYTES:
            signature = bytes.fromhex(text)
        elif text.endswith("="):
            signature = base64.b64decode(text, validate=True)
        else:
            signature = from_base58(text)
    except (UnicodeDecodeError, binascii.Error, ValueError):
        signature = b""
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError("not a signature of 64 bytes in hex, base64, base58 or raw form")
    return signature
