"""Frames of hsmcore-wire/1: cut from a stream of bytes, and made. docs/WIRE.md specifies them. Knows no socket."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum, IntFlag
from importlib import import_module
from struct import Struct
from typing import Any, Final, NamedTuple

from hsmcore.base.traceparent import TRACE_BYTES, TraceParent

ALPN: Final = "hsmcore-wire/1"
"""The protocol's name in TLS (RFC 7301), so that a proxy can tell it from HTTP. A client may leave it out."""
MOST_BYTES: Final = 1 << 20
"""Largest `length` of a frame."""

_LENGTH: Final = Struct("<I")
_HEAD: Final = Struct("<IBBHQ")
MIN_BYTES: Final = _HEAD.size - _LENGTH.size
"""Smallest `length`: what stands before the body."""


class Type(IntEnum):
    """`type` of a frame: from 129 on, the gateway's."""

    HELLO = 1
    SIGN = 2
    SIGN_MANY = 3
    VERIFY = 4
    CANCEL = 5
    ACK = 6
    PING = 7
    MANAGE = 8
    SIGN_BATCHED = 9
    WELCOME = 129
    SIGNED = 130
    SIGNED_MANY = 131
    VERIFIED = 132
    PONG = 133
    ERROR = 134
    KEYS = 135
    CREDIT = 136
    GOAWAY = 137
    DONE = 138
    BATCHED = 139


class Flag(IntFlag):
    """`flags` of requests. HAS_POSITION is that of SIGN only, VERIFY and MANAGE have no AGAIN."""

    HAS_POSITION = 1
    AGAIN = 2
    TRACED = 4
    """The body begins with TraceParent.packed."""
    LABELLED = 8
    """A Label follows, behind a trace."""
    DIGEST = 16
    """Of VERIFY: the message is a digest."""


_NAMED: Final = Flag.TRACED | Flag.LABELLED
_FLAGS: Final = {
    Type.SIGN: Flag.HAS_POSITION | Flag.AGAIN | _NAMED,
    Type.SIGN_MANY: Flag.AGAIN | _NAMED,
    Type.SIGN_BATCHED: Flag.AGAIN | _NAMED,
    Type.VERIFY: Flag.DIGEST | _NAMED,
    Type.MANAGE: _NAMED,
}


class WireError(ValueError):
    """Bytes that are no frame of hsmcore-wire/1. The connection is of no more use."""


class UnknownKind(WireError):
    """A request for a kind of payload that this end does not know, in a frame that is good otherwise."""


class Frame(NamedTuple):
    """One frame."""

    type: Type
    flags: int
    slot: int
    request: int
    body: bytes


class Label(NamedTuple):
    """By what the audit log has a request of a front: its id, 16 bytes, and the address that it came from."""

    request_id: bytes
    peer: str


_ID_BYTES: Final = 16
_MOST_PEER: Final = 255
_REFUSED: Final = 0xFF


def _cut_frames(
    data: bytes,
    at: int,
    most: int,
    flags: bytes,
    types: tuple[Type | None, ...],
    shape: type[Frame],
    _open: dict[int, Any] | None = None,
    _signs: Any = None,
) -> tuple[list[Frame], int, int, int]:
    """As hsmcore._native.cut_frames. Settles and takes no request."""
    end, frames, made = len(data), list[Frame](), tuple.__new__
    while len(frames) < most:
        left = end - at
        if left < _HEAD.size:
            good = left < _LENGTH.size or MIN_BYTES <= _LENGTH.unpack_from(data, at)[0] <= MOST_BYTES
            return frames, at, (_LENGTH.size if left < _LENGTH.size else _HEAD.size) if good else 0, 0
        length, number, found, slot, request = _HEAD.unpack_from(data, at)
        allowed, after = flags[number], at + _LENGTH.size + length
        if not MIN_BYTES <= length <= MOST_BYTES or allowed == _REFUSED or found & ~allowed:
            return frames, at, 0, 0
        if after > end:
            return frames, at, after - at, 0
        frames.append(made(shape, (types[number], found, slot, request, data[at + _HEAD.size : after])))
        at = after
    return frames, at, _LENGTH.size, 0


# The one place where the C form takes the place of the one in Python, which has all that it has but its speed.
native: Any = None
"""What is done in C: None where this is installed without the core."""
with suppress(ImportError):
    native = import_module("hsmcore._native")
    if not hasattr(native, "cut_frames"):  # what the wheel of the client alone has in its place
        native = None
_cut: Final = _cut_frames if native is None else native.cut_frames


