"""What the frames of hsmcore-wire/1 say, as bytes and as values. docs/WIRE.md is the specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntFlag
from functools import partial
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, NamedTuple

from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError, NotHolder
from hsmcore.gateway.wire.fields import (
    BYTES8,
    BYTES16,
    FLAG,
    REST,
    TEXT8,
    TEXT16,
    U16,
    U32,
    BodyReader,
    Field,
    below,
    exactly,
    named,
    reader,
    record,
    some,
    stated,
    text,
)
from hsmcore.gateway.wire.frames import MIN_BYTES, Flag, Frame, Type, UnknownKind, WireError, frame

VERSION: Final = 1
MOST_PING: Final = 64
MOST_TEXT: Final = 1024
"""Bytes of an error's text, without its holder."""
_HELD: Final = "NOT_HOLDER"
_HOLDER: Final = "\nholder: "
"""Before the holder's name, which is the last line of the text: a client of an earlier release shows it."""
NONCE_BYTES: Final = 16
NO_RECORD: Final = (1 << 64) - 1
"""`audit_seq` of an answer without an audit record."""
ALL_KINDS: Final = 0xFFFF
"""`kinds` of a key that no policy limits, at a gateway of an earlier release: it knows neither batches nor traces."""
BATCHES: Final = 1 << 15
"""Bit of `kinds` of a key that signs batches."""
TRACES: Final = 1 << 14
"""Bit of `kinds`: the gateway knows Flag.TRACED."""
UNLIMITED: Final = ALL_KINDS & ~BATCHES
"""`kinds` of a key that no policy limits, which signs no batch either."""

_LENGTH: Final = Struct("<I")
_SIGN: Final = Struct("<BIQI")
_MANY: Final = Struct("<BIIH")
_SIGNED: Final = Struct("<IBQ")
_OUTCOME: Final = Struct("<BH")
"""Of SIGNED_MANY, before its bytes: whether it is an error, and how many they are."""
_SIGNED_FRAME: Final = Struct("<IBBHQIBQ")
"""A whole frame but for the signature: the answer that is made most often."""
_SIGNED_TYPE: Final = int(Type.SIGNED)
_SIGN_FRAME: Final = Struct("<IBBHQBIQI")
_SIGN_TYPE, _POSITION, _AGAIN = int(Type.SIGN), int(Flag.HAS_POSITION), int(Flag.AGAIN)


class Fault(IntFlag):
    """`flags` of an error."""

    RETRYABLE = 1
    MAYBE_SIGNED = 2


KINDS: Final = ("", "tx-legacy", "tx-v0", "tx-v1", "off-chain", "block", "state-root", "digest32", "raw", "prehashed")
"""By their numbers; "": the client does not say."""
KIND_NUMBERS: Final = {kind: number for number, kind in enumerate(KINDS)}
ALGORITHMS: Final = ("", "ed25519", "ecdsa-p256", "ecdsa-secp256k1")
LEVELS: Final = ("", "primary", "secondary", "emergency")
LEVEL_NUMBERS: Final = {name: number for number, name in enumerate(LEVELS)}
OPERATIONS: Final = ("", "generate", "set-current", "deactivate", "cache-stats", "export", "unfinished", "versions")


class Hello(NamedTuple):
    """What a client says first."""

    nonce: bytes
    program: str


class Key(NamedTuple):
    """A version of a key. `kinds`: bit n is KINDS[n], and BATCHES, TRACES."""

    slot: int
    version: int
    current: bool
    algorithm: str
    id: str
    public_key: bytes
    kinds: int

    @property
    def batches(self) -> bool:
        """Whether batches are signed. A gateway that knows none sets the bit only with all others."""
        return bool(self.kinds & BATCHES) and self.kinds != ALL_KINDS

    @property
    def traces(self) -> bool:
        """Whether the gateway knows traces. One that does not sets the bit only with all others."""
        return bool(self.kinds & TRACES) and self.kinds != ALL_KINDS


class Welcome(NamedTuple):
    """What the gateway says first."""

    instance: bytes
    credits: int
    message_bytes: int
    batch: int
    remember_ms: int
    client: str
    slots: tuple[str, ...]
    keys: tuple[Key, ...]


class Sign(NamedTuple):
    """A request for a signature. `position`: None: there is none. `version` 0: the current one."""

    kind: str
    timeout_ms: int
    position: int | None
    version: int
    message: bytes


class SignMany(NamedTuple):
    """A request for a batch."""

    kind: str
    timeout_ms: int
    version: int
    messages: list[bytes]


class Refusal(NamedTuple):
    """An error as it is sent."""

    retryable: bool
    maybe_signed: bool
    retry_after_ms: int
    status: str
    error_class: str
    text: str
    holder: str = ""
    """Of NOT_HOLDER: the fleet's name of the host that holds the epoch; "": none is known."""


