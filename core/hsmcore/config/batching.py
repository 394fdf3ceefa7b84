"""How messages are gathered for one signature: `batching` of a key manager. Its policy must list "batch-root"."""

from __future__ import annotations

from typing import Annotated, Final

from hsmcore.config.base import Model, Text, Whole

MOST_ROOT_BYTES: Final = 205
"""Length of the longest text that is signed for a batch, with every number and the domain at its limit."""


class Batching(Model):
    """Settings of `sign_batched`."""

    PATHS = frozenset({"keep_leaves"})

    interval_ms: Annotated[int, Whole(0, 60_000)] = 20
    """The age of its first message at which a batch closes."""
    max_leaves: Annotated[int, Whole(1, 1_048_576)] = 65_536
    """The number of messages at which it closes before that."""
    blind: bool = False
    """Whether each leaf has 32 random bytes, so that a proof does not let its neighbours' messages be guessed."""
    keep_leaves: Annotated[str, Text(4096)] | None = None
    """A folder in which the leaves of each batch are kept. Default: they are not kept."""
