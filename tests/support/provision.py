"""Make tokens and keys of SoftHSM with python-pkcs11 alone, in child processes; nothing of hsmcore takes part.

A child, because SoftHSM is initialized once per process and the tests' own process belongs to hsmcore. The server has
imported everything and forks a child for each request, a line of JSON: {"conf", "module", "token", "pin", "so_pin"?,
"keys": [{"label", "id", "kind", …}]}. The token is made if the SO's PIN is given. The answer, a line as well: {"keys":
the same keys with their public keys in hexadecimal}, or {"error"}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from functools import cache
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.types import Session
from tests.support.paths import ROOT
from tests.support.pkcs11_client import CKR_OK, Module

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


def make_token(path: str, label: str, pin: str, so_pin: str) -> None:
    """Initialize the slot that has no token yet; the module is initialized already."""
    module, so = Module(path), 0
    slot = module.slots()[-1]
    assert module("C_InitToken", slot, so_pin.encode(), len(so_pin), label.ljust(32).encode()) == CKR_OK
    session = module.session(slot)
    assert module("C_Login", session, so, so_pin.encode(), len(so_pin)) == CKR_OK
    assert module("C_InitPIN", session, pin.encode(), len(pin)) == CKR_OK
    assert module("C_CloseSession", session) == CKR_OK


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked."""
    os.environ["SOFTHSM2_CONF"] = asked["conf"]
    library = pkcs11.lib(asked["module"])
    if "so_pin" in asked:
        make_token(asked["module"], asked["token"], asked["pin"], asked["so_pin"])
    if asked["keys"]:
        with library.get_token(token_label=asked["token"]).open(rw=True, user_pin=asked["pin"]) as session:
            for key in asked["keys"]:
                key["public_key"] = make_key(session, key).hex()
    return {"keys": asked["keys"]}


def serve() -> None:
    """Answer requests until standard input ends."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                answered = answer(json.loads(line))
            except BaseException:  # noqa: BLE001  # the test says what happened, whatever it was
                answered = {"error": traceback.format_exc()}
            print(json.dumps(answered), flush=True)  # noqa: T201
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(json.dumps({"error": "the child died"}), flush=True)  # noqa: T201


class Server:
    """The server's other end, for one thread at a time. `pid`: its process, which ends with this one."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "from tests.support.provision import serve; serve()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.pid = self._process.pid

    def ask(self, **asked: Any) -> list[dict[str, Any]]:
        """Returns the keys."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answered = json.loads(self._process.stdout.readline() or '{"error": "the server ended"}')
        assert "keys" in answered, answered["error"]
        found: list[dict[str, Any]] = answered["keys"]
        return found

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@cache
def server() -> Server:
    """The one of this process."""
    return Server()
