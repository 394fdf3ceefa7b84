"""NSS softoken: a database with a token and its keys, made in a child process by the client of ctypes, since
python-pkcs11 has no way to hand NSS its parameters."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
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
    CKM_EC_EDWARDS_KEY_PAIR_GEN,
    CKM_EC_KEY_PAIR_GEN,
    CKR_OK,
    Module,
)
from tests.support.verifiers import is_good

PATHS = (
    "/usr/lib/x86_64-linux-gnu/libsoftokn3.so",
    "/usr/lib/aarch64-linux-gnu/libsoftokn3.so",
    "/usr/lib64/libsoftokn3.so",
    "/usr/lib/libsoftokn3.so",
)
LABEL = "NSS Certificate DB"
KEYS = {"ed25519": "0a01", "ecdsa-p256": "0a02"}

HOW = {
    "ed25519": (CKM_EC_EDWARDS_KEY_PAIR_GEN, "06032b6570"),
    "ecdsa-p256": (CKM_EC_KEY_PAIR_GEN, "06082a8648ce3d030107"),
}


def find_nss() -> Path | None:
    """NSS softoken, or None where it is not installed."""
    return next((Path(path) for path in PATHS if Path(path).is_file()), None)


@dataclass(frozen=True)
class Nss:
    """A database with a token and its keys."""

    module: str
    args: str
    pin_file: Path
    points: dict[str, bytes]

    def settings(self, key: str) -> dict[str, Any]:
        """Of the provider, but for the module."""
        return {"tokenLabel": LABEL, "keyId": KEYS[key], "pin": {"file": str(self.pin_file)}, "quirks": "nss"}

    def config(self, key: str, **settings: Any) -> dict[str, Any]:
        """A key manager's configuration."""
        config = {"modulePath": self.module, "moduleArgs": self.args, "sessions": 2, **self.settings(key), **settings}
        return {"sequencer": {"keyManager": {"type": "pkcs11", "config": config, "maxCacheSize": 0}}}

    def is_good(self, key: str, message: bytes, signature: bytes) -> bool:
        """By the public key that the child saw."""
        return is_good(key, self.public_key(key), message, signature)

    def public_key(self, key: str) -> bytes:
        """As the child saw it: raw, or an OCTET STRING."""
        return self.points[key][-(32 if key == "ed25519" else 65) :]


def make_nss(folder: Path) -> Nss:
    """A new database in a folder; skips the test where NSS is not installed."""
    module = find_nss()
    if module is None:
        pytest.skip("NSS is not installed")
    pin_file = folder / "pin"
    pin_file.touch(mode=0o600)
    pin_file.write_text(secrets.token_hex(8))
    try:
        made = ["certutil", "-N", "-d", f"sql:{folder}", "-f", str(pin_file)]
        subprocess.run(made, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("certutil is not installed")
    args = f"configdir='sql:{folder}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=noModDB"
    asked = {"path": str(module), "args": args, "pin": pin_file.read_text()}
    command = [sys.executable, "-c", "from tests.support.nss import main; main()"]
    done = subprocess.run(
        command, input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    points = {name: bytes.fromhex(point) for name, point in json.loads(done.stdout).items()}
    return Nss(str(module), args, pin_file, points)


def main() -> None:
    """Make the keys that stdin asks for and print their CKA_EC_POINT: the child's part of `make_nss`."""
    json.dump(_make_keys(**json.load(sys.stdin)), sys.stdout)


def _make_keys(path: str, args: str, pin: str) -> dict[str, str]:
    module = Module(path)
    assert module.initialize(reserved=args.encode()) == CKR_OK
    session = module.session(module.slots()[1])
    assert module.login(session, pin.encode()) == CKR_OK
    made = {}
    for name, (mechanism, params) in HOW.items():
        common = {CKA_TOKEN: b"\1", CKA_ID: bytes.fromhex(KEYS[name]), CKA_LABEL: name.encode()}
        public = {**common, CKA_EC_PARAMS: bytes.fromhex(params), CKA_VERIFY: b"\1"}
        private = {**common, CKA_PRIVATE: b"\1", CKA_SENSITIVE: b"\1", CKA_SIGN: b"\1"}
        rv, handle, _ = module.generate(session, mechanism, public, private)
        assert rv == CKR_OK, hex(rv)
        rv, point = module.attribute(session, handle, CKA_EC_POINT)
        assert rv == CKR_OK, hex(rv)
        made[name] = point.hex()
    assert module("C_Finalize", None) == CKR_OK
    return made
