"""`traceparent`: what is one, as text and as bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hsmcore.base.traceparent import TRACE_BYTES, TraceParent
from hsmcore.gateway.vault.text import parent

TEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
spans = st.builds(
    TraceParent,
    st.binary(min_size=16, max_size=16).filter(any),
    st.binary(min_size=8, max_size=8).filter(any),
    st.integers(0, 255),
)


@given(spans)
def test_text_and_bytes_say_the_same(span):
    text = f"00-{span.trace_id.hex()}-{span.span_id.hex()}-{span.flags:02x}"
    assert TraceParent.parsed(text) == TraceParent.unpacked(span.packed) == span
    assert len(span.packed) == TRACE_BYTES
    for other in (
        text.upper(),
        f"01{text[2:]}",
        f"{text}-",
        f"{text}\n",
        f" {text}",
        text[:-1],
        text.replace("-", "_"),
    ):
        assert other == text or TraceParent.parsed(other) is None
    for data in (span.packed[:-1], span.packed + b"\0", bytes(16) + span.packed[16:], span.packed[:16] + bytes(9)):
        assert TraceParent.unpacked(data) is None


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_any_other_text_is_none(text):
    assert TraceParent.parsed(text) is None


def test_two_headers_are_none():
    assert parent([TEXT]) == TraceParent.parsed(TEXT) is not None
    assert parent([]) is None
    assert parent([TEXT, TEXT]) is None
