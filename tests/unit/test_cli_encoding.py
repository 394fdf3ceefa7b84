"""Signatures and keys as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmcore.cli.encoding import base58, decode_signature, encode, from_base58

SIGNATURE = bytes(range(64))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\0", "1"),
        (bytes(32), "1" * 32),  # the system program's address
        (b"Hello World!", "2NEpo7TZRRrLZSi2U"),  # draft-msporny-base58, section 5
        (bytes.fromhex("0000287fb4cd"), "11233QC4"),
    ],
)
def test_base58_vectors(data, text):
    assert base58(data) == text
    assert from_base58(text) == data


@given(st.binary(max_size=70))
def test_base58_is_reversible(data):
    assert from_base58(base58(data)) == data


@given(st.binary(min_size=64, max_size=64), st.sampled_from(["hex", "base64", "base58"]))
def test_verify_reads_what_sign_prints(signature, form):
    printed = encode(signature, form).encode()
    assert decode_signature(printed) == signature
    assert decode_signature(printed + b"\n") == signature
    assert decode_signature(signature) == signature


@pytest.mark.parametrize(
    "given_",
    [b"", b"00", b"zz" * 64, SIGNATURE[:63], SIGNATURE + b"\0", b"0OIl" * 22, b"====", "ä".encode() * 32 + b"x"],
)
def test_what_is_no_signature_is_refused(given_):
    with pytest.raises(ValueError, match="not a signature of 64 bytes"):
        decode_signature(given_)
