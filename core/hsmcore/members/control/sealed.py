"""Key ceremonies: Ed25519 keys that are made outside of the token, for tokens that cannot wrap keys.

The key is made in locked memory (locked.py), sealed to a recovery key that is kept elsewhere, imported so that it
cannot leave the token, and wiped.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_ulong
from dataclasses import dataclass
from typing import Final

from pkcs11 import Attribute, KeyType, ObjectClass
from pkcs11.types import Session

from hsmcore.errors import EngineClosed
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.calls import handle_of
from hsmcore.members.control.faults import ControlError
from hsmcore.members.control.keys import describe_key, find_key, key_forms, require_free
from hsmcore.members.control.locked import SEED_BYTES, LockedKey, TransportKey
from hsmcore.members.control.records import KeyRecord
from hsmcore.members.control.verb import Verb

_RECOVERY_BYTES: Final = 32
_TRUE, _FALSE = b"\x01", b"\x00"


@dataclass(frozen=True, slots=True, repr=False)
class GenerateSealed(Verb[tuple[KeyRecord, list[bytes]]]):
    """A key ceremony: make an Ed25519 key in locked memory, seal it to X25519 public keys (32 bytes each) and import it
    so that it cannot leave the token. The result is the key and its sealed copies (80 bytes each), in the order of the
    public keys."""

    label: str
    key_id: bytes
    seal_to: Sequence[bytes]

    def run(self, admin: TokenAdmin) -> tuple[KeyRecord, list[bytes]]:
        with admin.session("making a sealed key") as session:
            if any(len(public_key) != _RECOVERY_BYTES for public_key in self.seal_to):
                raise ControlError("a key is sealed to X25519 public keys of 32 bytes")
            key = LockedKey("ceremony")
            try:
                sealed = [key.seal(public_key) for public_key in self.seal_to]
                seed = (key.address, SEED_BYTES)
                return create_pair(session, admin, self.label, self.key_id, key.public_key, seed), sealed
            finally:
                key.wipe()


@dataclass(frozen=True, slots=True, repr=False)
class MakeTransportKey(Verb[bytes]):
    """Make an X25519 key pair and return its public key, to which another token's key ceremony can seal a copy for this
    token. The private half is in the locked memory of the process that has loaded the module, good for one import."""

    def run(self, admin: TokenAdmin) -> bytes:
        return admin.make_transport_key().public_key


@dataclass(frozen=True, slots=True, repr=False)
class ImportTransported(Verb[KeyRecord]):
    """Import a key that was sealed to the last transport key, so that it cannot leave the token. EngineClosed if that
    transport key is gone."""

    label: str
    key_id: bytes
    sealed: bytes

    def run(self, admin: TokenAdmin) -> KeyRecord:
        if admin.transport is None:
            raise EngineClosed("the transport key is gone", member=admin.member)
        try:
            return _restore(admin, self.label, self.key_id, self.sealed, admin.transport)
        finally:
            admin.wipe_transport()


@dataclass(frozen=True, slots=True, repr=False)
class ImportSealed(Verb[KeyRecord]):
    """Put a key back that a ceremony sealed. `recovery` is the X25519 private key (32 bytes): the caller wipes it."""

    label: str
    key_id: bytes
    sealed: bytes
    recovery: bytearray

    def run(self, admin: TokenAdmin) -> KeyRecord:
        return _restore(admin, self.label, self.key_id, self.sealed, self.recovery)


def _restore(
    admin: TokenAdmin, label: str, key_id: bytes, sealed: bytes, recovery: bytearray | TransportKey
) -> KeyRecord:
    """Import a key from a sealed copy. Raises KeyUnusable for a wrong recovery or transport key."""
    with admin.session("importing a sealed key") as session:
        require_free(session, key_id)
        key = LockedKey("ceremony", (sealed, recovery))
        try:
            return create_pair(session, admin, label, key_id, key.public_key, (key.address, SEED_BYTES))
        finally:
            key.wipe()


def create_pair(
    session: Session, admin: TokenAdmin, label: str, key_id: bytes, public_key: bytes, seed: bytes | tuple[int, int]
) -> KeyRecord:
    """Make an Ed25519 key pair of a seed, given as bytes or as address and size, so that it cannot leave the token."""
    common: dict[int, bytes | tuple[int, int]] = {
        Attribute.KEY_TYPE: _number(KeyType.EC_EDWARDS),
        Attribute.TOKEN: _TRUE,
        Attribute.ID: key_id,
        Attribute.LABEL: label.encode(),
        Attribute.EC_PARAMS: key_forms(admin.quirks, "ed25519")[0].params,
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
    if admin.quirks.names_private:
        public[Attribute.PRIVATE] = _FALSE
    # The public half first: a crash must not leave a private key without one.
    for template in (public, private):
        admin.calls.create_object(handle_of(session), template)
    return describe_key(*find_key(session, key_id.hex()))


def _number(value: int) -> bytes:
    return bytes(c_ulong(value))
