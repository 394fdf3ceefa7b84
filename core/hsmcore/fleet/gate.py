"""Which host claims a free epoch first: one that follows the chain as far as the fleet has bound it.

That is an order and no wall: what the fleet is at may be bound and never published, so that no host can have seen it.
Safety rests on the fence, and on this: the first new payload of a domain in which the holder is behind is no old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hsmcore.base.log import get_logger
from hsmcore.errors import BadArgument
from hsmcore.fleet.entry import SECOND
from hsmcore.fleet.machine import EpochRow

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
            get_logger().warning("a host that is behind waits for others to claim", reason=why, seconds=seconds)

    def refusal(self, at_least: Mapping[str, int], highs: Mapping[str, int]) -> BadArgument | None:
        """Return why a host that knows so much is behind; None: it is not. In the store's thread."""
        behind = [domain for domain, position in at_least.items() if position < highs.get(domain, -1)]
        self.caught -= set(behind)
        if not behind:
            return None
        text = f"this host knows {behind[0]} up to {at_least[behind[0]]}, and the fleet is at {highs[behind[0]]}"
        return BadArgument(text, hint="Let it catch up, or claim with force and a reason.")
