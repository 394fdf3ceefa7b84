"""C2SP signed notes with signatures of Ed25519 (0x01) and timestamped Ed25519 cosignatures (0x04)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hsmcore._native import verify

ED25519: Final = 0x01
COSIGNATURE: Final = 0x04
MAX_NOTE_BYTES: Final = 1 << 16
_MAX_SIGNATURES: Final = 64
_CONTROL: Final = re.compile(rb"[\x00-\x09\x0b-\x1f]")
_DASH: Final = "\u2014 ".encode()


class NoteError(ValueError):
    """A note, a key or a signature is invalid; the text says which."""


def _decode(text: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError("not base64") from None
    if base64.b64encode(value).decode() != text:
        raise NoteError("not base64")  # the last digit has unused bits, and a note changed there must not verify
    return value


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name, written `<name>+<key id>+<base64>`."""

    name: str
    kind: int
    public_key: bytes

    @property
    def id(self) -> bytes:
        """Key id: the four bytes before each signature."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public_key).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Parse a verifier key. Raises NoteError."""
        name, _, rest = text.strip().partition("+")
        identity, _, encoded = rest.partition("+")
        data = _decode(encoded)
        if not name or len(data) != 33 or data[0] not in (ED25519, COSIGNATURE):
            raise NoteError("not an Ed25519 verifier key <name>+<key id>+<base64>")
        key = cls(name, data[0], data[1:])
        if key.id.hex() != identity.lower():
            raise NoteError(f"the key id of {name} does not belong to its key")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public_key).decode()}"

    def accepts(self, text: bytes, signature: bytes) -> bool:
        """Return whether this key made `signature` (as in the note, without key id) over `text`."""
        if self.kind == COSIGNATURE:
            if len(signature) != 72:
                return False
            text = cosignature_text(int.from_bytes(signature[:8], "big"), text)
            signature = signature[8:]
        return len(signature) == 64 and verify("ed25519", self.public_key, text, signature)


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed note, not yet verified. `text` ends with a newline; a signature is a name, then key id and signature."""

    text: bytes
    signatures: tuple[tuple[str, bytes], ...]

    @classmethod
    def parse(cls, data: bytes) -> Note:
        """Parse a note. Raises NoteError."""
        if len(data) > MAX_NOTE_BYTES:
            raise NoteError("too long for a note")
        text, separator, lines = data.rpartition(b"\n\n")
        if not separator or not lines.endswith(b"\n"):
            raise NoteError("no blank line between text and signatures")
        if _CONTROL.search(data) is not None:
            raise NoteError("control characters in a note")
        try:
            data.decode()
            signatures = tuple(signature_of(line) for line in lines.removesuffix(b"\n").split(b"\n"))
        except UnicodeDecodeError:
            raise NoteError("not UTF-8") from None
        if len(signatures) > _MAX_SIGNATURES:
            raise NoteError("too many signatures")
        return cls(text + b"\n", signatures)

    def signers(self, keys: Iterable[VerifierKey]) -> list[VerifierKey]:
        """Return those of `keys` that signed. Raises NoteError if a known key's signature is wrong."""
        found = []
        known = {(key.name, key.id): key for key in keys}
        for name, value in self.signatures:
            key = known.get((name, value[:4]))
            if key is None:
                continue  # as signed-note demands: ignore signatures of unknown keys
            if not key.accepts(self.text, value[4:]):
                raise NoteError(f"the signature of {name} is wrong")
            found.append(key)
        return found

    def cosigned_at(self, witness: VerifierKey) -> int | None:
        """Return the newest Unix time at which a witness has cosigned; None: it has not. Raises NoteError if its
        signature is wrong."""
        if witness.kind != COSIGNATURE or not self.signers([witness]):
            return None
        own = (value for name, value in self.signatures if (name, value[:4]) == (witness.name, witness.id))
        return max(int.from_bytes(value[4:12], "big") for value in own)


def signature_of(line: bytes) -> tuple[str, bytes]:
    """Return a signature line's name, and its key id with the signature. Raises NoteError, UnicodeDecodeError."""
    if not line.startswith(_DASH):
        raise NoteError("a signature line must begin with an em dash")
    name, separator, encoded = line.removeprefix(_DASH).decode().partition(" ")
    value = _decode(encoded)
    if not name or not separator or "+" in name or len(value) < 5:
        raise NoteError("not a signature line")
    return name, value


def cosignature_text(at: int, text: bytes) -> bytes:
    """Return what a witness signs of a note's text (C2SP tlog-cosignature). `at`: its Unix time."""
    return b"cosignature/v1\ntime %d\n" % at + text


def signed(text: bytes, key: VerifierKey, signature: bytes) -> bytes:
    """Return the note of a text with the signature (64 bytes, or 72 for a cosignature) of `key`."""
    return text + b"\n" + signature_line(key, signature)


def signature_line(key: VerifierKey, signature: bytes) -> bytes:
    """Return the signature line of a note."""
    return _DASH + key.name.encode() + b" " + base64.b64encode(key.id + signature) + b"\n"
