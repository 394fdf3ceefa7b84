"""The envelope around a wrapped key: a statement of its content, signed by that very key.

A changed byte breaks the signature; a signature by another key shows in its public key, which is compared with the key
ring's. The file has exactly one spelling: any other that would be read as the same is refused.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson
from pydantic.alias_generators import to_camel

from hsmcore._native import verify
from hsmcore.errors import BadArgument, HsmError
from hsmcore.members.control.curves import ALGORITHMS

FORMAT: Final = "hsmcore-key-backup-1"
PREFIX: Final = b"\xffhsmcore backup\x00"
"""Prefix of the text that is signed. No transaction begins like this (see failover/health.py), so an envelope can never
be one."""
MOST_BYTES: Final = 64 * 1024
Method = Literal["wrapped", "sealed"]
_PLAIN: Final = ("key_id", "label", "algorithm", "method", "wrapping_key", "member", "made_ns")
"""Fields of a statement whose value is the same in the file, under the name in camel case."""


class BackupInvalid(HsmError):
    """The file is no backup, it was changed, or it is that of another key. Nothing of it is imported."""

    default_hint = "Take another copy, and find out who changed this one."


@dataclass(frozen=True, slots=True)
class Statement:
    """The statement of an envelope. `payload`: the key as the token wrapped it (members/control/backup.py), or the seed
    that a key ceremony sealed (80 bytes). `wrapping_key`: the wrapping key's label, or the X25519 recovery key in
    hexadecimal."""

    key_id: str
    label: str
    algorithm: str
    public_key: bytes
    method: Method
    wrapping_key: str
    member: str
    made_ns: int
    payload: bytes

    def to_json(self) -> dict[str, Any]:
        """Return everything but the payload; nothing of it is secret."""
        shown = {to_camel(name): getattr(self, name) for name in _PLAIN}
        return shown | {"publicKey": self.public_key.hex()}

    def to_sign(self) -> bytes:
        """Return the message that the key signs: 48 bytes."""
        return PREFIX + hashlib.sha256(_dump(self._whole())).digest()

    def _whole(self) -> dict[str, Any]:
        return {**self.to_json(), "payload": b64encode(self.payload).decode()}

    def enclose(self, signature: bytes) -> bytes:
        """Return the file. Raises BackupInvalid if the signature is not the key's."""
        data = _dump({"format": FORMAT, "statement": self._whole(), "signature": signature.hex()})
        open_envelope(data, self.public_key)
        return data


def open_envelope(data: bytes, public_key: bytes | None = None) -> Statement:
    """Read and verify a file. `public_key`: the key that it must be a backup of. Raises BackupInvalid."""
    if len(data) > MOST_BYTES:
        raise BackupInvalid(f"a backup has at most {MOST_BYTES} bytes")
    try:
        document = orjson.loads(data)
        if document["format"] != FORMAT:
            raise BackupInvalid(f"this is no backup of format {FORMAT}")
        statement = _statement(document["statement"])
        signature = bytes.fromhex(document["signature"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise BackupInvalid("this is no backup that hsmcore wrote") from None
    if _dump({"format": FORMAT, "statement": statement._whole(), "signature": signature.hex()}) != data:  # noqa: SLF001
        raise BackupInvalid("the backup was written by somebody else, or changed")
    try:
        own = verify(statement.algorithm, statement.public_key, statement.to_sign(), signature)
    except BadArgument:  # its public key is no point of the curve
        own = False
    if not own:
        raise BackupInvalid("the signature on the backup is not its key's: it was changed")
    if public_key is not None and statement.public_key != public_key:
        raise BackupInvalid(
            f"this is the backup of another key ({statement.public_key.hex()} instead of {public_key.hex()})"
        )
    if statement.method == "wrapped":
        _agree(statement)
    return statement


def _statement(body: Any) -> Statement:
    plain: dict[str, Any] = {name: body[to_camel(name)] for name in _PLAIN}
    payload = b64decode(body["payload"], validate=True)
    statement = Statement(**plain, public_key=bytes.fromhex(body["publicKey"]), payload=payload)
    texts = (statement.key_id, statement.label, statement.wrapping_key, statement.member)
    if (
        statement.algorithm not in ALGORITHMS
        or statement.method not in ("wrapped", "sealed")
        or not all(isinstance(text, str) for text in texts)
        or type(statement.made_ns) is not int
        or len(statement.public_key) != (32 if statement.algorithm == "ed25519" else 65)
    ):
        raise ValueError("not a statement")
    return statement


def _agree(statement: Statement) -> None:
    """Check that the statement beside the wrapped key is the same. Raises BackupInvalid."""
    try:
        inner = orjson.loads(statement.payload)
        stated = (statement.key_id, statement.algorithm, statement.public_key.hex())
        same = (inner["id"], inner["algorithm"], inner["publicKey"]) == stated
    except (orjson.JSONDecodeError, KeyError, TypeError):
        same = False
    if not same:
        raise BackupInvalid("the envelope and the wrapped key in it contradict each other")


def _dump(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
