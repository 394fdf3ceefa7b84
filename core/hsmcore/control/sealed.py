"""Key ceremonies: Ed25519 keys that are made outside of the token, for tokens that give no wrapped copy away.

The key is made in locked memory (control/locked.py), sealed to a recovery key that is somewhere else, imported so that
it cannot leave the token any more, and wiped. Blocking; the session belongs to the calling thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_ulong
from typing import Final

from pkcs11 import Attribute, KeyType, ObjectClass
from pkcs11.types import Session

from hsmcore.control.cryptoki import Cryptoki
from hsmcore.control.faults import ControlError
from hsmcore.control.keys import key_forms
from hsmcore.control.locked import SEED_BYTES, LockedKey, TransportKey
from hsmcore.control.quirks import Quirks

_RECOVERY_BYTES: Final = 32
_TRUE, _FALSE = b"\x01", b"\x00"


def generate(
    session: Session, cryptoki: Cryptoki, quirks: Quirks, label: str, key_id: bytes, seal_to: Sequence[bytes]
) -> list[bytes]:
    """Make a key and import it. Returns its seed, sealed to each of the X25519 public keys (80 bytes each)."""
    if any(len(public_key) != _RECOVERY_BYTES for public_key in seal_to):
        raise ControlError("a key is sealed to X25519 public keys of 32 bytes")
    key = LockedKey("ceremony")
    try:
        sealed = [key.seal(public_key) for public_key in seal_to]
        _import(session, cryptoki, quirks, label, key_id, key)
    finally:
        key.wipe()
    return sealed


def restore(
    session: Session,
    cryptoki: Cryptoki,
    quirks: Quirks,
    label: str,
    key_id: bytes,
    sealed: bytes,
    recovery: bytearray | TransportKey,
) -> None:
    """Import a key from what it was sealed into. Raises KeyUnusable for a wrong recovery or transport key."""
    if list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id})):
        raise ControlError(f"a private key with the id {key_id.hex()} is on the token already")
    key = LockedKey("ceremony", (sealed, recovery))
    try:
        _import(session, cryptoki, quirks, label, key_id, key)
    finally:
        key.wipe()


def _import(session: Session, cryptoki: Cryptoki, quirks: Quirks, label: str, key_id: bytes, key: LockedKey) -> None:
    create_pair(session, cryptoki, quirks, label, key_id, key.public_key, (key.address, SEED_BYTES))


def create_pair(
    session: Session,
    cryptoki: Cryptoki,
    quirks: Quirks,
    label: str,
    key_id: bytes,
    public_key: bytes,
    seed: bytes | tuple[int, int],
) -> None:
    """Make an Ed25519 key pair of a seed, given as bytes or as address and size, so that it cannot leave the token."""
    handle: int = session.handle  # type: ignore[attr-defined]  # the implementation has it, its types don't
    common: dict[int, bytes | tuple[int, int]] = {
        Attribute.KEY_TYPE: _number(KeyType.EC_EDWARDS),
        Attribute.TOKEN: _TRUE,
        Attribute.ID: key_id,
        Attribute.LABEL: label.encode(),
        Attribute.EC_PARAMS: key_forms(quirks, "ed25519")[0].params,
    }
    private = common | {
        Attribute.CLASS: _number(ObjectClass.PRIVATE_KEY),
        Attribute.PRIVATE: _TRUE,
        Attribute.SENSITIVE: _TRUE,
        Attribute.EXTRACTABLE: _FALSE,
        Attribute.SIGN: _TRUE,
        Attribute.VALUE: seed,
    }
    public = common | {
        Attribute.CLASS: _number(ObjectClass.PUBLIC_KEY),
        Attribute.VERIFY: _TRUE,
        Attribute.EC_POINT: b"\x04\x20" + public_key,  # DER OCTET STRING
    }
    if quirks.names_private:
        public[Attribute.PRIVATE] = _FALSE
    # The public half first: a private key without one is what a crash must not leave.
    cryptoki.create_object(handle, public)
    cryptoki.create_object(handle, private)


def _number(value: int) -> bytes:
    return bytes(c_ulong(value))
