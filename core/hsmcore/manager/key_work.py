"""What a key manager lets an application do with its keys; keys.py has how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsmcore.base.keyring import KeyVersion, address_of
from hsmcore.failover.path import SigningPath
from hsmcore.manager.keys import KeyOperations
from hsmcore.manager.lifecycle import Lifecycle
from hsmcore.manager.policy import Guard
from hsmcore.members.snapshot import MemberSnapshot

if TYPE_CHECKING:
    from hsmcore.base.receipt import Unfinished


class KeyWork:
    """Part of KeyManager."""

    _life: Lifecycle
    _path: SigningPath
    _keys: KeyOperations
    _guard: Guard | None

    @property
    def public_key(self) -> bytes:
        """The current key's public key: 32 bytes (Ed25519) or 65 (0x04 || X || Y)."""
        return self._path.version.public_key

    @property
    def address(self) -> str:
        """The Solana address that the current Ed25519 key is, in base58. Other keys have none: AlgorithmUnsupported."""
        return address_of(self.public_key)

    def members(self) -> tuple[MemberSnapshot, ...]:
        """Every member and its state, in the order of the levels, also if it is stopped. Any thread."""
        return self._path.members()

    async def unfinished(self, domain: str, *, handed_out: bool = False) -> Unfinished | None:
        """The newest payload that was bound in a domain, such as "default/block": kind, position, digest, and the
        message, None if it was not kept. A process that takes over signs it first, so that its position is not left
        empty by a predecessor that died before the signature was handed out. None: nothing was bound, it was given up,
        or this process has handed it out. One that another process has handed out is given all the same: the same
        payload is signed again. `handed_out`: also one that this process has handed out: a gateway does not know
        whether its client has it. Raises StoreError."""
        self._life.check()
        return None if self._guard is None else await self._guard.unfinished(domain, handed_out)

    def keys(self) -> list[KeyVersion]:
        """The key ring, oldest version first."""
        return list(self._keys.ring)

    def key_set(self, since: int | None = None) -> bytes:
        """The signed set of its keys, as a note (docs/KEYSET.md); b"" while there is none. `since`: all notes after a
        serial instead, one after the other. Any thread."""
        return self._keys.key_set(since)

    async def position_proof(self, domain: str, position: int, *, timeout: float | None = None) -> bytes:
        """The proof (C2SP tlog-proof) of what a position of a published domain, such as "default/block", is bound to
        (docs/PUBLIC_LOG.md). Waits for at most `timeout` seconds (None: `requestTimeoutMs`) until a quorum of the
        witnesses has cosigned it. Raises DeadlineExceeded, BadArgument."""
        return await self._open_keys().position_proof(domain, position, timeout)

    async def get_current_key_id(self) -> str:
        """The id (CKA_ID in hexadecimal) of the key that signs."""
        return self._path.version.id

    async def set_current_key_id(self, key_id: str) -> None:
        """Sign with another key from now on: of the ring, or any other on the token. Queued requests keep their key.
        The cache is wiped. Raises KeyNotFound, KeyDeactivated, StoreBusy."""
        await self._open_keys().set_current(key_id)

    async def generate_key(self) -> str:
        """Generate a key pair of the current key's algorithm on the token. Returns its id; the current key stays."""
        return await self._open_keys().generate()

    async def deactivate_key(self, key_id: str) -> None:
        """Never sign with this key again; refuse requests that are queued for it. If it is current, signing fails with
        KeyDeactivated until another one is. The token enforces it too, if it can. Raises KeyNotFound."""
        await self._open_keys().deactivate(key_id)

    async def export_key_backup(self, key_id: str) -> bytes:
        """The private key, wrapped by the HSM, never plain. Raises KeyNotExportable if key or token do not allow it."""
        return await self._open_keys().export_backup(key_id)

    async def rotate_key(self, reason: str = "") -> str:
        """Rotate now. Returns the new key's id once it signs; the old key still verifies for `overlapDays`. Raises the
        error of a failed rotation (the old key signs on), StoreBusy during one, BadArgument without `keyRotation`."""
        return await self._open_keys().rotate(reason)

    def _open_keys(self) -> KeyOperations:
        self._life.check()
        return self._keys
