"""What the rigs of modules without a provider of their own have in common: a token that was blank, behind the shim,
with an ECDSA P-256 key, by the provider pkcs11."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, ClassVar

from tests.contract.rigs.softhsm import Shimmed
from tests.support.blank_token import KEY_LABEL, LABEL, make_blank_token


class Generic(Shimmed):
    """A module with the standard's behaviour, or nearly so."""

    algorithm = "ecdsa-p256"
    isolation: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {"sessions": 2}
    so_pin: ClassVar[str] = "87654321"
    """Of a blank token."""
    point: bytes

    def put_token(self, module: Path) -> None:
        """Make the token and the shim."""
        pin = secrets.token_hex(4)  # openCryptoki takes no longer one
        self.pin_file = self.folder / "pin"
        self.pin_file.touch(mode=0o600)
        self.pin_file.write_text(pin)
        self.point = make_blank_token(str(module), pin, self.so_pin)
        self.put_shim(module)

    def config(self, settings: dict[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        config: dict[str, Any] = {
            "modulePath": self.shim.path,
            "tokenLabel": LABEL,
            "keyLabel": KEY_LABEL,
            "pin": {"file": str(self.pin_file)},
            "isolation": self.isolation,
        }
        config |= {**self.settings, **(settings or {})}
        return {"sequencer": {"keyManager": {"type": "pkcs11", "config": config, "maxCacheSize": 0, **rules}}}

    @property
    def public_key(self) -> bytes:
        return self.point

    def wrong_pin(self) -> dict[str, Any]:
        return self.config({"pin": self.wrong_pin_file()})

    def missing_key(self) -> dict[str, Any]:
        return self.config({"keyLabel": "no-such-key"})
