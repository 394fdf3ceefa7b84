"""Tokens and keys as plain data. Nothing here is secret."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar

from hsmcore.members.control.curves import Algorithm

if TYPE_CHECKING:
    from hsmcore.config import Pkcs11Settings


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token and its slot, as the module describes them."""

    slot_id: int
    label: str
    serial: str
    manufacturer: str
    model: str
    slot_description: str

    def __str__(self) -> str:
        return f"slot {self.slot_id} ({self.slot_description}): token {self.label!r}, serial {self.serial}"

    def says(self, text: str) -> bool | None:
        """Whether the token's texts name `text`, such as "cluster-1a2b3c", in whole or by the part after the hyphen.
        False: they name another such thing; None: they name none."""
        words = f"{self.label} {self.serial} {self.manufacturer} {self.model} {self.slot_description}".lower()
        kind, _, which = text.lower().partition("-")
        if re.search(rf"\b{re.escape(which)}\b", words):
            return True
        return False if re.search(rf"\b{re.escape(kind)}-[0-9a-z]+", words) else None


R = TypeVar("R", bound=TokenRecord)


@dataclass(frozen=True, slots=True)
class TokenSelector:
    """How to find a token: every field that is set must match. `text` is a name that may be in a token's texts
    (`says`): a token with another such name does not match, and one with this name is preferred."""

    label: str | None = None
    serial: str | None = None
    slot_id: int | None = None
    manufacturer: str | None = None
    model: str | None = None
    text: str | None = None

    @classmethod
    def of(cls, settings: Pkcs11Settings) -> Self:
        """As a configuration says."""
        return cls(
            settings.token_label,
            settings.token_serial,
            settings.slot_id,
            settings.token_manufacturer,
            settings.token_model,
            settings.token_text,
        )

    def choose(self, tokens: Sequence[R]) -> list[R]:
        """The tokens that match."""
        names = ("label", "serial", "slot_id", "manufacturer", "model")
        found = [token for token in tokens if all(getattr(self, n) in (None, getattr(token, n)) for n in names)]
        if self.text is None:
            return found
        named = [token for token in found if token.says(self.text)]
        return named or [token for token in found if token.says(self.text) is None]

    def __str__(self) -> str:
        parts: dict[str, object] = {"label": self.label, "serial": self.serial, "slot": self.slot_id}
        parts |= {"manufacturer": self.manufacturer, "model": self.model, "text": self.text}
        return ", ".join(f"{name} {value!r}" for name, value in parts.items() if value is not None) or "any token"


@dataclass(frozen=True, slots=True)
class TokenAccess:
    """How to reach a token."""

    module_path: str
    token: TokenSelector
    module_args: str | None = None
    """CK_C_INITIALIZE_ARGS.pReserved."""
    quirks: str | None = None
    """A name from the native core's table; None: the module is recognized."""
    mechanisms: Mapping[str, int] = field(default_factory=dict)
    """Numbers that only the vendor knows (quirks.quirks_for)."""
    member: str | None = None
    """Goes into errors."""
    refused: str | None = None
    """The file that remembers refused PINs (refused.py); None: only the process does."""

    @classmethod
    def of(cls, settings: Pkcs11Settings, member: str | None, refused: str | None = None) -> Self:
        """As a configuration says."""
        return cls(
            settings.module_path,
            TokenSelector.of(settings),
            settings.initialize_args,
            settings.quirks,
            settings.vendor_mechanisms,
            member,
            refused,
        )


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One private key on the token, and its public half."""

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
    """Whether the token may wrap the key."""


@dataclass(frozen=True, slots=True)
class Deactivation:
    """The result of deactivating a key."""

    key_id: str
    enforced: bool
    """Whether the token itself refuses to sign with the key from now on, also after a restart and for other programs.
    If not, only programs that read hsmcore's records refuse it."""
    reason: str | None = None
    """Why the token doesn't enforce it."""
