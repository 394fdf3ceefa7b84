"""What a command reads and writes: files, and the text forms of signatures and keys."""

from __future__ import annotations

import base64
import binascii
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from hsmcore.base.base58 import base58, from_base58
from hsmcore.cli.output import BadUsage
from hsmcore.errors import SystemFailure
from hsmcore.members.control.curves import der_integers

__all__ = ["SIGNATURE_BYTES", "Format", "base58", "decode_signature", "encode", "from_base58", "read", "write"]

if TYPE_CHECKING:
    from hsmcore.cli.invocation import Invocation

OutputOption = Annotated[Path | None, "-o PATH: Default: standard output."]

Format = Literal["hex", "base64", "base58", "raw"]

SIGNATURE_BYTES: Final = 64


def read(path: Path, most: int = -1) -> bytes:
    """Return what a file holds, at most `most` bytes. Raises BadUsage."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise BadUsage(f"{path} cannot be read: {error.strerror}") from None


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file, which a new one's owner alone can read unless `mode` says more. Raises SystemFailure."""
    try:
        path.touch(mode)
        path.write_bytes(data)
    except OSError as error:
        raise SystemFailure(f"{path} cannot be written: {error.strerror}", hint="Name another file.") from error


def deliver(cli: Invocation, data: bytes, output: Path | None, shown: Any, what: str, mode: int = 0o666) -> None:
    """Write `data` to a file and say so, or to standard output. `shown`: what is printed with --json instead."""
    if output is not None:
        write(output, data, mode)
    if shown is None or (output is None and not cli.as_json):
        sys.stdout.write(data.decode())
    else:
        cli.show(shown, f"{what} written to {output}")


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
