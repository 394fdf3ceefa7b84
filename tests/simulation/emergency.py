"""Emergency keys, which live in memory: libsodium's chance comes from the seed, and the ledger knows what they sign."""

from __future__ import annotations

from typing import Any

from tests.simulation.device import Ledger, Signed
from tests.simulation.threads import worlds

ledgers: list[Ledger] = []
"""That of the world that runs."""


def install() -> None:
    """Once in a process."""
    import os

    from hsmcore.members.control import locked

    key = locked.LockedKey
    sign = key.sign

    def generate(self: Any) -> bytes:
        public = locked._ffi.new("unsigned char[]", locked.PUBLIC_BYTES)
        locked._lib.crypto_sign_seed_keypair(public, self._secret, os.urandom(locked.SEED_BYTES))
        return bytes(locked._ffi.buffer(public, locked.PUBLIC_BYTES))

    def noted(self: Any, message: bytes) -> bytes:
        signature = sign(self, message)
        if ledgers:
            now = worlds[0].clock.ns
            ledgers[0].note(Signed(now, now, self._member, self.public_key, message, signature))
        return signature

    key._generate, key.sign = generate, noted
