"""What callers give a client, checked."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Final

from hsmcore.base.keyring import canonical
from hsmcore.errors import BadArgument, InvalidMessageType, InvalidTimeout
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import MOST_BYTES

_BATCH_BYTES: Final = MOST_BYTES // 2
_DOMAIN_BYTES: Final = 255


def cut(batch: list[bytes], most: int) -> list[list[bytes]]:
    """Cut a batch into parts of so many messages and _BATCH_BYTES at most; a message that is larger is a part."""
    parts, size = list[list[bytes]](), 0
    for message in batch:
        if not parts or len(parts[-1]) >= most or size + len(message) > _BATCH_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(message)
        size += len(message) + 4
    return parts


def as_bytes(message: object) -> bytes:
    """Return a message. Raises InvalidMessageType."""
    try:
        return bytes(memoryview(message))  # type: ignore[arg-type]  # what is no buffer is refused
    except (TypeError, ValueError) as error:
        what = f"a message must be bytes, bytearray or memoryview, not {type(message).__name__}"
        raise InvalidMessageType(what if isinstance(error, TypeError) else f"a message was released: {error}") from None


def seconds_of(timeout: float) -> float:
    """Return a timeout. Raises InvalidTimeout."""
    if type(timeout) in {int, float} and 0 < timeout < math.inf:
        with suppress(OverflowError):  # beyond any float
            return float(timeout)
    raise InvalidTimeout("a timeout must be a positive, finite number of seconds")


def kind_of(kind: str | None) -> str:
    """Return a kind of payload, or "". Raises BadArgument."""
    if kind is None:
        return ""
    if kind not in wire.KINDS[1:]:
        raise BadArgument(f"there is no kind {kind!r:.40}; kinds are {', '.join(wire.KINDS[1:])}")
    return kind


def position_of(position: int | None) -> int | None:
    """Return a position. Raises BadArgument."""
    return None if position is None else whole(position, "position", 0, 2**64 - 1)


def key_id_of(key_id: str | None) -> str | None:
    """Return a key id in its canonical spelling. Raises BadArgument."""
    if key_id is None:
        return None
    if len(key_id.encode(errors="surrogatepass")) > 0xFF:
        raise BadArgument("a key id must be a string of at most 255 bytes")
    return canonical(key_id)


def whole(number: int, name: str, low: int, high: int) -> int:
    """Return a number of an argument. Raises BadArgument."""
    if type(number) is not int or not low <= number <= high:
        raise BadArgument(f"{name} must be a whole number from {low} to {high}")
    return number


def domain_of(domain: object) -> str:
    """Return the name of a chain of positions. Raises BadArgument."""
    if not isinstance(domain, str) or not 0 < len(domain.encode(errors="replace")) <= _DOMAIN_BYTES:
        raise BadArgument(f"a domain must be a text of 1 to {_DOMAIN_BYTES} bytes, not {domain!r:.40}")
    return domain