def refusal_of(error: HsmError) -> Refusal:
    """Return an error as it is sent."""
    maybe, after = error.maybe_signed, error.retry_after_ms
    holder = error.holder.rsplit(":", 2)[0] if isinstance(error, NotHolder) else ""
    return Refusal(error.retryable, maybe, after, error.status, error.error_class, str(error), holder)


class Manage(NamedTuple):
    """An operation on a key, one of OPERATIONS. `key_id` "" where there is none; of "unfinished", the domain."""

    operation: str
    key_id: str


class Verify(NamedTuple):
    """A signature to be verified. `key_id` "": any version."""

    key_id: str
    signature: bytes
    message: Any
    """Bytes; a Digest, where the gateway has read Flag.DIGEST."""


def _greeting(found: Field) -> Field:
    """Behind the protocol's version."""

    def take(reading: BodyReader) -> Any:
        if (version := U16.take(reading)) != VERSION:
            raise WireError(f"version {version} of the protocol; this is {VERSION}")
        return found.take(reading)

    return Field(lambda said: U16.put(VERSION) + found.put(said), take)


def _writer(kind: Type, field: Field) -> Callable[..., bytes]:
    """What returns the frame of a request's number and what it says."""

    def write(request: int, *said: Any, slot: int = 0) -> bytes:
        return frame(kind, request, field.put(said[0] if len(said) == 1 else said), slot=slot)

    return write


# Of each type, what makes its frame, of a request's number if it has one, and what reads its body, which raises
# WireError.
_NONCE: Final = exactly(NONCE_BYTES)
_KEYS: Final = some(record(Key, U16, U32, FLAG, stated(named(ALGORITHMS)), TEXT8, BYTES8, U16))
_HELLO: Final = _greeting(record(Hello, _NONCE, TEXT8))
_WELCOME: Final = _greeting(record(Welcome, _NONCE, U32, U32, U16, U32, TEXT8, some(TEXT8), _KEYS))
hello: Final = partial(_writer(Type.HELLO, _HELLO), 0)
read_hello: Final[Callable[[bytes], Hello]] = reader(_HELLO)
welcome: Final = partial(_writer(Type.WELCOME, _WELCOME), 0)
read_welcome: Final[Callable[[bytes], Welcome]] = reader(_WELCOME)
keys: Final = partial(_writer(Type.KEYS, _KEYS), 0)
read_keys: Final[Callable[[bytes], tuple[Key, ...]]] = reader(_KEYS)


def sign(request: int, one: Sign, *, slot: int = 0, again: bool = False) -> bytes:
    """Return SIGN."""
    return sign_as(request, one, slot, one.version, one.timeout_ms, again)


def sign_as(request: int, one: Sign, slot: int, version: int, timeout_ms: int, again: bool) -> bytes:
    """Return SIGN with another version and timeout than `one` has."""
    kind, _, position, _, message = one
    flags = (0 if position is None else _POSITION) | (_AGAIN if again else 0)
    size, number = _SIGN_FRAME.size - _LENGTH.size + len(message), KIND_NUMBERS[kind]
    head = _SIGN_FRAME.pack(size, _SIGN_TYPE, flags, slot, request, number, timeout_ms, position or 0, version)
    return head + message


def kind_of(number: int) -> str:
    """Return the kind with a number. Raises UnknownKind."""
    if number >= len(KINDS):
        raise UnknownKind(f"there is no kind with the number {number}")
    return KINDS[number]


def read_sign(one: Frame) -> Sign:
    """Read SIGN. Raises WireError."""
    try:
        kind, timeout, position, version = _SIGN.unpack_from(one.body)
    except struct_error as error:
        raise WireError(str(error)) from None
    given = one.flags & _POSITION
    if position and not given:
        raise WireError("a position without its flag")
    return Sign(kind_of(kind), timeout, position if given else None, version, one.body[_SIGN.size :])


def sign_many(request: int, one: SignMany, *, slot: int = 0, again: bool = False) -> bytes:
    """Return SIGN_MANY."""
    parts = [_MANY.pack(KINDS.index(one.kind), one.timeout_ms, one.version, len(one.messages))]
    for message in one.messages:
        parts += _LENGTH.pack(len(message)), message
    return frame(Type.SIGN_MANY, request, b"".join(parts), slot=slot, flags=Flag.AGAIN if again else 0)


def read_sign_many(body: bytes) -> SignMany:
    """Read SIGN_MANY. Raises WireError."""
    try:
        kind, timeout, version, count = _MANY.unpack_from(body)
        messages, end = list[bytes](), _MANY.size
        for _ in range(count):  # without fields: a batch has many
            (size,) = _LENGTH.unpack_from(body, end)
            begin, end = end + _LENGTH.size, end + _LENGTH.size + size
            messages.append(body[begin:end])
    except struct_error as error:
        raise WireError(str(error)) from None
    if end != len(body):
        raise WireError("a field ends behind the frame" if end > len(body) else "bytes behind the last field")
    return SignMany(kind_of(kind), timeout, version, messages)


