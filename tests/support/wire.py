"""Frames of hsmcore-wire/1 as values that JSON can hold, and back: for the golden vectors and the fuzzer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hsmcore.base.receipt import Receipt
from hsmcore.gateway.wire import batched
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Flag, Frame, Type, frame, labelled, traced, unlabelled, untraced


class Signed(NamedTuple):
    """What a SIGNED says."""

    version: int
    level: str
    audit_seq: int | None
    signature: bytes


class Placed(NamedTuple):
    """What a BATCHED says."""

    audit_seq: int | None
    key_id: str
    public_key: bytes
    proof: bytes


def read_batched(body: bytes) -> Placed:
    """Read BATCHED."""
    return Placed(*batched.read_batched(body))


def read_signed(body: bytes) -> Signed:
    """Read SIGNED."""
    return Signed(*wire.read_signed(body))


def signed(
    number: int, signature: bytes = bytes(64), version: int = 1, level: str = "", seq: int | None = None, **more: Any
) -> bytes:
    """A SIGNED. `more`: of wire.signed."""
    return wire.signed(number, version, Receipt(signature, "00", b"key", "member", level, False, 1, seq), **more)


def placed(number: int, audit_seq: int | None, key_id: str, public_key: bytes, proof: bytes, **more: Any) -> bytes:
    """A BATCHED. `more`: of batched.batched."""
    one = batched.ClientBatchedSignature(proof, 0, b"", key_id, public_key, audit_seq)
    return batched.batched(number, one, **more)


def _credit(one: Frame) -> int:
    return wire.read_credit(one.body)


def _empty(one: Frame) -> bytes:
    return wire.read_bytes(one.body, 0)


def _echo(one: Frame) -> bytes:
    return wire.read_bytes(one.body, wire.MOST_PING)


READERS: dict[Type, Callable[[Frame], Any]] = {
    Type.HELLO: lambda one: wire.read_hello(one.body),
    Type.SIGN: wire.read_sign,
    Type.SIGN_MANY: lambda one: wire.read_sign_many(one.body),
    Type.SIGN_BATCHED: lambda one: batched.read_sign_batched(one.body),
    Type.VERIFY: lambda one: wire.read_verify(one.body),
    Type.CANCEL: _empty,
    Type.ACK: _empty,
    Type.PING: _echo,
    Type.MANAGE: lambda one: wire.read_manage(one.body),
    Type.WELCOME: lambda one: wire.read_welcome(one.body),
    Type.SIGNED: lambda one: read_signed(one.body),
    Type.SIGNED_MANY: lambda one: wire.read_signed_many(one.body),
    Type.BATCHED: lambda one: read_batched(one.body),
    Type.VERIFIED: lambda one: wire.read_verified(one.body),
    Type.PONG: _echo,
    Type.ERROR: lambda one: wire.read_error(one.body),
    Type.KEYS: lambda one: wire.read_keys(one.body),
    Type.CREDIT: _credit,
    Type.GOAWAY: lambda one: wire.read_goaway(one.body),
    Type.DONE: lambda one: wire.read_text(one.body),
}


def read(one: Frame) -> Any:
    """What the frame says. Raises WireError."""
    rest = untraced(one)[0] if one.flags & Flag.TRACED else one
    return READERS[one.type](unlabelled(rest)[0] if rest.flags & Flag.LABELLED else rest)


def encoded(one: Frame) -> bytes:
    """The frame's bytes, made of what it says."""
    if one.flags & Flag.TRACED:
        rest, parent = untraced(one)
        return traced(encoded(rest), parent)
    if one.flags & Flag.LABELLED:
        rest, label = unlabelled(one)
        return labelled(encoded(rest), label)
    found, kind, request, slot, again = read(one), one.type, one.request, one.slot, bool(one.flags & Flag.AGAIN)
    if kind is Type.SIGN:
        return wire.sign(request, found, slot=slot, again=again)
    if kind is Type.SIGN_MANY:
        return wire.sign_many(request, found, slot=slot, again=again)
    if kind is Type.SIGN_BATCHED:
        return batched.sign_batched(request, found, slot=slot, again=again)
    made = {
        Type.HELLO: lambda: wire.hello(*found),
        Type.VERIFY: lambda: wire.verify(request, found, slot=slot, digest=bool(one.flags & Flag.DIGEST)),
        Type.MANAGE: lambda: wire.manage(request, found, slot=slot),
        Type.WELCOME: lambda: wire.welcome(found),
        Type.SIGNED: lambda: signed(request, found.signature, *found[:3], slot=slot),
        Type.SIGNED_MANY: lambda: wire.signed_many(request, *found, slot=slot),
        Type.BATCHED: lambda: placed(request, *found, slot=slot),
        Type.VERIFIED: lambda: wire.verified(request, found),
        Type.ERROR: lambda: wire.error(request, found),
        Type.KEYS: lambda: wire.keys(found),
        Type.CREDIT: lambda: wire.credit(found),
        Type.GOAWAY: lambda: wire.goaway(*found),
        Type.DONE: lambda: frame(Type.DONE, request, found.encode()),
    }
    return made[kind]() if kind in made else frame(kind, request, found)


