"""An Ed25519 key that several SoftHSM tokens hold: for demonstrations, benchmarks and tests of failover.

The private key exists outside a token while it is put on them. A production key is copied between HSMs by their
vendor's way of cloning or wrapped backups, never like this.
"""

from __future__ import annotations

from nacl.bindings import crypto_sign_seed_keypair
from pkcs11 import Attribute, KeyType, ObjectClass
from pkcs11.types import Session

from hsmcore.control.curves import ED25519_OID


def import_seed(session: Session, label: str, key_id: bytes, seed: bytes) -> None:
    """Put an Ed25519 key pair on a token, which does not let it out again."""
    public_key, _ = crypto_sign_seed_keypair(seed)
    common = {
        Attribute.KEY_TYPE: KeyType.EC_EDWARDS,
        Attribute.TOKEN: True,
        Attribute.ID: key_id,
        Attribute.LABEL: label,
        Attribute.EC_PARAMS: ED25519_OID,
    }
    session.create_object(
        common
        | {
            Attribute.CLASS: ObjectClass.PRIVATE_KEY,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.SIGN: True,
            Attribute.VALUE: seed,
        }
    )
    session.create_object(
        common
        | {
            Attribute.CLASS: ObjectClass.PUBLIC_KEY,
            Attribute.PRIVATE: False,
            Attribute.VERIFY: True,
            Attribute.EC_POINT: b"\x04\x20" + public_key,
        }
    )
