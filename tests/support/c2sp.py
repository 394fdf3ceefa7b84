"""A verifier of checkpoints and cosignatures written from c2sp.org's signed-note, tlog-checkpoint and tlog-cosignature,
with nothing of hsmcore's: what it takes, others may take."""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from typing import Final

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

ED25519: Final = 1
COSIGNATURE: Final = 4
_DASH: Final = "\u2014 "


def line(name: str, kind: int, public_key: bytes, signature: bytes) -> str:
    """A signature line."""
    key_id = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:4]
    return f"{_DASH}{name} {b64encode(key_id + signature).decode()}\n"


def note(text: bytes, name: str, kind: int, public_key: bytes, signature: bytes) -> bytes:
    """A signed note."""
    return text + b"\n" + line(name, kind, public_key, signature).encode()


def checkpoint(data: bytes, name: str, public_key: bytes) -> tuple[str, int, bytes]:
    """Origin, size and root of a note that this key signed under its own name, or cosigned. Raises ValueError."""
    whole = data.decode()
    if any(one < " " and one != "\n" for one in whole) or "\n\n" not in whole:
        raise ValueError("not a note")
    text, _, signatures = whole.rpartition("\n\n")
    text += "\n"
    if not any(_signed(text, one, name, public_key) for one in signatures.split("\n")):
        raise ValueError("not signed")
    origin, size, root, *_ = text.split("\n")
    if not origin or re.fullmatch("0|[1-9][0-9]*", size, re.ASCII) is None or len(b64decode(root, validate=True)) != 32:
        raise ValueError("not a checkpoint")
    return origin, int(size), b64decode(root)


def _signed(text: str, one: str, name: str, public_key: bytes) -> bool:
    if not name or "+" in name or any(letter.isspace() for letter in name) or not one.startswith(f"{_DASH}{name} "):
        return False
    value = b64decode(one.removeprefix(f"{_DASH}{name} "), validate=True)
    for kind, begin in ((ED25519, ""), (COSIGNATURE, f"cosignature/v1\ntime {int.from_bytes(value[4:12])}\n")):
        if value[:4] == hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:4]:
            try:
                VerifyKey(public_key).verify((begin + text).encode(), value[-64:])
            except BadSignatureError:
                return False
            return True
    return False
