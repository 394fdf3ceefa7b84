"""What the bodies of frames are made of: fields, one behind the other. wire says which a frame has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import methodcaller
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, NamedTuple

from hsmcore.gateway.wire.frames import WireError


class BodyReader:
    """A body that is read from its begin."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    @property
    def left(self) -> int:
        """Bytes that are not read yet."""
        return len(self._body) - self._at

    def raw(self, count: int) -> bytes:
        """So many bytes. Raises WireError."""
        found = self._body[self._at : self._at + count]
        if len(found) != count:
            raise WireError("a field ends behind the frame")
        self._at += count
        return found


class Field(NamedTuple):
    """How a value stands in a body."""

    put: Callable[[Any], bytes]
    take: Callable[[BodyReader], Any]
    """Raises WireError, struct.error, UnicodeDecodeError."""


def number(form: str) -> Field:
    """A number, as struct has it."""
    one = Struct(form)
    return Field(one.pack, lambda reading: one.unpack(reading.raw(one.size))[0])


U8: Final = number("<B")
U16: Final = number("<H")
U32: Final = number("<I")
U64: Final = number("<Q")
REST: Final = Field(bytes, lambda reading: reading.raw(reading.left))
"""All that is left."""


def exactly(count: int) -> Field:
    """So many bytes."""
    return Field(bytes, methodcaller("raw", count))


def counted(count: Field) -> Field:
    """Bytes behind their number."""
    return Field(lambda data: count.put(len(data)) + data, lambda reading: reading.raw(count.take(reading)))


BYTES8: Final = counted(U8)
BYTES16: Final = counted(U16)


def text(data: Field) -> Field:
    """The bytes of a text."""
    return Field(lambda said: data.put(said.encode()), lambda reading: data.take(reading).decode())


TEXT8: Final = text(BYTES8)
TEXT16: Final = text(BYTES16)


def below(limit: int, count: Field = U8) -> Field:
    """A number below a limit."""

    def take(reading: BodyReader) -> Any:
        if (found := count.take(reading)) >= limit:
            raise WireError(f"number {found} means nothing")
        return found

    return Field(count.put, take)


_BIT: Final = below(2)
FLAG: Final = Field(U8.put, lambda reading: bool(_BIT.take(reading)))


def stated(one: Field) -> Field:
    """As `one`, which must say something."""

    def take(reading: BodyReader) -> Any:
        if not (found := one.take(reading)):
            raise WireError("a field that says nothing")
        return found

    return Field(one.put, take)


def named(names: Sequence[str]) -> Field:
    """The place of a name, in 8 bits."""
    place = below(len(names))
    return Field(lambda name: place.put(names.index(name)), lambda reading: names[place.take(reading)])


def some(one: Field, made: Callable[[list[Any]], Any] = tuple) -> Field:
    """So many of a kind, behind their number."""

    def take(reading: BodyReader) -> Any:
        return made([one.take(reading) for _ in range(U16.take(reading))])

    return Field(lambda values: U16.put(len(values)) + b"".join(map(one.put, values)), take)


def record(made: Callable[..., Any], *fields: Field) -> Field:
    """The fields of a named tuple."""
    return Field(
        lambda values: b"".join(field.put(value) for field, value in zip(fields, values, strict=True)),
        lambda reading: made(*[field.take(reading) for field in fields]),
    )


def reader(field: Field) -> Callable[[bytes], Any]:
    """Return what reads a body that has this field and nothing behind it. It raises WireError."""

    def read(body: bytes) -> Any:
        reading = BodyReader(body)
        try:
            found = field.take(reading)
        except (struct_error, UnicodeDecodeError) as error:
            raise WireError(str(error)) from None
        if reading.left:
            raise WireError("bytes behind the last field")
        return found

    return read
