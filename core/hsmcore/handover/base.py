"""The interface of a handover: the application's part of a rotation, after the new key is safe and before it signs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from hsmcore.base.keyring import KeyVersion
from hsmcore.errors import BadArgument

Settled = Literal["old", "new", "unknown"]
"""The key that the chain obeys at finality. "unknown": a part obeys each key, or the chain does not say."""


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

    Every method may be called again after a crash, also if it had succeeded: it looks at the present state first. The
    return values of `handover` and `revert` go into the rotation's history. An exception rolls the rotation back
    (`handover`), is tried again later (`revert`), or counts as "unknown" (`settled`).

    `settled` decides: the new key signs only after "new", and is destroyed only after "old". For an object without it
    the return of `handover` or `revert` counts, and a key that was handed over is never destroyed.
    """

    async def handover(self, old: HandoverKey, new: HandoverKey, km: Any) -> Mapping[str, Any] | None:
        """Make every account obey `new`. The old key signs until this has returned."""

    async def revert(self, old: HandoverKey, new: HandoverKey, km: Any) -> Mapping[str, Any] | None:
        """Make every account obey `old` again, whatever part of the handover was done."""

    async def settled(self, old: HandoverKey, new: HandoverKey) -> Settled:
        """Return "new" if every account obeys `new`, "old" if none does. Change nothing. "old" also promises that
        nothing sent before, for example a transaction without a result, can still make an account obey `new`."""


_METHODS: Final = ("handover", "revert")
ADD_SETTLED: Final = (
    "Add `settled` (see hsmcore.handover.Handover): without it, a key that was given back is never destroyed."
)


def require_whole(handover: object) -> None:
    """Raises BadArgument for an object that lacks a method which a rotation calls."""
    missing = [name for name in _METHODS if not callable(getattr(handover, name, None))]
    if missing:
        raise BadArgument(
            f"the handover {type(handover).__name__} has no {' and no '.join(f'`{name}`' for name in missing)}",
            hint="See hsmcore.handover.Handover.",
        )


def can_be_asked(handover: object) -> bool:
    """Return whether a handover has `settled`, which those for earlier versions lack."""
    return callable(getattr(handover, "settled", None))
