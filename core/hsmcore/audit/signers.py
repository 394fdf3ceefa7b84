"""The Ed25519 key that signs checkpoints: in a file, or in the HSM."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from nacl.signing import SigningKey

from hsmcore.base.files import replace
from hsmcore.base.keyring import KeyVersion
from hsmcore.errors import AuditUnavailable, HsmError, KeyMismatch, KeyNotFound
from hsmcore.tlog.note import ED25519, NoteError, VerifierKey

_PREFIX = "PRIVATE+KEY+"
_HSM_SECONDS = 10.0


class CheckpointSigner(Protocol):
    """Signs the text of checkpoints with one Ed25519 key."""

    @property
    def key(self) -> VerifierKey:
        """The public key, with the log's name."""

    async def sign(self, text: bytes) -> bytes:
        """Return the signature (64 bytes). Raises HsmError."""


class CheckpointEngine(Protocol):
    """The part of a member's engine that signs checkpoints."""

    def submit(
        self, message: object, timeout: float | None = None, key: int = 0, extra: bytes | None = None, own: bool = False
    ) -> bytes | asyncio.Future[bytes]:
        """Sign with the key at this index, within `timeout` seconds. `extra` b"": without a record; `own`: without a
        lease."""


class SigningMember(Protocol):
    """The part of a member that signs checkpoints."""

    @property
    def engine(self) -> CheckpointEngine: ...

    async def load_key(self, key_id: bytes) -> KeyVersion:
        """Return the key with this id, known to the engine from now on. Raises KeyNotFound."""


Members = Callable[[], Iterable[SigningMember]]
"""Returns the running members, those to ask first before the others."""


class FileSigner:
    """A key in a file of the form `PRIVATE+KEY+<name>+<key id>+<base64>`, as other note tools write it."""

    def __init__(self, name: str, secret: SigningKey) -> None:
        self._secret = secret
        self.key = VerifierKey(name, ED25519, bytes(secret.verify_key))

    async def sign(self, text: bytes) -> bytes:
        return self.signature(text)

    def signature(self, text: bytes) -> bytes:
        """Return the signature (64 bytes)."""
        return bytes(self._secret.sign(text).signature)

    @classmethod
    def load(cls, path: Path, name: str) -> FileSigner:
        """Return the key of a file, under the log's name; make the file if it is missing. Raises AuditUnavailable,
        OSError."""
        if not path.exists():
            return cls._make(path, name)
        status = path.stat()
        if status.st_mode & 0o077:
            raise AuditUnavailable(
                f"audit key {path} is open to others (mode {status.st_mode & 0o777:04o})", hint=f"Run chmod 600 {path}."
            )
        parts = path.read_text().strip().removeprefix(_PREFIX).split("+", 2)
        try:
            data = base64.b64decode(parts[2], validate=True)
            if len(data) != 33 or data[0] != ED25519:
                raise NoteError("not Ed25519")
        except (IndexError, ValueError):
            raise AuditUnavailable(
                f"audit key {path} holds no Ed25519 note key", hint="Name another file, or none to have one made."
            ) from None
        return cls(name, SigningKey(data[1:]))

    @classmethod
    def _make(cls, path: Path, name: str) -> FileSigner:
        signer = cls(name, SigningKey.generate())
        secret = base64.b64encode(bytes([ED25519]) + bytes(signer._secret)).decode()
        replace(path, f"{_PREFIX}{name}+{signer.key.id.hex()}+{secret}\n".encode())
        return signer

    def __repr__(self) -> str:
        return f"FileSigner({self.key})"


class HsmSigner:
    """A key that members hold; any running one that holds it signs. No message may be signed with this key: a caller
    could have a checkpoint signed as its message."""

    def __init__(self, members: Members, key_id: bytes, key: VerifierKey) -> None:
        self._members, self._key_id, self.key = members, key_id, key
        self._index: dict[SigningMember, int] = {}
        """The key's index in the engine of each running member that is known to hold it."""

    @classmethod
    async def find(cls, members: Members, key_id: bytes, name: str) -> HsmSigner:
        """Find an Ed25519 key on a running member. Raises HsmError."""
        failure: HsmError = KeyNotFound(f"no running member holds the audit key {key_id.hex()}")
        for member in members():
            try:
                version = await member.load_key(key_id)
            except HsmError as error:
                failure = error
                continue
            if version.algorithm != "ed25519":
                raise AuditUnavailable(
                    f"audit key {key_id.hex()} is an {version.algorithm} key", hint="Checkpoints need an Ed25519 key."
                )
            return cls(members, key_id, VerifierKey(name, ED25519, version.public_key))
        raise failure

    async def sign(self, text: bytes) -> bytes:
        """Return the signature (64 bytes). Raises HsmError, the one of the last member, if none can sign."""
        failure: HsmError = KeyNotFound(f"no running member holds the audit key {self._key_id.hex()}")
        members = list(self._members())
        self._index = {member: index for member, index in self._index.items() if member in members}
        for member in sorted(members, key=lambda member: member not in self._index):
            try:
                return await self._signed_by(member, text)
            except HsmError as error:
                self._index.pop(member, None)
                failure = error
        raise failure

    async def _signed_by(self, member: SigningMember, text: bytes) -> bytes:
        if member not in self._index:
            version = await member.load_key(self._key_id)
            if version.public_key != self.key.public_key:
                raise KeyMismatch(f"audit key {self._key_id.hex()} is not the same one on all members")
            self._index[member] = version.index
        # Not recorded: the record of a checkpoint's signature would need a checkpoint itself.
        signature = member.engine.submit(text, _HSM_SECONDS, self._index[member], b"", own=True)
        return signature if isinstance(signature, bytes) else await signature
