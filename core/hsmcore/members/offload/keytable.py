"""The keys that an OffloadEngine signs with, by index, and verification of the back end's signatures."""

from __future__ import annotations

from dataclasses import dataclass

from hsmcore._native import verify
from hsmcore.control.curves import Algorithm
from hsmcore.errors import BadArgument, HsmError, error_of

SIGNATURE_BYTES = 64


@dataclass(slots=True)
class KeyRow:
    """`shared`: identical requests may get the same signature. `limit`: the name of the limit `max_message` (bytes)."""

    algorithm: Algorithm
    public_key: bytes
    shared: bool
    max_message: int
    limit: str
    retired: bool = False


class KeyTable:
    """Rows are only ever added. Each `verify_every`-th signature is verified; 0: none, 1: all."""

    def __init__(self, member: str, verify_every: int) -> None:
        self._member, self._verify_every = member, verify_every
        self._rows: list[KeyRow] = []
        self._since_verified = 0

    def add(self, row: KeyRow) -> int:
        """Add a row and return its index."""
        self._rows.append(row)
        return len(self._rows) - 1

    def row(self, index: int) -> KeyRow:
        """Return the row of an index. Raises BadArgument."""
        if not 0 <= index < len(self._rows):
            raise BadArgument(f"no key with index {index}", member=self._member)
        return self._rows[index]

    def check_active(self, row: KeyRow) -> None:
        """Raise KeyDeactivated if the key was retired."""
        if row.retired:
            raise error_of("KEY_DEACTIVATED", member=self._member)

    def judged(self, index: int, message: bytes, signature: bytes) -> bytes | HsmError:
        """Return the signature if it may be handed out, else the error."""
        if len(signature) != SIGNATURE_BYTES:
            return error_of("SIGNATURE_MALFORMED", member=self._member)
        self._since_verified += 1
        if self._since_verified == self._verify_every:
            self._since_verified = 0
            key = self._rows[index]
            if not verify(key.algorithm, key.public_key, message, signature):
                return error_of("SIGNATURE_INVALID", member=self._member)
        return signature
