"""One record as its line of JSON. An allow-list has the names and forms of fields; every other value is redacted.

A message is recorded as its SHA-256, which an auditor can compare. A value that is not on the list may be a secret, and
a plain digest of a PIN reveals the PIN; so it becomes an HMAC under a key that only this process has.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, Token
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from hsmcore.base.ownership import user_name
from hsmcore.errors import InternalError

MAX_LINE_BYTES: Final = 65_535
"""Longest line, without its newline: an entry of a tlog-tiles bundle has a 16-bit length."""
_MAX_ITEMS: Final = 256
_MAX_DEPTH: Final = 6

_FIXED: Final = ("seq", "time_ns", "operation")
_EVIDENCE: Final = ("domain", "position")

_digest_key = os.urandom(32)


class _Labels(NamedTuple):
    """What a context adds to its records, beside the caller."""

    tag: str | None = None
    trace_id: str | None = None
    request_id: str | None = None


_labels: ContextVar[_Labels | None] = ContextVar("hsmcore_audit_labels", default=None)
_caller: ContextVar[str | None] = ContextVar("hsmcore_caller", default=None)


class _Via(NamedTuple):
    said: dict[str, object]
    text: bytes
    """As members of a record, to which a request has only to add its number."""
    whole: bytes
    """And the caller before it: all that a request without labels adds."""
    numbered: bool
    """Whether its requests have numbers: those of a connection have."""


_via: ContextVar[_Via | None] = ContextVar("hsmcore_audit_via", default=None)
_request: ContextVar[int] = ContextVar("hsmcore_audit_request", default=0)
come_as: Final = _request.set
"""Say in the records of the present context, until the next one, which number the request has on its way."""


@contextmanager
def tagged(tag: str) -> Iterator[None]:
    """Tag every record that is written inside with `tag` (at most 256 characters), such as the caller's batch
    number."""
    token = label(tag=tag)
    try:
        yield
    finally:
        _labels.reset(token)


@contextmanager
def traced(trace_id: str) -> Iterator[None]:
    """Say in every record that is written inside to which trace it belongs: 32 hexadecimal digits."""
    token = label(trace_id=trace_id)
    try:
        yield
    finally:
        _labels.reset(token)


def label(**more: str) -> Token[_Labels | None]:
    """Add to every record of the present context, until it ends: some of `tag`, `trace_id` and `request_id`."""
    return _labels.set((_labels.get() or _Labels())._replace(**more))


@contextmanager
def caller(name: str) -> Iterator[None]:
    """Say who asks for the signatures inside (a name of `policy.callers`; at most 256 characters). Every record that is
    written inside has it. It is the word of this process's own code, in tasks that begin inside too."""
    token = _caller.set(name)
    try:
        yield
    finally:
        _caller.reset(token)


def caller_context(name: str) -> Context:
    """Return a separate context for a caller's requests: code that runs in it is as within `caller`."""
    made = Context()
    made.run(_caller.set, name)
    return made


def come_by(way: Mapping[str, object]) -> None:
    """Say in every record of the present context, whose caller is known, by which way the request came: `peer`, `pid`,
    `connection`."""
    said = cleaned(way)
    text = b',"via":' + orjson.dumps(said)[:-1]
    _via.set(_Via(said, text, (_extra_of(None, _caller.get()) or b"") + text, "connection" in said))


def current_caller() -> str | None:
    """Return the caller of the present context; None if it is not said."""
    return _caller.get()


def _text(most: int) -> Callable[[object], object]:
    def check(value: object) -> object:
        if isinstance(value, str) and len(value) <= most and value.isprintable():
            return value
        return redacted(value)

    return check


def _prose(value: object) -> object:
    """Return free text, of a person or an error, on one line and cut to 512 characters."""
    if not isinstance(value, str):
        return redacted(value)
    return "".join(c if c.isprintable() else " " for c in value)[:512]


def _number(value: object) -> object:
    if value is None or isinstance(value, bool) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 64):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return redacted(value)


_HEX = re.compile(r"[0-9a-f]{0,8192}\Z")


def _public_bytes(value: object) -> object:
    if isinstance(value, (bytes, bytearray, memoryview)) and len(value) <= 4096:
        return bytes(value).hex()
    return value if value is None or (isinstance(value, str) and _HEX.match(value)) else redacted(value)


def _words(*names: str) -> dict[str, Callable[[object], object]]:
    return dict.fromkeys(names, _text(256))


ALLOWED: Final[dict[str, Callable[[object], object]]] = {
    **_words(
        "result",
        "error",
        "key_id",
        "previous",
        "member",
        "level",
        "user",
        "tag",
        "trace_id",
        "request_id",
        "caller",
        "peer",
        "domain",
        "holder",
        "hostname",
        "ip",
        "state",
        "step",
        "phase",
        "operation",
        "command",
        "algorithm",
        "label",
        "from_level",
        "to_level",
        "from_member",
        "to_member",
        "members",
        "failure",
        "ckr_name",
        "call",
        "module",
        "library",
        "token",
        "kind",
        "mode",
        "rotation_id",
        "origin",
        "status",
        "error_class",
        "version",
        "previous_key_id",
        "new_key_id",
        "old_key_id",
        "trigger",
        "verifier_key",
        "previous_verifier_key",
        "file",
        "sudo_user",
        "serial",
        "provider",
        "source_member",
        "isolation",
        "approver",
        "scope",
        "manager",
        "state_store",
        "mark",
    ),
    **dict.fromkeys(
        (
            "pid",
            "connection",
            "request",
            "latency_ns",
            "cached",
            "message_bytes",
            "enforced",
            "count",
            "size",
            "first",
            "last",
            "position",
            "attempt",
            "attempts",
            "epoch",
            "remaining",
            "limit",
            "ckr",
            "bytes",
            "sessions",
            "valid",
            "dry_run",
            "slot_id",
            "from_ns",
            "to_ns",
            "records",
            "in_flight",
            "extractable",
            "restored",
            "duration_ns",
            "overlap_days",
            "interval_days",
            "max_transactions",
            "max_time_seconds",
            "transactions",
            "expires_ns",
            "at_ns",
            "quorum",
            "failures",
            "forced",
            "messages",
            "signatures",
            "seconds",
            "incident",
            "state_store_id",
        ),
        _number,
    ),
    **dict.fromkeys(("reason", "why"), _prose),
    **dict.fromkeys(
        (
            "public_key",
            "previous_public_key",
            "signature",
            "message_sha256",
            "config_sha256",
            "backup_sha256",
            "evidence_sha256",
            "sha256",
            "root",
            "mac",
        ),
        _public_bytes,
    ),
}
"""Check of each field that may be shown, at any depth: it returns the value, or what replaces it."""


