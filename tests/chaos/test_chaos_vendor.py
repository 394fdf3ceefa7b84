"""Imitation of a vendor's module (docs/CHAOS.md): the profile "cloudhsm" and every field, through the C ABI."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.support.chaos import CHAOS
from tests.support.cloudhsm import ADMIN, ADMIN_PASSWORD, CLUSTERS, SIGNER, SIGNER_PASSWORD, Cluster
from tests.support.paths import PROFILES
from tests.support.pkcs11_client import (
    CKA_CLASS,
    CKA_EC_PARAMS,
    CKA_EC_POINT,
    CKA_LABEL,
    CKA_MODIFIABLE,
    CKA_PRIVATE,
    CKA_SIGN,
    CKA_SUBJECT,
    CKA_TOKEN,
    CKA_VERIFY,
    CKM_AES_KEY_WRAP_PAD,
    CKM_EC_EDWARDS_KEY_PAIR_GEN,
    CKM_EC_KEY_PAIR_GEN,
    CKM_EDDSA,
    CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY,
    CKR_ATTRIBUTE_TYPE_INVALID,
    CKR_ATTRIBUTE_VALUE_INVALID,
    CKR_BUFFER_TOO_SMALL,
    CKR_CURVE_NOT_SUPPORTED,
    CKR_FUNCTION_FAILED,
    CKR_FUNCTION_NOT_SUPPORTED,
    CKR_FUNCTION_REJECTED,
    CKR_MECHANISM_INVALID,
    CKR_OBJECT_HANDLE_INVALID,
    CKR_OK,
    CKR_PIN_INCORRECT,
    CKR_SESSION_COUNT,
    CKR_TEMPLATE_INCONSISTENT,
    READ_ONLY,
    Module,
    template,
)

pytestmark = [pytest.mark.chaos, pytest.mark.integration]

CLOUDHSM_ZERO_PAD = 0x8000216F
ED25519_OID, ED25519_NAME = bytes.fromhex("06032b6570"), b"\x13\x0cedwards25519"
SIGNER_PIN = f"{SIGNER}:{SIGNER_PASSWORD}".encode()
ADMIN_PIN = f"{ADMIN}:{ADMIN_PASSWORD}".encode()


@contextmanager
def initialized(cluster: Cluster) -> Iterator[Module]:
    module = Module(CHAOS)
    assert module.initialize(reserved=cluster.args.encode()) == CKR_OK
    try:
        yield module
    finally:
        module("C_Finalize", None)


@contextmanager
def session_of(cluster: Cluster, pin: bytes = ADMIN_PIN) -> Iterator[tuple[Module, int, int]]:
    """A module, its only slot and a session that is logged in."""
    with initialized(cluster) as module:
        slot = module.slots()[0]
        session = module.session(slot)
        assert module.login(session, pin) == CKR_OK
        yield module, slot, session


def generate(
    module: Module,
    session: int,
    mechanism: int = CKM_EC_KEY_PAIR_GEN,
    params: bytes = ED25519_OID,
    **more: dict[int, int | bytes],
) -> tuple[int, int, int]:
    public = {CKA_EC_PARAMS: params, CKA_VERIFY: b"\1", **more.get("public", {})}
    private = {CKA_TOKEN: b"\0", CKA_SIGN: b"\1", **more.get("private", {})}
    return module.generate(session, mechanism, public, private)


# ---- the profile ----


def test_functions_that_the_vendor_lacks_are_not_supported(cluster):
    denied = json.loads((PROFILES / "cloudhsm.json").read_text())["denied"]
    with session_of(cluster) as (module, slot, session):
        for function in denied:
            if function in module.functions:
                first = slot if function == "C_InitToken" else session
                assert module(function, first, None, 0, None, 0, None) == CKR_FUNCTION_NOT_SUPPORTED, function
        key = module.key(session, cluster.token.keys["ed25519"].label)
        rows, count, _kept = template({CKA_SIGN: b"\0"})
        assert module("C_SetAttributeValue", session, key, rows, count) == CKR_FUNCTION_NOT_SUPPORTED
        assert module("C_SeedRandom", session, b"x", 1) == CKR_FUNCTION_NOT_SUPPORTED
        assert module.sign_once(session, key, b"m")[0] == CKR_OK
    assert any("C_SetAttributeValue" in line and "not there" in line for line in cluster.refusals())


def test_sessions_are_read_write_and_counted(fresh_token, tmp_path):
    cluster = Cluster(tmp_path, fresh_token(), sessions={"readOnly": "CKR_FUNCTION_FAILED", "limit": 3})
    with initialized(cluster) as module:
        slot = module.slots()[0]
        handle = ctypes.c_ulong()
        assert module("C_OpenSession", slot, READ_ONLY, None, None, ctypes.byref(handle)) == CKR_FUNCTION_FAILED
        sessions = [module.session(slot) for _ in range(3)]
        assert module.open(slot)[0] == CKR_SESSION_COUNT
        assert module("C_CloseSession", sessions[0]) == CKR_OK
        assert module.open(slot)[0] == CKR_OK


def test_templates_are_checked_as_by_the_vendor(cluster):
    with session_of(cluster) as (module, _, session):
        assert generate(module, session)[0] == CKR_OK
        assert generate(module, session, public={CKA_SUBJECT: b"x"})[0] == CKR_TEMPLATE_INCONSISTENT
        assert generate(module, session, public={CKA_PRIVATE: b"\0"})[0] == CKR_ATTRIBUTE_VALUE_INVALID
        assert generate(module, session, private={CKA_MODIFIABLE: b"\0"})[0] == CKR_ATTRIBUTE_VALUE_INVALID
        assert generate(module, session, public={CKA_PRIVATE: b"\1"})[0] == CKR_OK


def test_mechanisms_are_those_of_the_vendor(cluster):
    with session_of(cluster) as (module, slot, session):
        assert generate(module, session, CKM_EC_EDWARDS_KEY_PAIR_GEN)[0] == CKR_MECHANISM_INVALID
        rv, public, private = generate(module, session, params=ED25519_NAME)
        assert rv == CKR_OK
        assert module.sign_init(session, private, CKM_EDDSA) == CKR_OK
        assert module.attribute(session, public, CKA_EC_POINT)[1][:2] == b"\x04\x20"
        count = ctypes.c_ulong()
        assert module("C_GetMechanismList", slot, None, ctypes.byref(count)) == CKR_OK
        listed = (ctypes.c_ulong * count.value)()
        assert module("C_GetMechanismList", slot, listed, ctypes.byref(count)) == CKR_OK
        assert {CKM_EC_KEY_PAIR_GEN, CLOUDHSM_ZERO_PAD, CKM_EDDSA} <= set(listed)
        assert {CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_AES_KEY_WRAP_PAD}.isdisjoint(listed)
        assert len(set(listed)) == len(listed)
        info = ctypes.create_string_buffer(64)
        assert module("C_GetMechanismInfo", slot, CLOUDHSM_ZERO_PAD, info) == CKR_OK
        assert module("C_GetMechanismInfo", slot, CKM_EC_EDWARDS_KEY_PAIR_GEN, info) == CKR_MECHANISM_INVALID
        count = ctypes.c_ulong(1)
        assert module("C_GetMechanismList", slot, listed, ctypes.byref(count)) == CKR_BUFFER_TOO_SMALL
        assert count.value == len(listed)


def test_several_profiles_are_combined(fresh_token, tmp_path):
    cluster = Cluster(tmp_path, fresh_token(), profile=["cloudhsm", "cloudhsm-hsm2m-x2"])
    with session_of(cluster) as (module, _, session):
        key = module.key(session, cluster.token.keys["ed25519"].label)
        assert module.sign_once(session, key, b"m")[0] == CKR_OK
        assert generate(module, session, CKM_EC_EDWARDS_KEY_PAIR_GEN)[0] == CKR_MECHANISM_INVALID
        [path] = tmp_path.glob("chaos-*.sock")
        cluster.socket = path
        [slot] = [slot for slot in cluster.stats()["slots"] if slot["servingMax"]]
        assert slot["servingMax"] == 1


# ---- users ----


def test_users_have_pins_and_rights_of_their_own(cluster):
    with initialized(cluster) as module:
        session = module.session(module.slots()[0])
        for pin in (cluster.token.pin.encode(), b"", SIGNER_PIN[:-1], SIGNER_PIN + b"x", b"x" * 300):
            assert module.login(session, pin) == CKR_PIN_INCORRECT
        assert module.login(session, SIGNER_PIN) == CKR_OK
        key = module.key(session, cluster.token.keys["ed25519"].label)
        assert module.sign_once(session, key, b"m")[0] == CKR_OK
        assert generate(module, session)[0] == CKR_FUNCTION_REJECTED
        assert module("C_DestroyObject", session, key) == CKR_FUNCTION_REJECTED
        assert module("C_Logout", session) == CKR_OK
        assert module.login(session, ADMIN_PIN) == CKR_OK
        rv, _, made = generate(module, session)
        assert rv == CKR_OK
        assert module("C_DestroyObject", session, made) == CKR_OK
    text = cluster.log.read_text()
    assert SIGNER_PASSWORD not in text
    assert cluster.token.pin not in text


# ---- what the vendor's module shows ----


def padded(raw: bytes, start: int, size: int) -> str:
    return raw[start : start + size].decode().rstrip()


def test_slots_are_clusters_and_others_are_hidden(fresh_token, tmp_path):
    one, two, _hidden = fresh_token(), fresh_token(), fresh_token()
    cluster = Cluster(tmp_path, one, two)
    with initialized(cluster) as module:
        slots = module.slots()
        assert len(slots) == 2
        assert sorted(module.slots(False)) == sorted(slots)
        count = ctypes.c_ulong()
        assert module("C_GetSlotList", 1, None, ctypes.byref(count)) == CKR_OK
        assert count.value == 2
        info = ctypes.create_string_buffer(512)
        found = set()
        for slot in slots:
            assert module("C_GetSlotInfo", slot, info) == CKR_OK
            description = padded(info.raw, 0, 64)
            assert module("C_GetTokenInfo", slot, info) == CKR_OK
            found.add((description, padded(info.raw, 0, 32), padded(info.raw, 80, 16)))
        assert found == {(CLUSTERS[0], "hsm1", f"{1:016d}"), (CLUSTERS[1], "hsm1", f"{2:016d}")}
        assert module("C_GetInfo", info) == CKR_OK
        assert b"AWS CloudHSM" in info.raw[:40]


# ---- handles and forms ----


def test_handles_are_invalid_in_another_session(fresh_token, tmp_path):
    cluster = Cluster(tmp_path, fresh_token(), handlesPerSession=True)
    label = cluster.token.keys["ed25519"].label
    with session_of(cluster) as (module, slot, one):
        two = module.session(slot)
        keys = {session: module.key(session, label) for session in (one, two)}
        assert keys[one] != keys[two]
        for session, other in ((one, two), (two, one)):
            assert module.sign_once(session, keys[session], b"m")[0] == CKR_OK
            assert module.sign_init(session, keys[other]) == CKR_OBJECT_HANDLE_INVALID
            assert module.attribute(session, keys[other], CKA_LABEL)[0] == CKR_OBJECT_HANDLE_INVALID
        rv, public, made = generate(module, one)
        assert rv == CKR_OK
        assert module.sign_once(one, made, b"m")[0] == CKR_OK
        assert module.sign_init(two, made) == CKR_OBJECT_HANDLE_INVALID
        assert module.attribute(two, public, CKA_CLASS)[0] == CKR_OBJECT_HANDLE_INVALID
        assert module("C_DestroyObject", one, made) == CKR_OK


def test_recycled_handles_work_per_session_too(fresh_token, tmp_path):
    cluster = Cluster(tmp_path, fresh_token(), handlesPerSession=True)
    cluster.write(**json.loads(cluster.path.read_text()) | {
        "faults": [{"function": "C_SignInit", "nth": 1, "action": "recycle-handle"}],
    })  # fmt: skip
    with session_of(cluster) as (module, _, session):
        key = module.key(session, cluster.token.keys["ed25519"].label)
        rv, wrong = module.sign_once(session, key, b"m")
        assert rv == CKR_OK
        right = module.sign_once(session, module.key(session, cluster.token.keys["ed25519"].label), b"m")
        assert right[0] == CKR_OK
        assert right[1] != wrong


@pytest.mark.parametrize("raw", [False, True])
def test_points_are_raw_where_asked(fresh_token, tmp_path, raw):
    cluster = Cluster(tmp_path, fresh_token(), **({"curves": {"rawPoints": True}} if raw else {}))
    key = cluster.token.keys["ed25519"]
    with session_of(cluster) as (module, _, session):
        public = module.key(session, key.label, CKO_PUBLIC_KEY)
        assert module.attribute(session, public, CKA_EC_POINT) == (
            CKR_OK,
            key.public_key if raw else b"\x04\x20" + key.public_key,
        )
        private = module.key(session, key.label)
        assert module.attribute(session, private, CKA_EC_POINT)[0] in (CKR_OK, CKR_ATTRIBUTE_TYPE_INVALID)
        rows, _, _kept = template({CKA_EC_POINT: b"x" * 8})
        assert module("C_GetAttributeValue", session, public, rows, 1) == CKR_BUFFER_TOO_SMALL
        assert rows[0].length == 2**64 - 1
        rows[0].value = None
        assert module("C_GetAttributeValue", session, public, rows, 1) == CKR_OK
        assert rows[0].length == (32 if raw else 34)


def test_curves_are_refused_by_their_form(fresh_token, tmp_path):
    refused = {"refused": [ED25519_OID.hex()], "ckr": "CKR_CURVE_NOT_SUPPORTED"}
    with session_of(Cluster(tmp_path, fresh_token(), curves=refused)) as (module, _, session):
        assert generate(module, session)[0] == CKR_CURVE_NOT_SUPPORTED
        assert generate(module, session, params=ED25519_NAME)[0] == CKR_OK


def test_all_objects_are_numbered_at_login(fresh_token, tmp_path):
    token = fresh_token()
    for numbered in (True, False):
        cluster = Cluster(tmp_path, token, **({} if numbered else {"profile": []}))
        with session_of(cluster) as (module, _, session):
            found = [
                handle
                for handle in range(1, 8)
                if module.attribute(session, handle, CKA_CLASS)[1][:1] in (bytes([CKO_PRIVATE_KEY]), b"\2")
            ]
            assert len(found) == (2 if numbered else 0)
