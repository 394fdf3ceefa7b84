"""The numbers of a key's versions, on the wire and as Vault's face shows them: `vault:v2:…`. They are the same after a
restart, and on every host of a fleet, so that a signature that was stored with its number verifies for as long as the
key is known.

The number of a version is that of the key ring in the state store. Without one (`keyRotation` is not enabled), the
configured key is 1. Any other key, such as that of an emergency, has a number made of its public key.
"""

from __future__ import annotations

from contextlib import suppress

from hsmcore.base.keyring import KeyVersion
from hsmcore.errors import HsmError, KeyNotFound
from hsmcore.gateway.version_number import Version, own_number
from hsmcore.manager.key_manager import KeyManager


class Versions:
    """The versions of one key manager's key. Belongs to its event loop."""

    def __init__(self, manager: KeyManager) -> None:
        self._manager = manager
        self._stored: dict[bytes, tuple[int, int]] = {}
        self._given: dict[int, bytes] = {}
        """Public keys by each number that was told."""

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
                    self.number(stored.public_key)  # one that signs no more is refused as that

    def _configured(self) -> bytes | None:
        """The public key of the first member, before another key is chosen; None while it has never run."""
        snapshot = self._manager.snapshot()
        if snapshot.levels is None:
            return next(iter(snapshot.ring)).public_key
        return snapshot.path.members()[0].public_key

    async def learn_all(self) -> None:
        """Read the key ring, if a version that signs or verifies is not known to be in it."""
        keys = self._manager.keys()
        if any(key.public_key not in self._stored for key in keys):
            await self.learn()

    def all(self) -> list[Version]:
        """Return the versions that sign or verify."""
        keys, created = self._manager.keys(), self._stored.get
        once = {key.public_key: key for key in keys}  # members may have one key under several ids
        return [Version(self.number(one), key, created(one, (0, 0))[1] or None) for one, key in once.items()]

    async def of(self, public_key: bytes) -> int:
        """Return the number of the version with this public key, as the key ring has it by now."""
        if public_key not in self._stored:
            await self.learn()
        return self.number(public_key)

    def number(self, public_key: bytes) -> int:
        """Return the number of a version, as far as the key ring was read. It holds for as long as the key is known."""
        known = self._stored.get(public_key)
        number = own_number(public_key) if known is None else known[0]
        self._given[number] = public_key
        return number

    def public_key(self, number: int) -> bytes:
        """Return the public key of a version, also of one that was told and is in the ring no more. Raises
        KeyNotFound."""
        return self._given.get(number) or self.key(number).public_key

    def key(self, number: int) -> KeyVersion:
        """Return a version that signs or verifies. Raises KeyNotFound."""
        # A number that was made of the public key holds, also when the key ring has given the key another one since.
        keys = self._manager.keys()
        for number_of in (self.number, own_number):
            for key in keys:
                if number_of(key.public_key) == number:
                    return key
        raise KeyNotFound(f"the key has no version {number}", hint="")
