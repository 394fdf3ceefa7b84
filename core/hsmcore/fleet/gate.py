"""Which host claims a free epoch: one whose keys bind in the domain in which they did before; and
first, one that follows the chain as far as the fleet has bound it.

The latter is an order and no wall: what the fleet is at may be bound and never published, so that no host can have seen
it. Where its message is kept, none needs to: the next holder signs that one (KeyManager.unfinished). Safety rests on
the fence, and on this: the first new payload of a domain in which the holder is behind is no old one.
"""

from __future__ import annotations

from typing import Final

from hsmcore.base.log import get_logger
from hsmcore.errors import BadArgument, HsmError
from hsmcore.fleet.entry import SECOND
from hsmcore.fleet.machine import EpochRow
from hsmcore.fleet.rows import Rows
from hsmcore.recovery.incident import word
from hsmcore.state.domains import Binder, read

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

    def refusal(self, highs: Rows, domains: Rows, binder: Binder, *, patient: bool) -> HsmError | None:
        """Return why no claim is to be made: the keys that sign must not bind, by the answer to `domains.ASK`; or, if
        it is `patient`, the host is behind `highs`."""
        if (mismatch := binder.wanted.refusal(read(domains), binder.keys())) is not None:
            return mismatch
        behind = self._behind(highs)
        if not behind or not patient:
            return None
        domain, high = behind.popitem()
        return BadArgument(
            f"this host knows {domain} up to {self.words[domain]}, and the fleet is at {high}",
            hint="Let it catch up, or claim with force and a reason.",
        )

    def claimed(self, highs: Rows) -> None:
        """The epoch was claimed: note where this host is behind. `highs`: as read when no other host could bind."""
        self.caught = {*self.words} - {*self._behind(highs)}

    def _behind(self, highs: Rows) -> dict[str, int]:
        known = {word(name): _finished(int(high), word(bits), kept) for name, high, bits, kept in highs}
        return {domain: known[domain] for domain, at in self.words.items() if at < known.get(domain, -1)}


def _finished(high: int, bits: str, kept: bool | None) -> int:
    """Return the highest position that a host may be expected to know."""
    below = int(bits, 16) >> 1 if kept else 0
    return high if not below else high - (below & -below).bit_length()
