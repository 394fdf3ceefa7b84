"""What the control plane reads from a token and what it makes of errors: pure functions, no token."""

from __future__ import annotations

from typing import get_args

import pytest
from pkcs11 import exceptions as p11

from hsmcore import _native
from hsmcore.config import pkcs11 as config
from hsmcore.errors import HsmError, KeyUnusable, MemberDown, PinIncorrect
from hsmcore.members.control import ALGORITHMS, ControlError, algorithm_of_params, decode_point
from hsmcore.members.control.calls import CkrError
from hsmcore.members.control.faults import ckr_of, translated
from hsmcore.members.control.quirks import quirks_for

KEY = bytes(range(32))
POINT = b"\x04" + bytes(range(64))


@pytest.mark.parametrize(
    "stored",
    [KEY, b"\x04\x20" + KEY, b"\x03\x21\x00" + KEY],
    ids=["raw", "octet string", "bit string"],
)
def test_ed25519_points(stored):
    assert decode_point("ed25519", stored) == KEY


@pytest.mark.parametrize("header", [b"\x04\x20", b"\x04\x1e", b"\x03\x1f\x00", b"\x04\x82"])
def test_a_raw_key_that_begins_like_der_is_still_raw(header):
    key = header + KEY[len(header) :]
    assert decode_point("ed25519", key) == key
    assert decode_point("ed25519", b"\x04\x20" + key) == key


@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ecdsa-secp256k1"])
@pytest.mark.parametrize("stored", [POINT, b"\x04\x41" + POINT, b"\x03\x42\x00" + POINT])
def test_ecdsa_points(algorithm, stored):
    assert decode_point(algorithm, stored) == POINT


@pytest.mark.parametrize(
    ("algorithm", "stored"),
    [
        ("ed25519", b""),
        ("ed25519", KEY[:31]),
        ("ed25519", b"\x04\x21" + KEY),
        ("ed25519", b"\x40" + KEY),
        ("ed25519", POINT),
        ("ecdsa-p256", KEY),
        ("ecdsa-p256", b"\x02" + KEY),  # compressed
        ("ecdsa-p256", b"\x06" + POINT[1:]),  # hybrid
        ("ecdsa-p256", b"\x04\x40" + POINT),
        ("ecdsa-secp256k1", POINT + b"\0"),
    ],
)
def test_other_points_are_refused(algorithm, stored):
    assert decode_point(algorithm, stored) is None


def test_curves_are_known_by_oid_and_by_name():
    assert algorithm_of_params(bytes.fromhex("06032b6570")) == "ed25519"
    assert algorithm_of_params(b"\x13\x0cedwards25519") == "ed25519"
    assert algorithm_of_params(bytes.fromhex("06082a8648ce3d030107")) == "ecdsa-p256"
    assert algorithm_of_params(bytes.fromhex("06052b8104000a")) == "ecdsa-secp256k1"
    assert algorithm_of_params(bytes.fromhex("06052b81040022")) is None  # P-384
    assert algorithm_of_params(b"\x13\x0aedwards448") is None


def test_quirks_have_the_native_core_s_names_and_recognition():
    for name in _native.quirks():
        assert quirks_for(name).name == name
    assert quirks_for(None, "SoftHSM Implementation of PKCS11").name == "softhsm"
    assert quirks_for(None, "Yubico (www.yubico.com)").name == "yubihsm"
    assert quirks_for(None, "somebody else").name == "generic"
    assert quirks_for("unheard of").name == "generic"
    assert get_args(config.Algorithm) == ALGORITHMS


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (p11.KeyNotWrappable(), 0x69),
        (p11.PKCS11Error("Unmapped error code 0x68"), 0x68),
        (p11.PKCS11Error("Initialisation error (not initialized). Should never see this."), 0x190),
        (p11.ArgumentsBad("`key` must be a Key."), 0),
        (p11.NoSuchKey(), 0),
    ],
)
def test_the_number_behind_an_exception(raised, number):
    assert ckr_of(raised) == number


@pytest.mark.parametrize(
    ("raised", "expected", "number"),
    [
        (p11.PinIncorrect(), PinIncorrect, 0xA0),
        (p11.PKCS11Error("Unmapped error code 0x68"), KeyUnusable, 0x68),
        (p11.DeviceError(), MemberDown, 0x30),
        (CkrError("C_Login", 0xA0), PinIncorrect, 0xA0),
        (CkrError("C_Login", 0x80000001), MemberDown, 0x80000001),  # a vendor's own
        (p11.NoSuchKey("no key"), ControlError, None),
    ],
)
def test_translation(raised, expected, number):
    with pytest.raises(expected) as caught, translated("doing something", "m1"):
        raise raised
    assert (caught.value.ckr, caught.value.member) == (number, "m1")
    assert "doing something" in str(caught.value)


def test_our_own_errors_and_bugs_pass_through():
    for error in (HsmError("x"), ZeroDivisionError()):
        with pytest.raises(type(error)) as caught, translated("x"):
            raise error
        assert caught.value is error


ED25519, P384 = bytes.fromhex("06032b6570"), bytes.fromhex("06052b81040022")
