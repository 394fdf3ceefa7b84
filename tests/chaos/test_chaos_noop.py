"""The no-op module alone."""

from __future__ import annotations

from typing import Any

from tests.support.paths import NOOP
from tests.support.pkcs11_client import (
    CKA_CLASS,
    CKO_PRIVATE_KEY,
    CKR_BUFFER_TOO_SMALL,
    CKR_FUNCTION_NOT_SUPPORTED,
    CKR_OK,
    Module,
)
from tests.support.scenarios import Bench
from tests.support.verifiers import is_good


def scenario_noop(module: Module) -> Any:
    assert module.initialize() == CKR_OK
    session = module.session(module.slots()[0])
    hidden = module.find(session, {CKA_CLASS: CKO_PRIVATE_KEY})[1]
    module.login(session)
    key = module.key(session, "noop-key")
    public = module.public_key(session, "noop-key")
    proof = module.sign_once(session, key, b"hsmcore proof")[1]
    constant = [module.sign_once(session, key, m)[1] for m in (b"other", b"hsmcore" + bytes(58))]
    small = module.sign(session, b"m", room=63)[:2]
    unsupported = module("C_GenerateRandom", session, None, 0)
    many = [module.open(0)[0] for _ in range(3000)]
    rv = module("C_Finalize", None)
    return {
        "hidden": hidden, "proof": is_good("ed25519", public, b"hsmcore proof", proof), "constant": len(set(constant)),
        "false": is_good("ed25519", public, b"other", constant[0]), "small": small, "unsupported": unsupported,
        "opened": set(many) == {0}, "finalize": rv,
    }  # fmt: skip


def test_noop_module(bench: Bench) -> None:
    result = bench.run(scenario_noop, module=NOOP).checked()
    assert result == {
        "hidden": [], "proof": True, "constant": 1, "false": False, "small": [CKR_BUFFER_TOO_SMALL, 64],
        "unsupported": CKR_FUNCTION_NOT_SUPPORTED, "opened": True, "finalize": CKR_OK,
    }  # fmt: skip
