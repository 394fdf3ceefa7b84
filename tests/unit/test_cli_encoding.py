"""Signatures and keys as text."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import assume, given
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


@given(st.integers(1, 2**256 - 1), st.integers(1, 2**256 - 1))
def test_verify_reads_the_der_of_other_software(r, s):
    der = encode_dss_signature(r, s)
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assume(len(der) not in (32, 64))  # these look like a signature of 64 bytes or digits
    for written in (der, der.hex().encode(), base64.b64encode(der) + b"\n"):
        assert decode_signature(written) == signature


@pytest.mark.parametrize("r", ["020101", "02020001", "020181", "0200", "022200" + "ff" * 33, "0221" + "01" * 33])
def test_der_has_one_form(r):
    body = bytes.fromhex(r + "020102")
    der = b"0" + bytes([len(body)]) + body
    if r == "020101":
        assert decode_signature(der) == bytes(31) + b"\x01" + bytes(31) + b"\x02"
    for wrong in (der + b"\0", der[:-1], b"1" + der[1:], *([der] if r != "020101" else [])):
        with pytest.raises(ValueError, match="not a signature"):
            decode_signature(wrong)


@pytest.mark.parametrize(
    "given_",
    [b"", b"00", b"zz" * 64, SIGNATURE[:63], SIGNATURE + b"\0", b"0OIl" * 22, b"====", "ä".encode() * 32 + b"x"],
)
def test_what_is_no_signature_is_refused(given_):
    with pytest.raises(ValueError, match="not a signature of 64 bytes"):
        decode_signature(given_)
