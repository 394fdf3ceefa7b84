"""What the control plane is asked about and answers with. Plain data; nothing here is secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from hsmcore.control.curves import Algorithm

if TYPE_CHECKING:
    from hsmcore.config import Pkcs11Settings


@dataclass(frozen=True, slots=True)
class TokenSelector:
    """How to find a token: every field that is set must match."""

    label: str | None = None
    serial: str | None = None
    slot_id: int | None = None
    manufacturer: str | None = None
    model: str | None = None

    @classmethod
    def of(cls, settings: Pkcs11Settings) -> Self:
        """What a configuration says."""
        return cls(
            settings.token_label,
            settings.token_serial,
            settings.slot_id,
            settings.token_manufacturer,
            settings.token_model,
        )

    def matches(self, label: str, serial: str, slot_id: int, manufacturer: str, model: str) -> bool:
        """Whether a token is the one."""
        found = (label, serial, slot_id, manufacturer, model)
        wanted = (self.label, self.serial, self.slot_id, self.manufacturer, self.model)
        return all(want in (None, have) for want, have in zip(wanted, found, strict=True))

    def __str__(self) -> str:
        parts: dict[str, object] = {"label": self.label, "serial": self.serial, "slot": self.slot_id}
        parts |= {"manufacturer": self.manufacturer, "model": self.model}
        return ", ".join(f"{name} {value!r}" for name, value in parts.items() if value is not None) or "any token"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One private key on the token, and the public half that belongs to it."""

    id: str
    """CKA_ID in hexadecimal; may be empty."""
    label: str
    algorithm: Algorithm | None
    """None: a type or curve that hsmcore doesn't sign with."""
    public_key: bytes | None
    """32 bytes (Ed25519) or 0x04 || X || Y; None when the token holds no public half."""
    can_sign: bool
    sensitive: bool
    extractable: bool
    """Whether the token would let the key out wrapped."""


@dataclass(frozen=True, slots=True)
class Deactivation:
    """What became of a request to deactivate a key."""

    key_id: str
    enforced: bool
    """True: the token itself refuses to sign with the key from now on, also after a restart and for other programs.
    False: only those who keep a record of it do."""
    reason: str | None = None
    """Why the token doesn't enforce it."""
