"""The numbers of a key's versions as Vault's face shows them: `vault:v2:…`. They are the same after a restart, and on
every host of a fleet, so that a signature that was stored with its number verifies for as long as the key is known.

The number of a version is that of the key ring in the state store. Without one (`keyRotation` is not enabled), the
configured key is 1. Any other key, such as that of an emergency, has a number made of its public key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from hsmcore.base.keyring import KeyVersion
from hsmcore.errors import HsmError, KeyNotFound
from hsmcore.manager.key_manager import KeyManager

_OWN_BITS: Final = 30
"""Numbers made of public keys have one more bit, which is set: no ring grows so long, and a client that takes a number
for a signed integer of 32 bits can hold them."""


class Version(NamedTuple):
    """A version of a key. `created_ns`: since 1970; None: not known."""

    number: int
    key: KeyVersion
    created_ns: int | None


class Versions:
    """The versions of one key manager's key. Belongs to its event loop."""

    def __init__(self, manager: KeyManager) -> None:
        self._manager = manager
        self._stored: dict[bytes, tuple[int, int]] = {}

    async def learn(self) -> None:
        """Read the key ring. If the state store does not answer, what is known stays, and is asked for again."""
        rotation = self._manager.snapshot().rotation
        if rotation is None:
            first = self._configured()
            if first is not None and not self._stored:
                self._stored[first] = (1, 0)
            return
        with suppress(HsmError):  # the store's own users tell of it; a signature that was made needs a number now
            for stored in await rotation.keys.all():
                if stored.public_key:  # the first row of a key counts: it may have been chosen again
                    self._stored.setdefault(stored.public_key, (stored.version, stored.created_ns))

    def _configured(self) -> bytes | None:
        """The public key of the first member, before another key is chosen; None while it has never run."""
        snapshot = self._manager.snapshot()
        if snapshot.levels is None:
            return next(iter(snapshot.ring)).public_key
        return snapshot.path.members()[0].public_key

    async def all(self) -> Mapping[int, Version]:
        """Return the versions that sign or verify, by number."""
        keys = self._manager.keys()
        if any(key.public_key not in self._stored for key in keys):
            await self.learn()
        return {version.number: version for version in map(self._version, keys)}

    async def of(self, public_key: bytes) -> int:
        """Return the number of the version with this public key."""
        if public_key not in self._stored:
            await self.learn()
        return self._number(public_key)

    async def numbered(self, number: int) -> KeyVersion:
        """Return a version by its number. Raises KeyNotFound."""
        versions = await self.all()
        # A number that was made of the public key holds, also when the key ring has given the key another one since.
        made = {_own(version.key.public_key): version for version in versions.values()}
        found = versions.get(number) or made.get(number)
        if found is None:
            raise KeyNotFound(f"the key has no version {number}", hint="")
        return found.key

    def _version(self, key: KeyVersion) -> Version:
        _, created = self._stored.get(key.public_key, (0, 0))
        return Version(self._number(key.public_key), key, created or None)

    def _number(self, public_key: bytes) -> int:
        number, _ = self._stored.get(public_key, (0, 0))
        return number or _own(public_key)


def _own(public_key: bytes) -> int:
    head = int.from_bytes(hashlib.sha256(public_key).digest()[:4], "big")
    return head >> (32 - _OWN_BITS) | 1 << _OWN_BITS
