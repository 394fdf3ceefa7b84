"""The interface of a handover: the application's part of a rotation, after the new key is safe and before it signs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hsmcore.keyring import KeyVersion


@dataclass(frozen=True, slots=True)
class HandoverKey:
    """A key that takes part in a handover."""

    version: KeyVersion
    _sign: Callable[[KeyVersion, bytes], Awaitable[bytes]]

    @property
    def id(self) -> str:
        """CKA_ID in hexadecimal."""
        return self.version.id

    @property
    def public_key(self) -> bytes:
        """32 bytes (Ed25519) or 65 (0x04 || X || Y)."""
        return self.version.public_key

    async def sign(self, message: bytes) -> bytes:
        """Sign a message in the HSM. Returns 64 bytes."""
        return await self._sign(self.version, message)


class Handover(Protocol):
    """An application's handover.

    Both methods may be called again after a crash, also if they had succeeded: they look at the present state first.
    Their return value goes into the rotation's history. An exception rolls the rotation back (`handover`) or is tried
    again later (`revert`).
    """

    async def handover(self, old: HandoverKey, new: HandoverKey, km: Any) -> Mapping[str, Any] | None:
        """Make every account obey `new`. The old key signs until this has returned."""

    async def revert(self, old: HandoverKey, new: HandoverKey, km: Any) -> Mapping[str, Any] | None:
        """Make every account obey `old` again, whatever part of the handover was done."""
