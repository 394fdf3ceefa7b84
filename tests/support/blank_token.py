"""Makes a token of a blank slot, with one ECDSA P-256 key, in a child process: by the client of ctypes, since each
vendor's own tool wants its own files and several need a terminal."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.paths import ROOT
from tests.support.pkcs11_client import (
    CKA_EC_PARAMS,
    CKA_EC_POINT,
    CKA_ID,
    CKA_LABEL,
    CKA_PRIVATE,
    CKA_SENSITIVE,
    CKA_SIGN,
    CKA_TOKEN,
    CKA_VERIFY,
    CKM_EC_KEY_PAIR_GEN,
    CKR_OK,
    Module,
)

LABEL, KEY_LABEL, KEY_ID = "hsmcore-contract", "main-key", "0a01"
P256 = bytes.fromhex("06082a8648ce3d030107")
SO, USER = 0, 1


def make_blank_token(module: str, pin: str, so_pin: str) -> bytes:
    """Initialize the first slot's token; `so_pin` is the one that a blank token has. Returns the key's public point."""
    asked = {"path": module, "pin": pin, "so_pin": so_pin}
    done = subprocess.run(
        [sys.executable, "-c", "from tests.support.blank_token import main; main()"],
        input=json.dumps(asked),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return bytes.fromhex(done.stdout)[-65:]


def main() -> None:
    """The child's part."""
    sys.stdout.write(_make(**json.load(sys.stdin)).hex())


def _make(path: str, pin: str, so_pin: str) -> bytes:
    module = Module(path)

    def call(name: str, *arguments: object) -> None:
        rv = module(name, *arguments)
        assert rv == CKR_OK, f"{name}: {rv:#x}"

    def log_in(who: int, old: str, new: str) -> None:
        """Log in with a PIN that another has set, and set one's own, which some tokens ask for."""
        call("C_Login", session, who, old.encode(), len(old))
        call("C_SetPIN", session, old.encode(), len(old), new.encode(), len(new))

    assert module.initialize() == CKR_OK
    slot = module.slots()[0]
    call("C_InitToken", slot, so_pin.encode(), len(so_pin), LABEL.ljust(32).encode())
    session = module.session(slot)
    log_in(SO, so_pin, so_pin[::-1])
    call("C_InitPIN", session, pin[::-1].encode(), len(pin))
    call("C_Logout", session)
    log_in(USER, pin[::-1], pin)
    common = {CKA_TOKEN: b"\1", CKA_ID: bytes.fromhex(KEY_ID), CKA_LABEL: KEY_LABEL.encode()}
    public = {**common, CKA_EC_PARAMS: P256, CKA_VERIFY: b"\1"}
    private = {**common, CKA_PRIVATE: b"\1", CKA_SENSITIVE: b"\1", CKA_SIGN: b"\1"}
    rv, handle, _ = module.generate(session, CKM_EC_KEY_PAIR_GEN, public, private)
    assert rv == CKR_OK, hex(rv)
    rv, point = module.attribute(session, handle, CKA_EC_POINT)
    assert rv == CKR_OK, hex(rv)
    call("C_Finalize", None)
    return point
