"""A simulated YubiHSM with a signing key and a signing user, and how to configure a key manager for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from . import Algorithm, Capability, Connector, Device

SIGNER, AUDITOR, ADMIN = 0x0002, 0x0003, 0x0001
PASSWORDS = {ADMIN: "password", SIGNER: "signer-password", AUDITOR: "auditor-password"}
KEY_ID, KEY_LABEL = 0x0064, "sequencer"
SIGNING = Capability.SIGN_EDDSA | Capability.SIGN_ECDSA
DOMAIN = 1 << 0


@dataclass
class Rig:
    """One device behind one connector. Use as a context manager."""

    folder: Path
    module: str
    device: Device = field(default_factory=Device)
    algorithm: Algorithm = Algorithm.ED25519
    capabilities: int = SIGNING | Capability.EXPORTABLE_UNDER_WRAP
    secret: bytes | None = None
    """The signing key, for several devices that hold the same one."""

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        device = self.device
        device.put_user(SIGNER, PASSWORDS[SIGNER], capabilities=SIGNING, delegated=0, domains=DOMAIN)
        device.put_user(
            AUDITOR, PASSWORDS[AUDITOR], capabilities=Capability.GET_LOG_ENTRIES, delegated=0, domains=DOMAIN
        )
        public = device.put_key(KEY_ID, KEY_LABEL, self.algorithm, self.capabilities, DOMAIN, self.secret)
        self.public_key = public if self.algorithm == Algorithm.ED25519 else b"\x04" + public
        self.connector = Connector(device)

    def __enter__(self) -> Self:
        self._stack.enter_context(self.connector)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def password_file(self, password: str) -> str:
        """A file with the password."""
        path = self.folder / f"password-{password}"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(password)
        return str(path)

    def settings(self, user: int = SIGNER, **changes: Any) -> dict[str, Any]:
        """The provider's `config`; a change to None takes a key away."""
        config: dict[str, Any] = {
            "modulePath": self.module,
            "connector": self.connector.url,
            "authKeyId": user,
            "password": {"file": self.password_file(PASSWORDS.get(user, "no-such-user"))},
            "keyId": f"{KEY_ID:04x}",
        } | changes
        return {name: value for name, value in config.items() if value is not None}

    def config(self, user: int = SIGNER, *, settings: Mapping[str, Any] | None = None, **rules: Any) -> dict[str, Any]:
        """A key manager's configuration, without a cache."""
        provider = {"type": "yubihsm", "config": self.settings(user, **(settings or {}))}
        return {"keyManager": {**provider, "maxCacheSize": 0, **rules}}
