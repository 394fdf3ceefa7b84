"""What the control plane reads from a token and what it makes of errors: pure functions, no token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import get_args

import pytest
from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11 import exceptions as p11

from hsmcore import _native
from hsmcore.config import pkcs11 as config
from hsmcore.errors import HsmError, KeyUnusable, MemberDown, PinIncorrect
from hsmcore.members.control import ALGORITHMS, ControlError, algorithm_of_params, calls, decode_point, keys
from hsmcore.members.control.backup import ImportWrapped
from hsmcore.members.control.calls import CkrError
from hsmcore.members.control.faults import _NUMBERS, ckr_of, translated
from hsmcore.members.control.quirks import KeyForm, quirks_for
from hsmcore.members.control.records import KeyRecord

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


def test_every_number_is_the_standard_s():
    names = {number: name for number, name, _ in _native.ckr_table()}
    spelled = {
        "AnotherUserAlreadyLoggedIn": "CKR_USER_ANOTHER_ALREADY_LOGGED_IN",
        "SlotIDInvalid": "CKR_SLOT_ID_INVALID",
    }
    for kind, number in _NUMBERS.items():
        if number in names:
            words = "".join(f"_{c}" if c.isupper() else c.upper() for c in kind.__name__)
            words = words.replace("CANCELLED", "CANCELED").replace("RECOGNISED", "RECOGNIZED")
            assert spelled.get(kind.__name__, f"CKR{words}") == names[number]
    assert len(set(_NUMBERS.values())) == len(_NUMBERS)


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


@pytest.mark.parametrize(
    "backup",
    [
        b"",
        b"{}",
        b"[]",
        b"nothing",
        b'{"format":"hsmcore-backup-1"}',
        b'{"format":"hsmcore-backup-2","algorithm":"ed25519"}',
    ],
)
def test_what_is_no_backup_is_refused_before_the_token_is_asked(backup):
    with pytest.raises(ControlError, match="no backup"):
        ImportWrapped(backup)._import(None, quirks_for("softhsm"))


ED25519, P384 = bytes.fromhex("06032b6570"), bytes.fromhex("06052b81040022")
PRIVATE = {
    Attribute.ID: b"\x01\x02",
    Attribute.LABEL: "key",
    Attribute.KEY_TYPE: KeyType.EC_EDWARDS,
    Attribute.SIGN: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
}
PUBLIC = {Attribute.EC_PARAMS: ED25519, Attribute.EC_POINT: KEY}


@pytest.mark.parametrize(
    ("private", "public", "changed"),
    [
        ({}, PUBLIC, {}),
        (PUBLIC, {}, {}),  # the private half has them too
        ({Attribute.EC_PARAMS: P384, Attribute.EC_POINT: b""}, PUBLIC, {}),  # the public half is believed
        ({}, {}, {"algorithm": None, "public_key": None}),
        ({}, {Attribute.EC_PARAMS: ED25519}, {"public_key": None}),
        ({}, {Attribute.EC_POINT: KEY}, {"algorithm": None, "public_key": None}),
        ({Attribute.KEY_TYPE: KeyType.RSA}, PUBLIC, {"algorithm": None, "public_key": None}),
        ({Attribute.SIGN: False}, PUBLIC, {"can_sign": False}),
        ({Attribute.SENSITIVE: False}, PUBLIC, {"sensitive": False}),
        ({Attribute.EXTRACTABLE: True}, PUBLIC, {"extractable": True}),
    ],
)
def test_what_a_token_shows_of_a_key(private, public, changed):
    usual = {"id": "0102", "label": "key", "algorithm": "ed25519", "public_key": KEY, "can_sign": True}
    usual |= {"sensitive": True, "extractable": False}
    assert keys._record(PRIVATE | private, public) == KeyRecord(**usual | changed)


def test_a_key_of_which_a_token_shows_little_may_be_there_and_signs_nothing():
    little = keys._record({}, PUBLIC)
    assert little == KeyRecord("", "", "ed25519", KEY, can_sign=False, sensitive=True, extractable=False)


@pytest.mark.parametrize("kind", [KeyType.EC, KeyType.EC_EDWARDS, KeyType.RSA, None])
def test_half_a_key_is_an_ec_key_that_has_nothing_else(kind):
    shown = {Attribute.KEY_TYPE: kind, Attribute.ID: b"", Attribute.LABEL: ""}
    assert keys._is_half(shown) == (kind in (KeyType.EC, KeyType.EC_EDWARDS))
    for name in (Attribute.ID, Attribute.LABEL, Attribute.EC_PARAMS, Attribute.EC_POINT):
        assert not keys._is_half({**shown, name: "x"})
    assert not keys._is_half({})


def test_of_the_forms_of_a_key_those_are_tried_that_the_token_lists():
    one, other = (
        KeyForm(mechanism, b"") for mechanism in (Mechanism.EC_KEY_PAIR_GEN, Mechanism.EC_EDWARDS_KEY_PAIR_GEN)
    )

    def offered(*listed):
        slot = SimpleNamespace(get_mechanisms=lambda: set(listed))
        return keys._offered(SimpleNamespace(token=SimpleNamespace(slot=slot)), (one, other))

    assert offered(other.mechanism, Mechanism.EDDSA) == (other,)
    assert offered(one.mechanism, other.mechanism) == (one, other)
    assert offered(Mechanism.EDDSA) == (one, other), "it lists none: all are tried"


def test_a_secret_is_gone_from_memory_after_the_call():
    with calls._secret(b"1234") as (copy, size):
        assert (bytes(copy), size.value) == (b"1234\0", 4)
    assert bytes(copy) == bytes(5)
    with pytest.raises(ZeroDivisionError), calls._secret(bytearray(b"1234")) as (copy, _):
        1 / 0  # noqa: B018
    assert bytes(copy) == bytes(5)
