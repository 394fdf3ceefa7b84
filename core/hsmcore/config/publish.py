"""Settings of the public log of positions: `keyManager.publish`, which goes with a policy."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import model_validator

from hsmcore.config.audit import Witnessed
from hsmcore.config.base import Model, Text, Whole, clash
from hsmcore.config.policy import OWN, Policy

_CHAINS: Final = 8


class PublishedChain(Model):
    """The log of one chain of positions."""

    origin: Annotated[str, Text(200, form=r"[^\s+]+", says="a name without spaces and +")]
    """The log's name in its checkpoints, such as "example.com/my-rollup/block". No other log has it, ever."""
    first: Annotated[int, Whole(0, 2**63 - 1)] = 0
    """The position of the first leaf. Verifiers have to know it, and it never changes."""


class Publish(Witnessed):
    """`publish`: a log, for everybody, of what is bound to the positions of a chain."""

    PATHS = frozenset({"folder"})

    folder: Annotated[str, Text(4096)]
    """The folder of the logs: each is in a folder of it that is named after its kind, as static files."""
    chains: dict[str, PublishedChain]
    """By kind, the chains that are published."""
    every_millis: Annotated[int, Whole(10, 3_600_000)] = 1000
    """The shortest time from one checkpoint to the next."""
    gap_seconds: Annotated[int, Whole(1, 86_400)] = 60
    """How long the log waits for a position that is not bound, though a higher one is. Then it is given up: nothing is
    signed there."""

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Publish:
        if not 0 < len(self.chains) <= _CHAINS:
            raise clash(f"chains must name 1 to {_CHAINS} kinds")
        if len({chain.origin for chain in self.chains.values()}) < len(self.chains):
            raise clash("names one origin in several chains: each log has its own")
        return self

    def require_in(self, policy: Policy | None) -> None:
        """Raise a fault for a chain whose positions no policy binds."""
        for kind in self.chains:
            if policy is None or kind not in policy.ordered - set(OWN):
                raise clash(f"has publish.chains.{kind}, but policy.kinds lists no such kind with a position")
