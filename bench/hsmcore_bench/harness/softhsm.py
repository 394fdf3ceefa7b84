"""SoftHSM tokens of our own, in a temporary folder that goes away with them."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.provision import TokenRequest


@dataclass(frozen=True, slots=True)
class TokenFolder:
    """The folder of the tokens, their configuration for SoftHSM and the PIN of their user."""

    path: Path
    pin: str

    @property
    def tokens(self) -> Path:
        return self.path / "tokens"

    @property
    def conf(self) -> Path:
        return self.path / "softhsm2.conf"

    def pin_file(self) -> Path:
        """Write the PIN into a file of the folder, for a configuration that names one."""
        path = self.path / "pin"
        write_private(path, self.pin)
        return path

    def request(self, module: str, token: str, key: str, algorithm: Algorithm = "ed25519") -> TokenRequest:
        """What provision() takes to make a token with that label, or another key on it."""
        pins = (bytearray(self.pin.encode()), bytearray(secrets.token_hex(8).encode()))
        return TokenRequest(module, token, key, algorithm, *pins)


@contextmanager
def token_folder(prefix: str) -> Iterator[TokenFolder]:
    """Make a folder without tokens. Nothing in this process's environment names it."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = TokenFolder(Path(name), secrets.token_hex(8))
        folder.tokens.mkdir(mode=0o700)
        folder.conf.write_text(
            f"directories.tokendir = {folder.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        yield folder


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user may read."""
    path.touch(mode=0o600)
    path.write_text(text)


@contextmanager
def variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for the children that are started inside; None leaves it as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
