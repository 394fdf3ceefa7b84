"""Records as syslog messages (RFC 5424). MSG is the record's line, byte for byte if it is short enough."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, get_args

import orjson

from hsmcore.audit.query import parsed
from hsmcore.audit.shipping.destination import ShippingError
from hsmcore.audit.shipping.transport import Transport, transport
from hsmcore.base.log import said
from hsmcore.config.audit import Facility, Syslog

_FACILITIES: Final[tuple[str, ...]] = get_args(Facility)
_WARNING, _INFORMATIONAL = 4, 6
_SHOWN: Final = {
    "seq": "seq",
    "operation": "operation",
    "key_id": "keyId",
    "result": "result",
    "error": "error",
    "member": "member",
    "level": "level",
    "user": "user",
    "tag": "tag",
}
"""Fields of a record in STRUCTURED-DATA, and their PARAM-NAMEs there."""
_ESCAPED: Final = re.compile(r'["\\\]]')
_MSGID_MOST: Final = 32


class SyslogDestination:
    """One syslog receiver."""

    kind = "syslog"

    def __init__(self, settings: Syslog) -> None:
        self._settings = settings
        self.identity = settings.address
        self._transport: Transport = transport(settings)
        self.batch_bytes, self.batch_records, self.pause = self._transport.batch
        self.settle_seconds = self._transport.settle_seconds

    def send(self, lines: Sequence[bytes]) -> int:
        """Send a message for each line. Raises ShippingError."""
        with self._said():
            self._transport.send([message(line, self._settings) for line in lines])
        return len(lines)

    def check(self) -> None:
        """Raise ShippingError if the receiver closed the connection."""
        with self._said():
            self._transport.check()

    def finish(self) -> bool:
        """End the connection in order. Return whether the receiver read everything."""
        return self._transport.finish()

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, OverflowError) as error:  # no OSError: a name or a port that cannot exist
            self._transport.close()
            what = said(error) or type(error).__name__
            raise ShippingError(f"{self._settings.address}: {what}") from None

    def interrupt(self) -> None:
        """Abort a `send` that waits. From any thread."""
        self._transport.interrupt()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


def message(line: bytes, settings: Syslog) -> bytes:
    """Return the syslog message of a record's line, of at most `maxMessageBytes`: MSG is the line, or a summary if it
    is too long."""
    record = parsed(line) or {"seq": 0, "time_ns": 0, "operation": "unreadable"}
    head = header(record, settings)
    data = structured(record, settings.enterprise_number)
    whole = head + data + b" " + line
    if len(whole) <= settings.max_message_bytes:
        return whole
    summary = orjson.dumps(
        {
            "seq": record["seq"],
            "time_ns": record["time_ns"],
            "operation": str(record.get("operation"))[:64],
            "leaf_sha256": hashlib.sha256(b"\0" + line).hexdigest(),
            "bytes": len(line),
        }
    )
    few: dict[str, Any] = {name: record.get(name) for name in ("seq", "operation", "result")}
    return head + structured(few, settings.enterprise_number) + b" " + summary


def header(record: Mapping[str, Any], settings: Syslog) -> bytes:
    """Return HEADER, from PRI to MSGID, and the blank after it."""
    failed = record.get("result") not in (None, "ok") or record.get("operation") in ("audit-lost", "clock-step")
    priority = 8 * _FACILITIES.index(settings.facility) + (_WARNING if failed else _INFORMATIONAL)
    source = record.get("source")
    source = source if isinstance(source, dict) else {}
    fields = (
        _timestamp(record["time_ns"]),
        _name(source.get("hostname") or socket.gethostname(), 255),
        settings.app_name,
        _name(source.get("pid"), 128),
        _name(record.get("operation"), _MSGID_MOST),
    )
    return f"<{priority}>1 {' '.join(fields)} ".encode()


def structured(record: Mapping[str, Any], enterprise: int) -> bytes:
    """Return STRUCTURED-DATA: one SD-ELEMENT."""
    found = [
        f' {name}="{_ESCAPED.sub(_escape, str(value))}"'
        for field, name in _SHOWN.items()
        if isinstance(value := record.get(field), (str, int))
    ]
    return f"[hsmcore@{enterprise}{''.join(found)}]".encode("utf-8", "replace")


def _escape(found: re.Match[str]) -> str:
    return "\\" + found[0]


def _timestamp(time_ns: int) -> str:
    try:
        moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    except (ValueError, OverflowError, OSError):
        return "-"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns // 1000 % 1_000_000:06d}Z"


def _name(value: object, most: int) -> str:
    """Return the value as PRINTUSASCII; the NILVALUE "-" if nothing is left."""
    return "".join(c for c in str(value) if "!" <= c <= "~")[:most] or "-" if value is not None else "-"