def _error(found: wire.Refusal) -> dict[str, Any]:
    fields = found._asdict()
    fields["class"] = fields.pop("error_class")
    return fields


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}


def _keys(listed: tuple[wire.Key, ...]) -> list[dict[str, Any]]:
    return [_plain(key._asdict()) for key in listed]


def _text(number: int | None) -> str | None:
    """Numbers of 64 bits are strings: JavaScript's own have 53."""
    return None if number is None else str(number)


def _outcomes(found: tuple[int, list[bytes | wire.Refusal]]) -> dict[str, Any]:
    version, outcomes = found
    said = [{"signature": each.hex()} if isinstance(each, bytes) else {"error": _error(each)} for each in outcomes]
    return {"version": version, "outcomes": said}


def meaning(one: Frame) -> dict[str, Any]:
    """The frame's meaning, as tests/wire/vectors.json says it. Raises WireError."""
    found, again = read(one), {"again": bool(one.flags & Flag.AGAIN)}
    said: dict[Type, Callable[[], dict[str, Any]]] = {
        Type.SIGN: lambda: _plain(found._asdict()) | {"position": _text(found.position)} | again,
        Type.SIGN_MANY: lambda: found._asdict() | {"messages": [each.hex() for each in found.messages]} | again,
        Type.SIGN_BATCHED: lambda: _plain(found._asdict()) | again,
        Type.BATCHED: lambda: _plain(found._asdict()) | {"audit_seq": _text(found.audit_seq)},
        Type.WELCOME: lambda: _plain(found._asdict()) | {"slots": list(found.slots), "keys": _keys(found.keys)},
        Type.SIGNED: lambda: _plain(found._asdict()) | {"audit_seq": _text(found.audit_seq)},
        Type.SIGNED_MANY: lambda: _outcomes(found),
        Type.ERROR: lambda: _error(found),
        Type.GOAWAY: lambda: {"left_ms": found[0], "reason": found[1]},
        Type.KEYS: lambda: {"keys": _keys(found)},
        Type.CANCEL: dict,
        Type.ACK: dict,
        Type.PING: lambda: {"data": found.hex()},
        Type.PONG: lambda: {"data": found.hex()},
        Type.VERIFIED: lambda: {"valid": found},
        Type.CREDIT: lambda: {"credits": found},
        Type.DONE: lambda: {"text": found},
    }
    plain = said[one.type]() if one.type in said else _plain(found._asdict())
    if one.flags & Flag.TRACED:
        trace_id, span_id, flags = untraced(one)[1]
        plain["traceparent"] = f"00-{trace_id.hex()}-{span_id.hex()}-{flags:02x}"
        one = untraced(one)[0]
    if one.flags & Flag.LABELLED:
        label = unlabelled(one)[1]
        plain |= {"request_id": label.request_id.hex(), "peer": label.peer}
    if one.flags & Flag.DIGEST:
        plain["digest"] = True
    return plain
