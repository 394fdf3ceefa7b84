"""hsmcore's own form of an ordered payload: its bytes say kind, chain and position. docs/POLICY.md has the table."""

from __future__ import annotations

import re
from typing import Final, Literal

from hsmcore.errors import BadArgument

OrderedKind = Literal["block", "state-root"]
NOTE_NAME: Final = r"[!-*,-~]+"
"""Names that C2SP's signed notes allow. No two of them look alike, and none is shown other than it is."""
MOST_DOMAIN: Final = 64
_CODES: Final = {"block": 1, "state-root": 2}
MOST_POSITION: Final = 2**63 - 1
"""Positions are signed numbers of 64 bits in the state store."""


def payload(kind: OrderedKind, domain: str, position: int, digest: bytes | bytearray | memoryview) -> bytes:
    """Return what is signed for a block or a state root of which there is only a digest.

    `domain`: `policy.domain`: 1 to 64 characters of printable ASCII, without spaces and "+". `position`: 0 to 2^63-1.
    `digest`: 32 bytes. Raises BadArgument.
    """
    if kind not in tuple(_CODES):
        raise BadArgument(
            f"a payload of kind {kind!r:.40} has no position; kinds that have one are {', '.join(_CODES)}"
        )
    if type(domain) is not str or len(domain) > MOST_DOMAIN or re.fullmatch(NOTE_NAME, domain) is None:
        raise BadArgument(f'domain must be 1 to {MOST_DOMAIN} characters of printable ASCII, without spaces and "+"')
    if type(position) is not int or not 0 <= position <= MOST_POSITION:
        raise BadArgument("position must be a whole number from 0 to 2^63-1")
    data = _bytes(digest)
    if len(data) != 32:
        raise BadArgument("digest must be 32 bytes")
    head = bytes((_CODES[kind], 1, len(domain)))
    return b"\xffhsmcore" + head + domain.encode() + position.to_bytes(8) + data


def _bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else b""
