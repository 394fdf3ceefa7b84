"""Frames of hsmcore-wire/1: cut from a stream of bytes, and made. docs/WIRE.md specifies them. Knows no socket."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

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
    """LABEL_BYTES follow, behind a trace: the id of the request in the audit log."""
    DIGEST = 16
    """Of VERIFY: the message is a digest."""


LABEL_BYTES: Final = 16
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


class Splitter:
    """Cuts a stream of bytes into frames. `types`: those that this end takes."""

    def __init__(self, types: Iterable[Type], most: int = MOST_BYTES) -> None:
        self._rules = {int(one): (one, ~int(_FLAGS.get(one, 0))) for one in types}
        self._most = most
        self._data: bytes | bytearray = b""
        self._at = 0  # what stands before is cut
        self._wanted = _LENGTH.size  # bytes that must be left before it is worth a look
        self.ready = False
        """Whether there may be a frame for `cut`."""

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are whole now. Raises WireError."""
        self.push(data)
        return self.cut()

    def push(self, data: bytes) -> None:
        """Take bytes, for `cut`."""
        if self._at == len(self._data):
            self._data, self._at = data, 0
        else:
            if not isinstance(self._data, bytearray):
                self._data, self._at = bytearray(self._data[self._at :]), 0
            self._data += data
        self.ready = len(self._data) - self._at >= self._wanted

    def cut(self, most: int = sys.maxsize) -> list[Frame]:
        """Return frames that are whole now, at most so many; the others stay. Raises WireError."""
        if not self.ready:
            return []
        data = self._data = bytes(self._data)
        at, end, frames, made = self._at, len(data), list[Frame](), tuple.__new__
        wanted = _LENGTH.size
        while end - at >= _HEAD.size and len(frames) < most:
            length, number, flags, slot, request = _HEAD.unpack_from(data, at)
            if not MIN_BYTES <= length <= self._most:
                raise WireError(f"a frame of {length} bytes")
            rule = self._rules.get(number)
            if rule is None:
                raise WireError(f"type {number}")
            if flags & rule[1]:
                raise WireError(f"flags {flags:#x} of type {number}")
            after = at + _LENGTH.size + length
            if after > end:
                wanted = after - at
                break
            frames.append(made(Frame, (rule[0], flags, slot, request, data[at + _HEAD.size : after])))
            at = after
        if _LENGTH.size <= end - at < _HEAD.size and len(frames) < most:
            (length,) = _LENGTH.unpack_from(data, at)
            if not MIN_BYTES <= length <= self._most:
                raise WireError(f"a frame of {length} bytes")
            wanted = _HEAD.size
        self._data, self._at = (data, at) if at < end else (b"", 0)
        self._wanted, self.ready = wanted, end - at >= wanted
        return frames

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


def labelled(made: bytes, request_id: bytes) -> bytes:
    """Return a request's frame with its id in the audit log, LABEL_BYTES; as `traced`, which comes behind this."""
    return _with(made, Flag.LABELLED, request_id)


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


def unlabelled(one: Frame) -> tuple[Frame, bytes]:
    """Return the frame that `labelled` was given, and the id. Raises WireError."""
    if len(one.body) < LABEL_BYTES:
        raise WireError("an id that is none")
    return one._replace(flags=one.flags & ~Flag.LABELLED, body=one.body[LABEL_BYTES:]), one.body[:LABEL_BYTES]
