"""Fields of a body, one behind the other: for wire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from struct import error as struct_error
from typing import Any, Final

from hsmcore.gateway.wire.frames import WireError

U16: Final = Struct("<H")


class Fields:
    """Reads a body field by field. Raises WireError within `reading`."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def take(self, form: Struct) -> tuple[Any, ...]:
        """Numbers."""
        values = form.unpack_from(self._body, self._at)
        self._at += form.size
        return values

    def raw(self, count: int) -> bytes:
        """So many bytes."""
        found = self._body[self._at : self._at + count]
        if len(found) != count:
            raise WireError("a field ends behind the frame")
        self._at += count
        return found

    def bytes8(self) -> bytes:
        """Bytes behind their number, of 8 bits."""
        return self.raw(self.raw(1)[0])

    def bytes16(self) -> bytes:
        """Bytes behind their number, of 16 bits."""
        return self.raw(self.take(U16)[0])

    def text8(self) -> str:
        """Text behind the number of its bytes, of 8 bits."""
        return self.bytes8().decode()

    def rest(self) -> bytes:
        """All that is left."""
        return self.raw(len(self._body) - self._at)

    def end(self) -> None:
        """Nothing is left. Raises WireError."""
        if self._at != len(self._body):
            raise WireError("bytes behind the last field")


def named(names: Sequence[str], number: int) -> str:
    """Return the name with a number. Raises WireError."""
    if number >= len(names):
        raise WireError(f"number {number} means nothing")
    return names[number]


@contextmanager
def reading() -> Iterator[None]:
    """Raise WireError for what a reader stumbles over."""
    try:
        yield
    except (struct_error, IndexError, UnicodeDecodeError) as error:
        raise WireError(str(error)) from None


def text8(text: str) -> bytes:
    """Return text behind the number of its bytes."""
    data = text.encode()
    return bytes((len(data),)) + data


def bytes16(data: bytes) -> bytes:
    """Return bytes behind their number."""
    return U16.pack(len(data)) + data
