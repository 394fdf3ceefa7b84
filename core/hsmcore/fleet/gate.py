"""Which host claims a free epoch: one whose keys bind in the domain in which they did before; and
first, one that follows the chain as far as the fleet has bound it.

The latter is an order and no wall: what the fleet is at may be bound and never published, so that no host can have seen
it. Where its message is kept, none needs to: the next holder signs that one (KeyManager.unfinished). Safety rests on
the fence, and on this: the first new payload of a domain in which the holder is behind is no old one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hsmcore.base.log import get_logger
from hsmcore.errors import BadArgument, HsmError
from hsmcore.fleet.entry import SECOND
from hsmcore.fleet.machine import EpochRow
from hsmcore.recovery.incident import word
from hsmcore.state.domains import NO_KEYS, Binder, read

Rows = Sequence[Sequence[Any]]
PATIENCE: Final = 2
"""Lives of a lease for which a host that is behind leaves a free epoch to hosts that are not."""


class ClaimGate:
    """One host's. `ttl` in nanoseconds."""

    def __init__(self, ttl: int) -> None:
        self._patience = PATIENCE * ttl
        self.words: dict[str, int] = {}
        """How far the application follows, by domain."""
        self.caught: set[str] = set()
        """The domains in which this holder is known to be where the fleet is."""
        self._binder, self._keys = NO_KEYS, list[bytes]()
        self._since: tuple[EpochRow, int] | None = None
        """The free epoch that is left to others since this host is behind, and since when."""

    def follows(self, domain: str, position: int) -> None:
        """Note how far the application follows a domain."""
        self.words[domain] = max(position, self.words.get(domain, -1))

    def is_patient(self, row: EpochRow, now: int) -> bool:
        """Whether this epoch is still left to others, if this host is behind."""
        seen, since = self._since or (None, 0)
        return seen != row or now < since + self._patience

    def waits(self, row: EpochRow, now: int, why: str) -> None:
        """Note that this epoch is left to others, and say so once."""
        if self._since is None or self._since[0] != row:
            self._since = row, now
            seconds = self._patience / SECOND
            get_logger().warning("this host leaves the epoch to others", reason=why, seconds=seconds)

    def begins(self, at_least: Mapping[str, int], binder: Binder) -> None:
        """A claim begins, by a host that knows so much and signs with these keys."""
        self.caught = set(at_least)
        self._binder, self._keys = binder, binder.keys()

    def refusal(self, at_least: Mapping[str, int], highs: Rows, domains: Rows, *, patient: bool) -> HsmError | None:
        """Return why the claim is not made: keys must not bind, by the answer to `domains.ASK`; or, if it is `patient`,
        the host is behind `highs`. In the store's thread."""
        if (mismatch := self._binder.wanted.refusal(read(domains), self._keys)) is not None:
            return mismatch
        known = {word(name): _finished(int(high), word(bits), kept) for name, high, bits, kept in highs}
        behind = [domain for domain, position in at_least.items() if position < known.get(domain, -1)]
        self.caught -= set(behind)
        if not behind or not patient:
            return None
        text = f"this host knows {behind[0]} up to {at_least[behind[0]]}, and the fleet is at {known[behind[0]]}"
        return BadArgument(text, hint="Let it catch up, or claim with force and a reason.")


def _finished(high: int, bits: str, kept: bool | None) -> int:
    """Return the highest position that a host may be expected to know."""
    below = int(bits, 16) >> 1 if kept else 0
    return high if not below else high - (below & -below).bit_length()
