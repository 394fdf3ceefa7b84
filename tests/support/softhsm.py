"""A SoftHSM of the tests' own: a folder, tokens in it, and configurations that name them.

SoftHSM reads the file that SOFTHSM2_CONF names whenever it is initialized. `Folder` makes that file and sets the
variable; conftest.py does so before anything can load the module. Tokens and keys are made in child processes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import provision
from tests.support.run_folder import run_folder

PATHS = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)
ALGORITHMS = ("ed25519", "ecdsa-p256", "ecdsa-secp256k1")

# RFC 8032 section 7.1, the key of TEST 2.
RFC8032_SEED = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
RFC8032_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"


def find_module() -> Path | None:
    """SoftHSM's module, or None where it is not installed."""
    return next((Path(path) for path in PATHS if Path(path).is_file()), None)


class Folder:
    """Where SoftHSM keeps its tokens. Made once for the whole run."""

    @classmethod
    def of(cls, conf: str) -> Folder:
        """The one whose softhsm2.conf that is."""
        found = cls.__new__(cls)
        found.conf = Path(conf)
        found.path = found.conf.parent
        found.tokens = found.path / "tokens"
        return found

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="softhsm-", dir=run_folder()))
        self.tokens = self.path / "tokens"
        self.tokens.mkdir()
        self.conf = self.path / "softhsm2.conf"
        self.conf.write_text(
            f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
            "slots.removable = false\n"
        )
        self._before = os.environ.get("SOFTHSM2_CONF")
        os.environ["SOFTHSM2_CONF"] = str(self.conf)

    def remove(self) -> None:
        """Delete everything and put the environment back."""
        if self._before is None:
            os.environ.pop("SOFTHSM2_CONF", None)
        else:
            os.environ["SOFTHSM2_CONF"] = self._before
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True)
class Key:
    """A key pair on a token. `id` is CKA_ID in hexadecimal; `public_key` has 32 or 65 bytes."""

    label: str
    id: str
    algorithm: str
    public_key: bytes


@dataclass
class Token:
    """A token with its PINs and keys, and how to configure a key manager for it."""

    module: str
    label: str
    pin: str
    so_pin: str
    pin_file: Path
    folder: Path
    environment: dict[str, str]
    keys: dict[str, Key] = field(default_factory=dict)

    def add_keys(self, specs: Iterable[Mapping[str, Any]]) -> None:
        """Make keys; each spec has a `name` in `keys`, a `kind`, and what provision.make_key knows."""
        self._provision(specs)

    def _provision(self, specs: Iterable[Mapping[str, Any]], **more: str) -> None:
        wanted = [{"id": secrets.token_hex(8), "label": f"{spec['name']}-key"} | dict(spec) for spec in specs]
        asked = {"conf": self.environment["SOFTHSM2_CONF"], "module": self.module, "token": self.label, "pin": self.pin}
        for key in provision.server().ask(**asked, **more, keys=wanted):
            self.keys[key["name"]] = Key(key["label"], key["id"], key["kind"], bytes.fromhex(key["public_key"]))

    def config(
        self, key: str | None = "ed25519", *, settings: Mapping[str, Any] | None = None, **rules: Any
    ) -> dict[str, Any]:
        """A configuration that signs with the key named `key`. `settings` goes over the provider's `config` and `rules`
        over `keyManager`; a value of None takes a key away."""
        config: dict[str, Any] = {
            "modulePath": self.module,
            "tokenLabel": self.label,
            "pin": {"file": str(self.pin_file)},
            "sessions": 2,
        }
        if key is not None:
            config["keyLabel"] = self.keys[key].label
        config |= dict(settings or {})
        config = {name: value for name, value in config.items() if value is not None}
        manager = {"type": "softhsm", "config": config, **rules}
        return {"sequencer": {"keyManager": {name: value for name, value in manager.items() if value is not None}}}

    def change_pin(self, new: str) -> None:
        """Change the user's PIN, as the user does it with another program; the file of the PIN stays as it is."""
        command = ["pkcs11-tool", "--module", self.module, "--token-label", self.label, "--login", "--pin", self.pin]
        command += ["--change-pin", "--new-pin", new]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=self.environment)
        assert done.returncode == 0, done.stderr
        self.pin = new

    def remove(self) -> None:
        """Take the token off the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.pin_file.unlink(missing_ok=True)


def make_token(
    folder: Folder,
    module: Path,
    keys: Iterable[Mapping[str, Any]] = (),
    label: str | None = None,
    pin: str | None = None,
) -> Token:
    """A new token with throwaway PINs, unless the user's is given."""
    before = set(folder.tokens.iterdir())
    label = label or f"test-{secrets.token_hex(6)}"
    pin, so_pin = pin or secrets.token_hex(8), secrets.token_hex(8)
    environment = {**os.environ, "SOFTHSM2_CONF": str(folder.conf)}
    pin_file = folder.path / f"{label}.pin"
    pin_file.touch(mode=0o600)
    pin_file.write_text(pin)
    token = Token(str(module), label, pin, so_pin, pin_file, folder.tokens, environment)
    token._provision(keys, so_pin=so_pin)
    [token.folder] = set(folder.tokens.iterdir()) - before
    return token


WORLD_KEYS: tuple[dict[str, Any], ...] = (
    {"name": "ed25519", "kind": "ed25519"},
    {"name": "ecdsa-p256", "kind": "ecdsa-p256"},
    {"name": "ecdsa-secp256k1", "kind": "ecdsa-secp256k1"},
    {"name": "second", "kind": "ed25519"},
    {"name": "twin-1", "kind": "ed25519", "label": "twin-key"},
    {"name": "twin-2", "kind": "ed25519", "label": "twin-key"},
    {"name": "no-sign", "kind": "ed25519", "sign": False},
    {"name": "no-public", "kind": "ed25519", "public": False},
    {"name": "p384", "kind": "ecdsa-p384"},
    {"name": "rfc8032", "kind": "ed25519", "seed": RFC8032_SEED, "public_key": RFC8032_PUBLIC},
)
"""The keys on the token that all tests share and none may change."""
