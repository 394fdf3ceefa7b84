"""What the frames of hsmcore-wire/1 say, as bytes and as values. docs/WIRE.md is the specification."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, NamedTuple

from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError, NotHolder
from hsmcore.gateway.wire.fields import U16, Fields, bytes16, named, reading, text8
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
_SIGNED_MANY: Final = Struct("<IH")
_SIGNED_FRAME: Final = Struct("<IBBHQIBQ")
"""A whole frame but for the signature: the answer that is made most often."""
_SIGNED_TYPE: Final = int(Type.SIGNED)
_ERROR: Final = Struct("<BI")
_GOAWAY: Final = Struct("<I")
_LIMITS: Final = Struct("<IIHI")
_KEY: Final = Struct("<HIBB")
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


def _require_version(fields: Fields) -> None:
    (found,) = fields.take(U16)
    if found != VERSION:
        raise WireError(f"version {found} of the protocol; this is {VERSION}")


def _read_keys(fields: Fields) -> tuple[Key, ...]:
    return tuple(_read_key(fields) for _ in range(*fields.take(U16)))


def _read_key(fields: Fields) -> Key:
    slot, version, state, algorithm = fields.take(_KEY)
    if state > 1 or not algorithm:
        raise WireError(f"state {state}, algorithm {algorithm} of a key")
    key_id, public_key, (kinds,) = fields.text8(), fields.bytes8(), fields.take(U16)
    return Key(slot, version, bool(state), named(ALGORITHMS, algorithm), key_id, public_key, kinds)


def hello(nonce: bytes, program: str) -> bytes:
    """Return HELLO. `nonce`: NONCE_BYTES bytes; `program`: at most 64 bytes."""
    return frame(Type.HELLO, body=U16.pack(VERSION) + nonce + text8(program))


def read_hello(body: bytes) -> Hello:
    """Read HELLO. Raises WireError, also for another version."""
    with reading():
        fields = Fields(body)
        _require_version(fields)
        found = Hello(fields.raw(NONCE_BYTES), fields.text8())
        fields.end()
        return found


def welcome(one: Welcome) -> bytes:
    """Return WELCOME."""
    limits = _LIMITS.pack(one.credits, one.message_bytes, one.batch, one.remember_ms)
    slots = U16.pack(len(one.slots)) + b"".join(map(text8, one.slots))
    body = (U16.pack(VERSION), one.instance, limits, text8(one.client), slots, _keys(one.keys))
    return frame(Type.WELCOME, body=b"".join(body))


def read_welcome(body: bytes) -> Welcome:
    """Read WELCOME. Raises WireError."""
    with reading():
        fields = Fields(body)
        _require_version(fields)
        instance = fields.raw(NONCE_BYTES)
        most, size, batch, remember = fields.take(_LIMITS)
        client = fields.text8()
        slots = tuple(fields.text8() for _ in range(*fields.take(U16)))
        found = Welcome(instance, most, size, batch, remember, client, slots, _read_keys(fields))
        fields.end()
        return found


def keys(listed: Sequence[Key]) -> bytes:
    """Return KEYS."""
    return frame(Type.KEYS, body=_keys(listed))


def read_keys(body: bytes) -> tuple[Key, ...]:
    """Read KEYS. Raises WireError."""
    with reading():
        fields = Fields(body)
        found = _read_keys(fields)
        fields.end()
        return found


def _keys(listed: Sequence[Key]) -> bytes:
    parts = [U16.pack(len(listed))]
    for key in listed:
        head = _KEY.pack(key.slot, key.version, key.current, ALGORITHMS.index(key.algorithm))
        parts.append(head + text8(key.id) + bytes((len(key.public_key),)) + key.public_key + U16.pack(key.kinds))
    return b"".join(parts)


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
    with reading():
        kind, timeout, version, count = _MANY.unpack_from(body)
        messages, end = list[bytes](), _MANY.size
        for _ in range(count):  # without Fields: a batch has many
            (size,) = _LENGTH.unpack_from(body, end)
            begin, end = end + _LENGTH.size, end + _LENGTH.size + size
            messages.append(body[begin:end])
        if end != len(body):
            raise WireError("a field ends behind the frame" if end > len(body) else "bytes behind the last field")
        return SignMany(kind_of(kind), timeout, version, messages)


def verify(request: int, one: Verify, *, slot: int = 0, digest: bool = False) -> bytes:
    """Return VERIFY. `digest`: the message is one."""
    body = text8(one.key_id) + bytes16(one.signature) + one.message
    return frame(Type.VERIFY, request, body, slot=slot, flags=Flag.DIGEST if digest else 0)


def read_verify(body: bytes) -> Verify:
    """Read VERIFY. Raises WireError."""
    with reading():
        fields = Fields(body)
        return Verify(fields.text8(), fields.bytes16(), fields.rest())


def manage(request: int, one: Manage, *, slot: int = 0) -> bytes:
    """Return MANAGE."""
    return frame(Type.MANAGE, request, bytes((OPERATIONS.index(one.operation),)) + text8(one.key_id), slot=slot)


def read_manage(body: bytes) -> Manage:
    """Read MANAGE. Raises WireError."""
    with reading():
        fields = Fields(body)
        found = Manage(named(OPERATIONS, fields.raw(1)[0]), fields.text8())
        fields.end()
        if not found.operation:
            raise WireError("no operation")
        return found


def signed(request: int, version: int, one: Receipt, *, slot: int = 0) -> bytes:
    """Return SIGNED. `version`: of the key that the receipt names."""
    signature, level = one.signature, LEVEL_NUMBERS.get(one.level, 0)
    seq = NO_RECORD if one.audit_seq is None else one.audit_seq
    length = MIN_BYTES + _SIGNED.size + len(signature)
    return _SIGNED_FRAME.pack(length, _SIGNED_TYPE, 0, slot, request, version, level, seq) + signature


def read_signed(body: bytes) -> tuple[int, str, int | None, bytes]:
    """Read SIGNED: version, level, number of the record or None, signature. Raises WireError."""
    try:
        version, level, record = _SIGNED.unpack_from(body)
    except struct_error as error:
        raise WireError(str(error)) from None
    return version, named(LEVELS, level), None if record == NO_RECORD else record, body[_SIGNED.size :]


def signed_many(request: int, version: int, outcomes: Sequence[bytes | Refusal], *, slot: int = 0) -> bytes:
    """Return SIGNED_MANY, with an outcome for each message."""
    parts = [_SIGNED_MANY.pack(version, len(outcomes))]
    for outcome in outcomes:
        bad, data = (b"\0", outcome) if isinstance(outcome, bytes) else (b"\1", _refusal(outcome))
        parts += bad, U16.pack(len(data)), data
    return frame(Type.SIGNED_MANY, request, b"".join(parts), slot=slot)


def read_signed_many(body: bytes) -> tuple[int, list[bytes | Refusal]]:
    """Read SIGNED_MANY: the version, and an outcome for each message. Raises WireError."""
    with reading():
        fields, outcomes = Fields(body), list[bytes | Refusal]()
        version, count = fields.take(_SIGNED_MANY)
        for _ in range(count):
            bad, outcome = fields.raw(1)[0], fields.bytes16()
            if bad > 1:
                raise WireError(f"outcome {bad}")
            outcomes.append(read_error(outcome) if bad else outcome)
        fields.end()
        return version, outcomes


def error(request: int, one: Refusal) -> bytes:
    """Return ERROR."""
    return frame(Type.ERROR, request, _refusal(one))


def _refusal(one: Refusal) -> bytes:
    flags = (Fault.RETRYABLE if one.retryable else 0) | (Fault.MAYBE_SIGNED if one.maybe_signed else 0)
    text = one.text.encode()[:MOST_TEXT].decode(errors="ignore") + (_HOLDER + one.holder if one.holder else "")
    return _ERROR.pack(flags, one.retry_after_ms) + text8(one.status) + text8(one.error_class) + bytes16(text.encode())


def read_error(body: bytes) -> Refusal:
    """Read what ERROR, or an outcome of SIGNED_MANY, says. Raises WireError."""
    with reading():
        fields = Fields(body)
        flags, retry_after = fields.take(_ERROR)
        if flags > Fault.RETRYABLE | Fault.MAYBE_SIGNED:
            raise WireError(f"flags {flags:#x} of an error")
        status, error_class, text = fields.text8(), fields.text8(), fields.bytes16().decode()
        fields.end()
        retryable, maybe = bool(flags & Fault.RETRYABLE), bool(flags & Fault.MAYBE_SIGNED)
        text, _, holder = text.partition(_HOLDER) if status == _HELD else (text, "", "")
        return Refusal(retryable, maybe, retry_after, status, error_class, text, holder)


def goaway(left_ms: int, reason: str) -> bytes:
    """Return GOAWAY."""
    return frame(Type.GOAWAY, body=_GOAWAY.pack(left_ms) + text8(reason))


def read_goaway(body: bytes) -> tuple[int, str]:
    """Read GOAWAY: milliseconds that are left, and why. Raises WireError."""
    with reading():
        fields = Fields(body)
        (left,) = fields.take(_GOAWAY)
        reason = fields.text8()
        fields.end()
        return left, reason


def verified(request: int, valid: bool) -> bytes:
    """Return VERIFIED."""
    return frame(Type.VERIFIED, request, bytes((valid,)))


def pong(request: int, sent: bytes) -> bytes:
    """Return PONG."""
    return frame(Type.PONG, request, sent)


def done(request: int, text: str) -> bytes:
    """Return DONE."""
    return frame(Type.DONE, request, text.encode())


def credit(number: int) -> bytes:
    """Return CREDIT."""
    return frame(Type.CREDIT, body=_LENGTH.pack(number))


def read_number(body: bytes, size: int) -> int:
    """Read a body of one number: VERIFIED (1 byte), CREDIT (4). Raises WireError."""
    if len(body) != size or (size == 1 and body[0] > 1):
        raise WireError(f"{len(body)} bytes that are no number of {size}")
    return int.from_bytes(body, "little")


def read_bytes(body: bytes, most: int) -> bytes:
    """Read CANCEL and ACK (0 bytes at most), PING and PONG (MOST_PING). Raises WireError."""
    if len(body) > most:
        raise WireError(f"{len(body)} bytes; {most} at most")
    return body


def read_text(body: bytes) -> str:
    """Read DONE. Raises WireError."""
    with reading():
        return body.decode()