_VERIFY: Final = record(Verify, TEXT8, BYTES16, REST)
_MANAGE: Final = record(Manage, stated(named(OPERATIONS)), TEXT8)
manage: Final = _writer(Type.MANAGE, _MANAGE)
read_manage: Final[Callable[[bytes], Manage]] = reader(_MANAGE)
read_verify: Final[Callable[[bytes], Verify]] = reader(_VERIFY)


def verify(request: int, one: Verify, *, slot: int = 0, digest: bool = False) -> bytes:
    """Return VERIFY. `digest`: the message is one."""
    return frame(Type.VERIFY, request, _VERIFY.put(one), slot=slot, flags=Flag.DIGEST if digest else 0)


def signed(request: int, version: int, one: Receipt, *, slot: int = 0) -> bytes:
    """Return SIGNED. `version`: of the key that the receipt names."""
    signature, level = one.signature, LEVEL_NUMBERS.get(one.level, 0)
    seq = NO_RECORD if one.audit_seq is None else one.audit_seq
    length = MIN_BYTES + _SIGNED.size + len(signature)
    return _SIGNED_FRAME.pack(length, _SIGNED_TYPE, 0, slot, request, version, level, seq) + signature


def read_signed(body: bytes) -> tuple[int, str, int | None, bytes]:
    """Read SIGNED: version, level, number of the record or None, signature. Raises WireError."""
    try:
        version, level, seq = _SIGNED.unpack_from(body)
    except struct_error as error:
        raise WireError(str(error)) from None
    if level >= len(LEVELS):
        raise WireError(f"number {level} means nothing")
    return version, LEVELS[level], None if seq == NO_RECORD else seq, body[_SIGNED.size :]


def _put_refusal(one: Refusal) -> bytes:
    flags = (Fault.RETRYABLE if one.retryable else 0) | (Fault.MAYBE_SIGNED if one.maybe_signed else 0)
    said = one.text.encode()[:MOST_TEXT].decode(errors="ignore") + (_HOLDER + one.holder if one.holder else "")
    return _REFUSAL.put((flags, one.retry_after_ms, one.status, one.error_class, said))


def _refusal(flags: int, retry_after_ms: int, status: str, error_class: str, said: str) -> Refusal:
    retryable, maybe = bool(flags & Fault.RETRYABLE), bool(flags & Fault.MAYBE_SIGNED)
    said, _, holder = said.partition(_HOLDER) if status == _HELD else (said, "", "")
    return Refusal(retryable, maybe, retry_after_ms, status, error_class, said, holder)


_REFUSAL: Final = record(_refusal, below(1 + sum(Fault)), U32, TEXT8, TEXT8, TEXT16)
_ERROR: Final = Field(_put_refusal, _REFUSAL.take)
error: Final = _writer(Type.ERROR, _ERROR)
read_error: Final[Callable[[bytes], Refusal]] = reader(_ERROR)
"""Also an outcome of SIGNED_MANY."""


def _put_outcomes(outcomes: Sequence[bytes | Refusal]) -> bytes:
    """In one call for all of them: a batch has many."""
    said = [one if isinstance(one, bytes) else _put_refusal(one) for one in outcomes]
    each = [_OUTCOME.pack(one is not given, len(one)) + one for one, given in zip(said, outcomes, strict=True)]
    return U16.put(len(each)) + b"".join(each)


def _take_outcome(reading: BodyReader) -> bytes | Refusal:
    bad, size = _OUTCOME.unpack(reading.raw(_OUTCOME.size))
    if bad > 1:
        raise WireError(f"outcome {bad}")
    return read_error(reading.raw(size)) if bad else reading.raw(size)


_SIGNED_MANY: Final = record(
    lambda *said: said, U32, Field(_put_outcomes, some(Field(bytes, _take_outcome), list).take)
)
_GOAWAY: Final = record(lambda *said: said, U32, TEXT8)
signed_many: Final = _writer(Type.SIGNED_MANY, _SIGNED_MANY)
"""Of the version, and an outcome for each message."""
read_signed_many: Final[Callable[[bytes], tuple[int, list[bytes | Refusal]]]] = reader(_SIGNED_MANY)
goaway: Final = partial(_writer(Type.GOAWAY, _GOAWAY), 0)
"""Of milliseconds that are left, and why."""
read_goaway: Final[Callable[[bytes], tuple[int, str]]] = reader(_GOAWAY)
verified: Final = _writer(Type.VERIFIED, FLAG)
read_verified: Final[Callable[[bytes], bool]] = reader(FLAG)
credit: Final = partial(_writer(Type.CREDIT, U32), 0)
read_credit: Final[Callable[[bytes], int]] = reader(U32)
done: Final = _writer(Type.DONE, text(REST))
read_text: Final[Callable[[bytes], str]] = reader(text(REST))
"""Of DONE."""


def read_bytes(body: bytes, most: int) -> bytes:
    """Read CANCEL and ACK (0 bytes at most), PING and PONG (MOST_PING). Raises WireError."""
    if len(body) > most:
        raise WireError(f"{len(body)} bytes; {most} at most")
    return body
