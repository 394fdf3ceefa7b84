"""`traceparent` of W3C Trace Context, version 00: which trace a request belongs to, as text and as bytes."""

from __future__ import annotations

import re
import sys
from typing import Final, NamedTuple

_FORM: Final = r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})"
_TRACE_BYTES: Final = 16
TRACE_BYTES: Final = _TRACE_BYTES + 8 + 1
"""Of `packed`."""


class TraceParent(NamedTuple):
    """The caller's span. Trace id of 16 bytes and span id of 8, of which neither is zero, and the trace flags."""

    trace_id: bytes
    span_id: bytes
    flags: int

    @classmethod
    def unpacked(cls, data: bytes) -> TraceParent | None:
        """Return what `packed` made; None for anything else."""
        found = cls(data[:_TRACE_BYTES], data[_TRACE_BYTES:-1], data[-1]) if len(data) == TRACE_BYTES else None
        return found if found is not None and any(found.trace_id) and any(found.span_id) else None

    @classmethod
    def parsed(cls, text: str) -> TraceParent | None:
        """Return what a header says; None for what is no valid one of version 00, which the standard ignores."""
        found = re.fullmatch(_FORM, text)
        return None if found is None else cls.unpacked(bytes.fromhex("".join(found.groups())))

    @classmethod
    def current(cls) -> TraceParent | None:
        """Return OpenTelemetry's current span. None where there is none, or the application does not use it."""
        trace = sys.modules.get("opentelemetry.trace")
        if trace is None:
            return None
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return None
        return cls(context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big"), int(context.trace_flags))

    @property
    def packed(self) -> bytes:
        """As TRACE_BYTES bytes."""
        return self.trace_id + self.span_id + bytes((self.flags,))
