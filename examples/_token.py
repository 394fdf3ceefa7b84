"""A SoftHSM token for one run of an example, in a temporary folder.

The key is made here, in software, so that two tokens can hold the same one. Generate a production key inside its HSM:
`hsmcore init`, `hsmcore keys generate`, or the vendor's own tool.
"""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY_LABEL = "example-key"
PKCS8_ED25519 = bytes.fromhex("302e020100300506032b657004220420")  # RFC 8410: the 32 bytes of the key follow


@dataclass
class Tokens:
    """Where the tokens are, and how a configuration names one."""

    folder: Path
    pin: str

    def provider(self, label: str, **settings: Any) -> dict[str, Any]:
        """The `type` and `config` of a provider that signs with the token's key."""
        config: dict[str, Any] = {
            "tokenLabel": label,
            "keyLabel": KEY_LABEL,
            "pin": {"file": str(self.folder / "pin")},
            "sessions": 2,
        }
        return {"type": "softhsm", "config": config | settings}

    def files(self, label: str) -> Path:
        """The folder that holds the token's objects."""
        padded = label.encode().ljust(32)
        return next(path for path in self._all.iterdir() if padded in (path / "token.object").read_bytes())

    @property
    def _all(self) -> Path:
        return self.folder / "tokens"

    def make(self, label: str) -> None:
        """Initialize a token."""
        _softhsm("--init-token", "--free", "--label", label, "--pin", self.pin, "--so-pin", secrets.token_hex(8))

    def add_key(self, key_label: str, key_id: str, *labels: str) -> None:
        """Import one new Ed25519 key into each of these tokens."""
        key = self.folder / "key.pem"
        body = base64.b64encode(PKCS8_ED25519 + secrets.token_bytes(32)).decode()
        key.touch(mode=0o600)
        key.write_text(f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n")
        for label in labels:
            _softhsm("--import", str(key), "--token", label, "--label", key_label, "--id", key_id, "--pin", self.pin)
        key.unlink()


@contextmanager
def tokens(*labels: str, keys: tuple[str, ...] = (KEY_LABEL,)) -> Iterator[Tokens]:
    """Make SoftHSM tokens with these labels that hold the same Ed25519 keys; delete them at the end."""
    with tempfile.TemporaryDirectory(prefix="hsmcore-example-") as name:
        made = Tokens(Path(name), pin=secrets.token_hex(8))
        (made.folder / "tokens").mkdir()
        conf, pin = made.folder / "softhsm2.conf", made.folder / "pin"
        conf.write_text(f"directories.tokendir = {made.folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
        os.environ["SOFTHSM2_CONF"] = str(conf)  # before the module is loaded
        pin.touch(mode=0o600)
        pin.write_text(made.pin)
        for label in labels:
            made.make(label)
        for number, key in enumerate(keys, 1):
            made.add_key(key, f"{number:02}", *labels)
        yield made


def _softhsm(*arguments: str) -> None:
    subprocess.run(["softhsm2-util", *arguments], check=True, capture_output=True, timeout=60)
