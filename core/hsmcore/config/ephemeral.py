"""Keys in this process's memory."""

from __future__ import annotations

from typing import Literal

from hsmcore.config.base import Model


class EphemeralSettings(Model):
    """A key that lives in this process's locked memory only, made for the emergency level."""

    algorithm: Literal["ed25519"] = "ed25519"
    allow_ephemeral_primary: bool = False