class Splitter:
    """Cuts a stream of bytes into frames. `types`: those that this end takes."""

    def __init__(self, types: Iterable[Type]) -> None:
        rules = {int(one): one for one in types}
        self._flags = bytes(int(_FLAGS.get(rules[n], 0)) if n in rules else _REFUSED for n in range(256))
        self._types = tuple(rules.get(n) for n in range(256))
        self._data: bytes | bytearray = b""
        self._at = 0  # what stands before is cut
        self.wanted = _LENGTH.size
        """Bytes that must be there before it is worth a look."""
        self.ready = False
        """Whether there may be a frame for `cut`."""
        self.settled = 0
        """Requests that the last `cut` has settled, or taken."""

    def feed(self, data: bytes, open: dict[int, Any] | None = None) -> list[Frame]:  # noqa: A002
        """Return the frames that are whole now; as `cut`. Raises WireError."""
        self.push(data)
        return self.cut(open=open)

    def push(self, data: bytes) -> None:
        """Take bytes, for `cut`."""
        if self._at == len(self._data):
            self._data, self._at = data, 0
        else:
            if not isinstance(self._data, bytearray):
                self._data, self._at = bytearray(self._data[self._at :]), 0
            self._data += data
        self.ready = len(self._data) - self._at >= self.wanted

    def cut(self, most: int = sys.maxsize, open: dict[int, Any] | None = None, signs: Any = None) -> list[Frame]:  # noqa: A002
        """Return frames that are whole now, at most so many; the others stay. `open`, `signs`: as of native.cut_frames,
        which may settle or take requests. Raises WireError."""
        self.settled = 0
        if not self.ready:
            return []
        data = self._data = bytes(self._data)
        frames, at, wanted, self.settled = _cut(data, self._at, most, self._flags, self._types, Frame, open, signs)
        if not wanted:
            raise WireError(self._fault(data[at : at + _HEAD.size]))
        left = len(data) - at
        self._data, self._at = (data, at) if left else (b"", 0)
        self.wanted, self.ready = wanted, left >= wanted
        return frames

    def _fault(self, head: bytes) -> str:
        (length,) = _LENGTH.unpack_from(head)
        if not MIN_BYTES <= length <= MOST_BYTES:
            return f"a frame of {length} bytes"
        number, flags = head[4], head[5]
        if self._types[number] is None:
            return f"type {number}"
        return f"flags {flags:#x} of type {number}"

    @property
    def pending(self) -> int:
        """Bytes that are not cut yet."""
        return len(self._data) - self._at


CLIENT_TYPES: Final = tuple(one for one in Type if one < Type.WELCOME)
GATEWAY_TYPES: Final = tuple(one for one in Type if one >= Type.WELCOME)


def frame(kind: Type, request: int = 0, body: bytes = b"", *, slot: int = 0, flags: int = 0) -> bytes:
    """Return a frame as bytes."""
    return _HEAD.pack(MIN_BYTES + len(body), kind, flags, slot, request) + body


def traced(made: bytes, parent: TraceParent) -> bytes:
    """Return a request's frame with its trace; as it is if it would be too long then."""
    return _with(made, Flag.TRACED, parent.packed)


def labelled(made: bytes, label: Label) -> bytes:
    """Return a request's frame with its label; as `traced`, which comes behind this."""
    peer = label.peer.encode(errors="replace")[:_MOST_PEER].decode(errors="ignore").encode()
    return _with(made, Flag.LABELLED, label.request_id + bytes([len(peer)]) + peer)


def _with(made: bytes, flag: Flag, said: bytes) -> bytes:
    length, kind, flags, slot, request = _HEAD.unpack_from(made)
    if length + len(said) > MOST_BYTES:
        return made
    return _HEAD.pack(length + len(said), kind, flags | flag, slot, request) + said + made[_HEAD.size :]


def untraced(one: Frame) -> tuple[Frame, TraceParent]:
    """Return the frame that `traced` was given, and the trace. Raises WireError."""
    parent = TraceParent.unpacked(one.body[:TRACE_BYTES])
    if parent is None:
        raise WireError("a trace that is none")
    return one._replace(flags=one.flags & ~Flag.TRACED, body=one.body[TRACE_BYTES:]), parent


def unlabelled(one: Frame) -> tuple[Frame, Label]:
    """Return the frame that `labelled` was given, and the label. Raises WireError."""
    begin = _ID_BYTES + 1
    after = begin + (one.body[_ID_BYTES] if len(one.body) > _ID_BYTES else 0)
    if len(one.body) < after or len(one.body) < begin:
        raise WireError("a label that is none")
    try:
        label = Label(one.body[:_ID_BYTES], one.body[begin:after].decode())
    except UnicodeDecodeError as error:
        raise WireError(str(error)) from None
    return one._replace(flags=one.flags & ~Flag.LABELLED, body=one.body[after:]), label
