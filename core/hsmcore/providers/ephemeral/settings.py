"""The provider of keys that live in this process's memory."""

from __future__ import annotations

from typing import Final, Literal

from hsmcore.config.descriptor import ProviderDescriptor, ProviderSettings


class EphemeralSettings(ProviderSettings):
    """A key that lives in this process's locked memory only, made for the emergency level."""

    algorithm: Literal["ed25519"] = "ed25519"
    """The key's algorithm."""
    allow_ephemeral_primary: bool = False
    """Whether the key may stand at another level than the emergency level, although each start makes a new one."""


PROVIDER: Final = ProviderDescriptor(
    "ephemeral",
    EphemeralSettings,
    "Install hsmcore again: PyNaCl, which it depends on, is missing.",
    member="hsmcore.providers.ephemeral.member:EphemeralMember",
    probe="hsmcore.providers.ephemeral.probe:probe_ephemeral",
    ephemeral=True,
    rotates=False,
)
