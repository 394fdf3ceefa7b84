"""The forms of AWS, judged by independent code: botocore for signed requests, cryptography for DER."""

from __future__ import annotations

import datetime
from unittest import mock

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import get_current_datetime
from botocore.credentials import ReadOnlyCredentials
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from tests.support.kms import sigv4
from tests.support.kms.keys import Key
from tests.support.verifiers import is_low_s

from hsmcore.errors.statuses import RETRYABLE_CLASSES, STATUSES
from hsmcore.providers.kms.errors import ROWS, row_for
from hsmcore.providers.kms.forms import FORMS, raw_public_key, raw_signature
from hsmcore.providers.kms.settings import identity_of, name_of
from hsmcore.providers.kms.sigv4 import CONTENT_TYPE, AwsCredentials, Signer

HOST = "kms.eu-central-1.amazonaws.com"
REGION = "eu-central-1"
WORDS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=40)
ECDSA = {spec: form for spec, form in FORMS.items() if form.order}


def parsed(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}


@given(
    key=WORDS,
    secret=WORDS,
    token=st.none() | WORDS,
    body=st.binary(max_size=200),
    moment=st.datetimes(datetime.datetime(2000, 1, 1), datetime.datetime(2100, 1, 1)),  # noqa: DTZ001  # UTC
)
def test_requests_are_signed_as_botocore_signs_them(key, secret, token, body, moment):
    moment = moment.replace(tzinfo=datetime.UTC, microsecond=0)
    head = Signer(REGION, "kms", HOST).head(
        AwsCredentials(key, secret, token), "TrentService.Sign", body, moment.timestamp()
    )
    theirs = AWSRequest(
        "POST",
        f"https://{HOST}/",
        data=body,
        headers={"Content-Type": CONTENT_TYPE, "X-Amz-Target": "TrentService.Sign"},
    )
    with mock.patch(f"botocore.auth.{get_current_datetime.__name__}", return_value=moment):
        SigV4Auth(ReadOnlyCredentials(key, secret, token), "kms", REGION).add_auth(theirs)
    ours = parsed(head)
    assert ours["authorization"] == theirs.headers["Authorization"]
    assert ours["x-amz-date"] == theirs.headers["X-Amz-Date"]
    assert ours.get("x-amz-security-token") == theirs.headers.get("X-Amz-Security-Token")
    assert int(ours["content-length"]) == len(body)
    assert sigv4.refusal({key: secret}, REGION, ours, body) is None
    assert sigv4.refusal({key: secret}, REGION, ours, body + b"x") == "InvalidSignatureException"


def test_the_signing_key_is_derived_again_for_another_day_and_other_credentials():
    signer = Signer(REGION, "kms", HOST)
    day = 86_400.0
    for moment in (0.0, day, 0.0):
        for secret in ("one", "two", "one"):
            credentials = AwsCredentials("key", secret, None)
            fresh = Signer(REGION, "kms", HOST).head(credentials, "t", b"", moment)
            assert signer.head(credentials, "t", b"", moment) == fresh
    assert "one" not in repr(AwsCredentials("key", "one", "one"))


@pytest.mark.parametrize("spec", ECDSA)
@given(data=st.data())
def test_signatures_come_out_of_der_with_low_s(spec, data):
    form = ECDSA[spec]
    r, s = (data.draw(st.integers(1, form.order - 1)) for _ in range(2))
    raw = raw_signature(form, encode_dss_signature(r, s))
    assert raw is not None
    assert int.from_bytes(raw[:32]) == r
    assert int.from_bytes(raw[32:]) in (s, form.order - s)
    assert is_low_s(form.algorithm, raw)


@pytest.mark.parametrize("spec", ECDSA)
@given(der=st.binary(max_size=80) | st.builds(encode_dss_signature, st.integers(0, 2**270), st.integers(0, 2**270)))
def test_what_is_read_is_what_der_would_write(spec, der):
    """Nothing but the one encoding of numbers in range is taken."""
    form = ECDSA[spec]
    raw = raw_signature(form, der)
    if raw is None:
        return
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    assert 0 < r < form.order
    assert der in (encode_dss_signature(r, s), encode_dss_signature(r, form.order - s))


@pytest.mark.parametrize("spec", ECDSA)
@given(at=st.integers(0, 71), change=st.integers(1, 255))
def test_any_changed_byte_of_der_changes_the_signature(spec, at, change):
    form = ECDSA[spec]
    der = bytearray(encode_dss_signature(form.order // 3, form.order // 5))
    before = raw_signature(form, bytes(der))
    der[at % len(der)] ^= change
    assert raw_signature(form, bytes(der)) != before


@pytest.mark.parametrize("spec", FORMS)
def test_public_keys_come_out_of_spki(spec):
    form = FORMS[spec]
    key = Key("arn:aws:kms:eu-central-1:1:key/x", spec)
    raw = raw_public_key(form, key.spki)
    assert raw is not None
    assert len(raw) == form.public_bytes
    assert key.spki.endswith(raw)
    for wrong in (b"", key.spki[:-1], key.spki + b"\0", b"\0" + key.spki, key.spki.replace(raw, b"\x02" + raw[1:])):
        assert raw_public_key(form, wrong) is None or form.algorithm == "ed25519"
    for other in set(FORMS.values()) - {form}:
        assert raw_public_key(other, key.spki) is None


@given(st.uuids() | st.binary(min_size=16, max_size=16).map(lambda data: f"mrk-{data.hex()}"))
def test_ids_go_to_hexadecimal_and_back(name):
    identity = identity_of(f"arn:aws:kms:eu-central-1:111122223333:key/{name}")
    assert identity is not None
    assert identity == identity_of(str(name))
    assert name_of(bytes.fromhex(identity)) == str(name)


@given(st.binary(max_size=40))
def test_no_other_bytes_name_a_key(identity):
    name = name_of(identity)
    if name is not None:
        assert identity_of(name) == identity.hex()


def test_the_table_of_errors_uses_the_table_of_statuses():
    for name, row in ROWS.items():
        error_class = STATUSES[row.status].class_
        if row.then == "retry":
            assert RETRYABLE_CLASSES[error_class], name
        if row.then == "refused":
            assert error_class == "AUTH_FATAL", name
    assert row_for("Unheard", 500).then == "retry"
    assert row_for("Unheard", 403).status == "ACCESS_DENIED"
    assert row_for("Unheard", 400).then == "fail"