def redacted(value: object) -> object:
    """Return a keyed digest that replaces a value: equal values have equal digests within one process."""
    raw = isinstance(value, (bytes, bytearray, memoryview))
    data = bytes(value) if raw else repr(value).encode("utf-8", "replace")  # type: ignore[call-overload]  # `raw`: bytes-like
    return "redacted:" + hmac.digest(_digest_key, data, "sha256")[:8].hex()


def _clean(name: str, value: object, depth: int) -> object:
    if isinstance(value, (Mapping, list, tuple)):
        if depth >= _MAX_DEPTH or len(value) > _MAX_ITEMS:
            return redacted(value)
        if isinstance(value, Mapping):
            return cleaned(value, depth + 1)
        return [_clean(name, item, depth + 1) for item in value]
    return value if value is None else ALLOWED.get(name, redacted)(value)


_SCALARS: Final = (str, int, bool, float, bytes)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")


def cleaned(fields: Mapping[Any, object], depth: int = 0) -> dict[str, object]:
    """Return the fields with every value that the list does not allow redacted. A name that is not an identifier may
    itself be a secret, so it is redacted too."""
    result: dict[str, object] = {}
    for name, value in fields.items():
        check = ALLOWED.get(name)
        if check is not None and type(value) in _SCALARS:
            result[name] = check(value)  # the fast path: nearly all fields
            continue
        shown = name if isinstance(name, str) and _NAME.match(name) else str(redacted(name))
        result[shown] = _clean(shown, value, depth)
    return result


def this_process() -> dict[str, Any]:
    """Return the origin of this process's records: the fields `user` and `source`."""
    source = {"hostname": socket.gethostname()[:256], "pid": os.getpid(), "ip": _address()}
    return {"user": user_name(os.geteuid()), "source": source}


def _address() -> str:
    """Return this machine's address on its default route; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: a documentation address
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def line(seq: int, time_ns: int, operation: str, fields: Mapping[str, object], origin: Mapping[str, object]) -> bytes:
    """Return one record as its line, newline included. Never fails: a record that does not fit becomes "unrecordable".
    `origin` is not redacted."""
    body = cleaned(fields)
    for name in _FIXED:
        body.pop(name, None)
    body |= _context()
    whole = {"seq": seq, "time_ns": time_ns, "operation": _operation(operation), **body, **origin}
    try:
        text = orjson.dumps(whole)
    except TypeError:
        text = b""
    if not text or len(text) > MAX_LINE_BYTES:
        kept = {name: whole[name] for name in _FIXED}
        text = orjson.dumps({**kept, "result": "unrecordable", "sha256": hashlib.sha256(text).hexdigest(), **origin})
    return text + b"\n"


def tail(fields: Mapping[str, object], origin: Mapping[str, object]) -> bytes:
    """Return the end of a line whose beginning the native core writes: from a comma to the closing brace."""
    return b"," + orjson.dumps({**cleaned(fields), **origin})[1:]


def extra(**fields: object) -> bytes | None:
    """Return what the context adds to each record, and these fields, in the form that Engine.submit takes; None for
    none. Raises InternalError where what a start compares with the state store would be redacted."""
    if not fields:
        labels, way = _labels.get(), _via.get()
        if way is None:
            return _extra_of(labels, _caller.get())
        number = _request.get() if way.numbered else 0
        known = way.whole if labels is None else (_extra_of(labels, _caller.get()) or b"") + way.text
        return b'%b,"request":%d}' % (known, number) if number else known + b"}"
    shown = cleaned(fields)
    if any(shown.get(name) != fields.get(name) for name in _EVIDENCE):
        raise InternalError("a position cannot be recorded as it is")
    return b"," + orjson.dumps(shown | _context())[1:-1]


@lru_cache(maxsize=256)  # a gateway's clients are few, and each has many requests
def _extra_of(labels: _Labels | None, caller: str | None) -> bytes | None:
    shown = _shown(labels, caller)
    return b"," + orjson.dumps(shown)[1:-1] if shown else None


def _context() -> dict[str, object]:
    """Return the fields that the context adds to each record."""
    shown, way, number = _shown(_labels.get(), _caller.get()), _via.get(), _request.get()
    if way is not None:
        shown["via"] = way.said | ({"request": number} if number and way.numbered else {})
    return shown


def _shown(labels: _Labels | None, caller: str | None) -> dict[str, object]:
    found = {**dict(zip(_Labels._fields, labels or (), strict=False)), "caller": caller}
    return {name: _clean(name, value, 0) for name, value in found.items() if value is not None}


def _operation(name: str) -> str:
    # The native scan finds it by position and by its closing quote, so it must need no escape.
    return name if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) else "unnamed"
