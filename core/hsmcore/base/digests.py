"""Digests of tokens, for processes that compare tokens and hold none."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Final

MAX_TOKEN_BYTES: Final = 4096


class TokenDigester:
    """Makes digests under a key that is made here: who chooses a token does not choose what it is compared with."""

    def __init__(self, key: bytes | None = None) -> None:
        self.key = os.urandom(32) if key is None else key

    def of(self, presented: bytes | bytearray) -> bytes:
        """Return the digest of what a client presents."""
        return hmac.digest(self.key, presented, hashlib.sha256)
