"""Put keys on a token with python-pkcs11 alone, in a child process; nothing of hsmcore takes part.

Standard input: {"module", "token", "pin", "keys": [{"label", "id", "kind", …}]}; standard output: the same keys with
their public keys in hexadecimal. A child, because SoftHSM is initialized once per process and the tests' own process
belongs to hsmcore.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.types import Session

CURVES = {
    "ed25519": (KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, "06032b6570"),
    "ecdsa-p256": (KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, "06082a8648ce3d030107"),
    "ecdsa-secp256k1": (KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, "06052b8104000a"),
    "ecdsa-p384": (KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, "06052b81040022"),
}


def make_key(session: Session, key: dict[str, Any]) -> bytes:
    """Make one key pair; returns the public key without its DER wrapping."""
    identity = bytes.fromhex(key["id"])
    if key["kind"] == "aes":
        import_aes(session, key, identity)
        return b""
    kind, mechanism, oid = CURVES[key["kind"]]
    if "seed" in key:
        return import_key(session, key, kind, identity, bytes.fromhex(oid))
    parameters = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: bytes.fromhex(oid)}, local=True)
    public, private = parameters.generate_keypair(
        mechanism=mechanism,
        id=identity,
        label=key["label"],
        store=True,
        private_template={Attribute.SIGN: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    )
    if key.get("sign") is False:
        private[Attribute.SIGN] = False
    point: bytes = public[Attribute.EC_POINT]
    if key.get("public") is False:
        public.destroy()
    header = 3 if point[1] & 0x80 else 2  # OCTET STRING, its length in one or two bytes
    return point[header:]


def import_aes(session: Session, key: dict[str, Any], identity: bytes) -> None:
    """Put a known wrapping key on the token, as a key ceremony does."""
    session.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.ID: identity,
            Attribute.LABEL: key["label"],
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.WRAP: True,
            Attribute.UNWRAP: True,
            Attribute.VALUE: bytes.fromhex(key["value"]),
        }
    )


def import_key(session: Session, key: dict[str, Any], kind: KeyType, identity: bytes, oid: bytes) -> bytes:
    """Put a known key on the token."""
    point = bytes.fromhex(key["public_key"])
    common = {
        Attribute.KEY_TYPE: kind,
        Attribute.TOKEN: True,
        Attribute.ID: identity,
        Attribute.LABEL: key["label"],
        Attribute.EC_PARAMS: oid,
    }
    session.create_object(
        common
        | {
            Attribute.CLASS: ObjectClass.PRIVATE_KEY,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.SIGN: True,
            Attribute.VALUE: bytes.fromhex(key["seed"]),
        }
    )
    session.create_object(
        common
        | {
            Attribute.CLASS: ObjectClass.PUBLIC_KEY,
            Attribute.PRIVATE: False,
            Attribute.VERIFY: True,
            Attribute.EC_POINT: bytes((4, len(point))) + point,
        }
    )
    return point


def main() -> None:
    """Read the request, make the keys, write the answer."""
    request = json.load(sys.stdin)
    library = pkcs11.lib(request["module"])
    token = library.get_token(token_label=request["token"])
    with token.open(rw=True, user_pin=request["pin"]) as session:
        for key in request["keys"]:
            key["public_key"] = make_key(session, key).hex()
    json.dump(request["keys"], sys.stdout)


if __name__ == "__main__":
    main()
