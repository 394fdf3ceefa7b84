"""Bearer tokens that a configuration names, kept as digests only."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Final

from hsmcore._native import wipe
from hsmcore.config.secret import Secret
from hsmcore.errors import ConfigFault, ConfigurationError

MIN_TOKEN_BYTES: Final = 20
"""Shortest accepted token. `openssl rand -hex 32` makes 64 characters; a token shorter than this can be guessed."""
MAX_TOKEN_BYTES: Final = 4096


class TokenDigests:
    """Makes digests under a key of this object: who chooses a token does not choose what it is compared with."""

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def of(self, presented: bytes | bytearray) -> bytes:
        """Return the digest of what a client presents."""
        return hmac.digest(self._key, presented, hashlib.sha256)

    def of_secret(self, secret: Secret) -> bytes:
        """Fetch a token and return its digest; the token is wiped. May block. Raises SecretUnavailable, and
        ConfigurationError for one that is too short or cannot stand in a header."""
        token = secret.resolve()
        try:
            if len(token) < MIN_TOKEN_BYTES or any(not 0x20 < byte < 0x7F for byte in token):
                problem = f"must be at least {MIN_TOKEN_BYTES} printable ASCII characters without spaces"
                hint = "Make one with: openssl rand -hex 32"
                raise ConfigurationError.of([ConfigFault(secret.where, problem)], hint=hint)
            return self.of(token)
        finally:
            wipe(token)
