"""`python -m hsmcore_bench.suite.child.provision MODULE LABEL`: make a token in a free slot, a key per algorithm.

The PINs come in HSM_PIN and HSM_SO_PIN. Ready when it exits with 0.
"""

from __future__ import annotations

import os
import sys

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism

from hsmcore_bench.harness.parent import die_with_parent
from hsmcore_bench.suite.child.module import Module
from hsmcore_bench.suite.child.protocol import PIN_ENV
from hsmcore_bench.suite.child.pypkcs11 import AdoptingLib

SO_PIN_ENV = "HSM_SO_PIN"
CURVES = {  # algorithm -> key type, generation mechanism, CKA_EC_PARAMS (the curve's DER object identifier)
    "ed25519": (KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, bytes.fromhex("06032b6570")),
    "ecdsa-p256": (KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, bytes.fromhex("06082a8648ce3d030107")),
    "ecdsa-secp256k1": (KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, bytes.fromhex("06052b8104000a")),
}


def main() -> int:
    die_with_parent()
    path, label = sys.argv[1:]
    module = Module(path)
    module.initialize()
    lib = AdoptingLib(path)
    slot = next(s for s in lib.get_slots() if not s.get_token().flags & pkcs11.TokenFlag.TOKEN_INITIALIZED)
    module.init_token(slot.slot_id, os.environ[SO_PIN_ENV].encode(), label)
    token = lib.get_token(token_label=label)
    with token.open(rw=True, so_pin=os.environ[SO_PIN_ENV]) as session:
        session.init_pin(os.environ[PIN_ENV])
    with token.open(rw=True, user_pin=os.environ[PIN_ENV]) as session:
        for number, (algorithm, (key_type, mechanism, params)) in enumerate(CURVES.items(), start=1):
            parameters = session.create_domain_parameters(key_type, {Attribute.EC_PARAMS: params}, local=True)
            parameters.generate_keypair(mechanism=mechanism, store=True, label=f"bench-{algorithm}", id=bytes([number]))
    module.finalize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
