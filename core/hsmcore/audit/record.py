"""What a record may say. Names and forms of fields are an allow-list: everything else becomes a digest.

A message is recorded as its SHA-256, which an auditor can compare. Anything that is not on the list may be a secret,
and the plain digest of a PIN is as good as the PIN; so it becomes an HMAC under a key that only this process has.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import pwd
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import orjson

MAX_LINE_BYTES: Final = 65_535
"""Of a line without its newline: what an entry of a tlog-tiles bundle can have."""
_MAX_ITEMS: Final = 256
_MAX_DEPTH: Final = 6

_FIXED: Final = ("seq", "time_ns", "operation")

_digest_key = os.urandom(32)
_tag: ContextVar[str | None] = ContextVar("hsmcore_audit_tag", default=None)


@contextmanager
def tagged(tag: str) -> Iterator[None]:
    """Everything recorded inside carries `tag` (at most 256 characters), such as a batch number of the caller's."""
    token = _tag.set(tag)
    try:
        yield
    finally:
        _tag.reset(token)


def current_tag() -> str | None:
    """The tag that what is recorded now would carry."""
    return _tag.get()


def _text(most: int) -> Callable[[object], object]:
    def check(value: object) -> object:
        if isinstance(value, str) and len(value) <= most and value.isprintable():
            return value
        return redacted(value)

    return check


def _prose(value: object) -> object:
    """What a person wrote or an error said: on one line, and cut."""
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
        "result", "error", "key_id", "previous", "member", "level", "user", "tag", "hostname", "ip", "state", "step",
        "phase", "operation", "command", "algorithm", "label", "from_level", "to_level", "from_member",
        "to_member", "members", "failure", "ckr_name", "call", "module", "library", "token", "kind", "mode",
        "rotation_id", "origin",
        "status", "error_class", "version", "previous_key_id", "new_key_id", "old_key_id", "trigger", "verifier_key",
        "previous_verifier_key", "file", "sudo_user", "serial", "provider", "source_member", "isolation", "approver",
    ),
    **dict.fromkeys(
        (
            "pid", "latency_ns", "cached", "message_bytes", "enforced", "count", "size", "first", "last", "attempt",
            "attempts", "epoch", "remaining", "limit", "ckr", "bytes", "sessions", "valid", "dry_run", "slot_id",
            "from_ns", "to_ns", "records", "in_flight", "extractable", "restored", "duration_ns", "overlap_days",
            "interval_days", "max_transactions", "max_time_seconds", "transactions", "expires_ns", "at_ns", "quorum",
            "failures", "forced", "messages", "signatures", "seconds",
        ),
        _number,
    ),
    **dict.fromkeys(("reason", "why"), _prose),
    **dict.fromkeys(
        (
            "public_key", "previous_public_key", "signature", "message_sha256", "config_sha256", "backup_sha256",
            "sha256", "root",
        ),
        _public_bytes,
    ),
}  # fmt: skip
"""What may stand in a record under which name, at any depth: a check that returns the value or what takes its place."""


def redacted(value: object) -> object:
    """What stands for a value that must not be shown: equal within a process for equal values, and nothing more."""
    raw = isinstance(value, (bytes, bytearray, memoryview))
    data = bytes(value) if raw else repr(value).encode("utf-8", "replace")  # type: ignore[call-overload]  # it is raw
    return "redacted:" + hmac.digest(_digest_key, data, "sha256")[:8].hex()


def _clean(name: str, value: object, depth: int) -> object:
    if isinstance(value, Mapping):
        if depth >= _MAX_DEPTH or len(value) > _MAX_ITEMS:
            return redacted(value)
        return cleaned(value, depth + 1)
    if isinstance(value, (list, tuple)):
        if depth >= _MAX_DEPTH or len(value) > _MAX_ITEMS:
            return redacted(value)
        return [_clean(name, item, depth + 1) for item in value]
    check = ALLOWED.get(name)
    if check is not None:
        return value if value is None else check(value)
    return value if value is None else redacted(value)


_SCALARS: Final = (str, int, bool, float, bytes)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")


def cleaned(fields: Mapping[Any, object], depth: int = 0) -> dict[str, object]:
    """The fields with everything that the list does not allow replaced. A name that is no identifier may itself be the
    secret, so it is replaced too."""
    result: dict[str, object] = {}
    for name, value in fields.items():
        check = ALLOWED.get(name)
        if check is not None and type(value) in _SCALARS:
            result[name] = check(value)  # nearly all there are
            continue
        shown = name if isinstance(name, str) and _NAME.match(name) else str(redacted(name))
        result[shown] = _clean(shown, value, depth)
    return result


def this_process() -> dict[str, Any]:
    """Who records: the fields `user` and `source`."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = f"uid {os.geteuid()}"
    return {"user": user, "source": {"hostname": socket.gethostname()[:256], "pid": os.getpid(), "ip": _address()}}


def _address() -> str:
    """The address this machine would use; connecting a datagram socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: an address that belongs to nobody
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def line(seq: int, time_ns: int, operation: str, fields: Mapping[str, object], origin: Mapping[str, object]) -> bytes:
    """One record as its line, newline included. Never fails, whatever the fields hold. `origin` is trusted."""
    body = cleaned(fields)
    for name in _FIXED:
        body.pop(name, None)
    tag = _tag.get()
    if tag is not None:
        body["tag"] = _clean("tag", tag, 0)
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
    """The end of a line whose beginning the native core writes: from a comma to the closing brace."""
    return b"," + orjson.dumps({**cleaned(fields), **origin})[1:]


def extra() -> bytes | None:
    """What the caller adds to records, as Engine.submit wants it: the tag, or None."""
    value = _tag.get()
    return None if value is None else b"," + orjson.dumps({"tag": _clean("tag", value, 0)})[1:-1]


def _operation(name: str) -> str:
    # By position and by quote is how the scan finds it: it must need no escape.
    return name if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) else "unnamed"
