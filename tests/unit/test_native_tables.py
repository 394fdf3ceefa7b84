"""The native core's tables and its small parts, as Python sees them."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from tests.support.size import share
from tests.support.verifiers import CURVES, Curve

from hsmcore import _native
from hsmcore.config.pkcs11 import Quirks
from hsmcore.errors import EXCEPTION_OF_STATUS, BadArgument, InvalidMessage, error_of
from hsmcore.errors.statuses import RETRYABLE_CLASSES, STATUSES

INCLUDE = Path(__file__).parents[2] / "native" / "include" / "hsmcore"


# ---- statuses --------------------------------------------------------------------------------------------------------


def test_the_statuses_are_those_of_the_file_in_its_order():
    source = (INCLUDE / "status.def").read_text()
    rows = re.findall(r'^HSM_STATUS\((\w+), (\w+), "([^"]*)"\)', source, re.MULTILINE)
    assert len(rows) > 30
    assert _native.statuses() == rows


def test_python_has_the_same_statuses_classes_and_texts():
    native = {name: (class_, text) for name, class_, text in _native.statuses()}
    assert native == {name: (row.class_, row.text) for name, row in STATUSES.items()}
    assert {class_ for class_, _ in native.values()} <= RETRYABLE_CLASSES.keys()


def test_every_status_becomes_its_exception():
    for name, _, text in _native.statuses():
        error = error_of(name, member="m", call="C_Sign", ckr=5, ckr_name="CKR_GENERAL_ERROR")
        assert type(error) is EXCEPTION_OF_STATUS[name]
        assert error.status == name
        assert text in str(error)


def test_every_ckr_leads_to_a_status():
    rows = _native.ckr_table()
    known = {name for name, _, _ in _native.statuses()}
    assert len(rows) > 60
    assert len({ckr for ckr, _, _ in rows}) == len({name for _, name, _ in rows}) == len(rows)
    assert {status for _, _, status in rows} <= known
    table = {name: (ckr, status) for ckr, name, status in rows}
    assert table["CKR_PIN_INCORRECT"] == (0xA0, "PIN_INCORRECT")
    assert table["CKR_PIN_LOCKED"] == (0xA4, "PIN_LOCKED")
    assert table["CKR_DEVICE_REMOVED"] == (0x32, "TOKEN_LOST")
    assert table["CKR_SESSION_HANDLE_INVALID"] == (0xB3, "SESSION_LOST")
    assert table["CKR_USER_NOT_LOGGED_IN"] == (0x101, "NOT_LOGGED_IN")


def test_pin_errors_are_never_retried():
    for _, name, status in _native.ckr_table():
        if "PIN" in name:
            assert not RETRYABLE_CLASSES[STATUSES[status].class_], name


def test_the_quirks_are_those_of_the_configuration():
    assert set(_native.quirks()) == set(get_args(Quirks))


# ---- verification ----------------------------------------------------------------------------------------------------


def sign_ecdsa(curve: Curve, secret: int, message: bytes, nonce: int) -> tuple[int, int]:
    point = curve.combine(nonce, 0, curve.g)
    assert point is not None
    r = point[0] % curve.n
    e = int.from_bytes(hashlib.sha256(message).digest())
    return r, pow(nonce, -1, curve.n) * (e + r * secret) % curve.n


def public_of(curve: Curve, secret: int) -> bytes:
    point = curve.combine(secret, 0, curve.g)
    assert point is not None
    return b"\x04" + point[0].to_bytes(32) + point[1].to_bytes(32)


@settings(max_examples=share(50))
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300), st.integers(0, 511))
def test_ed25519_agrees_with_pynacl(seed, message, bit):
    key = SigningKey(seed)
    public_key, signature = bytes(key.verify_key), key.sign(message).signature
    assert _native.verify("ed25519", public_key, message, signature)
    assert not _native.verify("ed25519", public_key, message + b"!", signature)
    spoiled = bytearray(signature)
    spoiled[bit // 8] ^= 1 << bit % 8
    assert not _native.verify("ed25519", public_key, message, bytes(spoiled))


@pytest.mark.parametrize("algorithm", CURVES)
def test_ecdsa_agrees_with_integers(algorithm):
    curve = CURVES[algorithm]

    @settings(max_examples=share(15))
    @given(st.integers(1, curve.n - 1), st.integers(1, curve.n - 1), st.binary(max_size=100))
    def holds(secret: int, nonce: int, message: bytes) -> None:
        public_key = public_of(curve, secret)
        r, s = sign_ecdsa(curve, secret, message, nonce)
        low, high = min(s, curve.n - s), max(s, curve.n - s)
        assert _native.verify(algorithm, public_key, message, r.to_bytes(32) + low.to_bytes(32))
        assert not _native.verify(algorithm, public_key, message, r.to_bytes(32) + high.to_bytes(32)), "s is high"
        assert not _native.verify(algorithm, public_key, message + b"!", r.to_bytes(32) + low.to_bytes(32))
        for one, two in ((0, low), (r, 0), (curve.n, low), (low, r)):
            assert not _native.verify(algorithm, public_key, message, one.to_bytes(32) + two.to_bytes(32))

    holds()


def test_ed25519_refuses_keys_and_forms_that_fit_every_message():
    small_order = bytes.fromhex("0100000000000000000000000000000000000000000000000000000000000000")
    for public_key in (small_order, bytes(32), b"\xff" * 32):
        for signature in (bytes(64), small_order + bytes(32)):
            with suppress(BadArgument):
                assert not _native.verify("ed25519", public_key, b"x", signature)
    key = SigningKey(bytes(range(32)))
    signature = key.sign(b"x").signature
    order = 2**252 + 27742317777372353535851937790883648493
    twin = int.from_bytes(signature[32:], "little") + order
    assert not _native.verify("ed25519", bytes(key.verify_key), b"x", signature[:32] + twin.to_bytes(32, "little"))


@pytest.mark.parametrize("algorithm", ["ed25519", *CURVES])
def test_a_signature_of_another_length_is_not_good(algorithm):
    public_key = bytes(SigningKey(bytes(32)).verify_key) if algorithm == "ed25519" else public_of(CURVES[algorithm], 7)
    for length in (0, 1, 63, 65, 128, 1000):
        assert not _native.verify(algorithm, public_key, b"x", bytes(length))


@pytest.mark.parametrize("algorithm", ["ed25519", *CURVES])
@pytest.mark.parametrize("length", [0, 1, 31, 33, 64, 66])
def test_a_public_key_of_another_length_is_refused(algorithm, length):
    with pytest.raises(BadArgument, match=algorithm):
        _native.verify(algorithm, bytes(length), b"x", bytes(64))


@pytest.mark.parametrize("algorithm", CURVES)
def test_a_point_off_the_curve_is_refused(algorithm):
    good = public_of(CURVES[algorithm], 7)
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), b"\x04" + bytes(64), b"\x02" + good[1:], b"\x04" + b"\xff" * 64):
        with pytest.raises(BadArgument):
            _native.verify(algorithm, bad, b"x", bytes(64))


@pytest.mark.parametrize("algorithm", ["", "none", "rsa", "ED25519"])
def test_an_algorithm_that_is_not_known_is_refused(algorithm):
    with pytest.raises(BadArgument):
        _native.verify(algorithm, bytes(32), b"x", bytes(64))


def test_a_message_to_verify_must_be_bytes_like():
    key = SigningKey(bytes(32))
    signature = key.sign(b"abc").signature
    assert _native.verify("ed25519", bytes(key.verify_key), memoryview(b"a.b.c.")[::2], signature)
    with pytest.raises(InvalidMessage):
        _native.verify("ed25519", bytes(key.verify_key), "abc", signature)


# ---- small parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 16, 5000])
def test_a_secret_is_wiped_in_place(length):
    secret = bytearray(b"\xaa" * length)
    _native.wipe(secret)
    assert secret == bytearray(length)


def test_a_module_can_be_held_twice(softhsm):
    before = _native.leaks()
    with _native.Module(str(softhsm)) as first, _native.Module(str(softhsm)) as second:
        assert first.path == second.path
    first.close()
    assert _native.leaks() == before
