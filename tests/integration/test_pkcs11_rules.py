"""libhsmcore_pkcs11.so by the standard: the order of calls, lengths of buffers, objects, fork; a rotation, TLS."""

from __future__ import annotations

import ctypes
import hashlib
import os
from contextlib import suppress

import pytest
from nacl.signing import VerifyKey
from tests.support import pkcs11_client as p11
from tests.support.authority import Authority
from tests.support.gateways import GatewayProcess, document_of
from tests.support.loops import one_loop
from tests.support.pkcs11_module import served
from tests.support.pkcs11_session import initialized, slot_of, verify

from hsmcore.gateway import Client

pytestmark = pytest.mark.integration
CKM_ECDSA, CKM_ECDSA_SHA256 = 0x1041, 0x1044
CKR_ARGUMENTS_BAD, CKR_DATA_LEN_RANGE, CKR_KEY_HANDLE_INVALID = 0x7, 0x21, 0x60
CKR_KEY_TYPE_INCONSISTENT, CKR_KEY_FUNCTION_NOT_PERMITTED = 0x63, 0x68
CKR_MECHANISM_PARAM_INVALID, CKR_OPERATION_NOT_INITIALIZED = 0x71, 0x91
CKR_SIGNATURE_INVALID, CKR_SIGNATURE_LEN_RANGE, CKR_RANDOM_SEED_NOT_SUPPORTED = 0xC0, 0xC1, 0x120


def by_the_rules(module):
    session = module.session(slot_of(module, "ed25519"))
    private, public = (module.key(session, "ed25519", kind) for kind in (p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY))
    # Order.
    assert module.sign(session, b"m")[0] == CKR_OPERATION_NOT_INITIALIZED
    assert module.sign_init(session, public) == CKR_KEY_FUNCTION_NOT_PERMITTED
    assert module.sign_init(session, private + 1000) == CKR_KEY_HANDLE_INVALID
    assert module.sign_init(session, private, CKM_ECDSA) == CKR_KEY_TYPE_INCONSISTENT
    assert module.sign_init(session, private, 0x1) == p11.CKR_MECHANISM_INVALID
    parameter = ctypes.create_string_buffer(24)
    with_parameter = p11.Mechanism(p11.CKM_EDDSA, ctypes.cast(parameter, ctypes.c_void_p), 24)
    assert module("C_SignInit", session, ctypes.byref(with_parameter), private) == CKR_MECHANISM_PARAM_INVALID
    assert module.sign_init(session, private) == 0
    assert module.sign_init(session, private) == p11.CKR_OPERATION_ACTIVE
    # Lengths: neither a question nor a small buffer ends the operation.
    length = ctypes.c_ulong(0)
    assert module("C_Sign", session, b"m", 1, None, ctypes.byref(length)) == 0
    assert length.value == 64
    rv, needed, _ = module.sign(session, b"m", 63)
    assert (rv, needed) == (p11.CKR_BUFFER_TOO_SMALL, 64)
    rv, needed, raw = module.sign(session, b"m", 80)
    assert (rv, needed, raw[64:]) == (0, 64, b"\xa5" * 16 + bytes(64)) or raw[64:80] == b"\xa5" * 16
    signature = raw[:64]
    assert module.sign(session, b"m")[0] == CKR_OPERATION_NOT_INITIALIZED
    assert module.sign_once(session, private, b"m") == (0, signature)
    assert module.sign_once(session, private, b"") == (CKR_DATA_LEN_RANGE, b"")
    assert module.sign_once(session, private, bytes(1 << 21))[0] == CKR_DATA_LEN_RANGE
    # Parts.
    assert module.sign_init(session, private) == 0
    for part in (b"", b"m"):
        assert module("C_SignUpdate", session, part, len(part)) == 0
    length.value = 10
    buffer = ctypes.create_string_buffer(64)
    assert module("C_SignFinal", session, buffer, ctypes.byref(length)) == p11.CKR_BUFFER_TOO_SMALL
    assert module("C_SignFinal", session, buffer, ctypes.byref(length)) == 0
    assert buffer.raw == signature
    assert module.sign_init(session, private) == 0
    assert module("C_SignUpdate", session, b"m", 1) == 0
    assert module.sign(session, b"m")[0] == p11.CKR_OPERATION_ACTIVE
    assert module.sign(session, b"m")[0] == CKR_OPERATION_NOT_INITIALIZED  # an error ends it
    # Verification.
    assert verify(module, session, public, b"m", signature) == 0
    assert verify(module, session, public, b"n", signature) == CKR_SIGNATURE_INVALID
    assert verify(module, session, public, b"m", signature[:63]) == CKR_SIGNATURE_LEN_RANGE
    # The rest of the subset.
    assert module("C_SeedRandom", session, b"m", 1) == CKR_RANDOM_SEED_NOT_SUPPORTED
    assert module("C_GenerateRandom", session, buffer, 64) == 0
    assert buffer.raw != signature
    assert (
        module("C_DigestInit", session, ctypes.byref(p11.Mechanism(p11.CKM_SHA256))) == p11.CKR_FUNCTION_NOT_SUPPORTED
    )
    assert module.login(session) == 0
    assert module.login(session) == p11.CKR_USER_ALREADY_LOGGED_IN
    assert module("C_CloseAllSessions", slot_of(module, "ed25519")) == 0
    assert module.sign_init(session, private) == p11.CKR_SESSION_HANDLE_INVALID


def digests(module):
    session = module.session(slot_of(module, "p256"))
    private, public = (module.key(session, "p256", kind) for kind in (p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY))
    digest = hashlib.sha256(b"m").digest()
    assert module.sign_init(session, private, CKM_ECDSA) == 0
    assert module.sign(session, b"m")[0] == CKR_DATA_LEN_RANGE
    assert module.sign_init(session, private, CKM_ECDSA) == 0
    assert module("C_SignUpdate", session, digest, 32) == p11.CKR_FUNCTION_NOT_SUPPORTED
    assert module.sign_init(session, private, CKM_ECDSA) == 0
    rv, _, raw = module.sign(session, digest)
    assert rv == 0
    assert verify(module, session, public, b"m", raw[:64], CKM_ECDSA_SHA256) == 0
    # No policy lists digests of the other key: what is refused says that it is.
    other = module.session(slot_of(module, "k1"))
    assert module.sign_init(other, module.key(other, "k1"), CKM_ECDSA) == 0
    assert module.sign(other, digest)[0] == p11.CKR_FUNCTION_REJECTED
    assert module.sign_init(other, module.key(other, "k1"), CKM_ECDSA_SHA256) == 0
    rv, _, raw = module.sign(other, b"m")
    assert rv == 0
    key = module.key(other, "k1", p11.CKO_PUBLIC_KEY)
    assert verify(module, other, key, digest, raw[:64], CKM_ECDSA) == 0
    assert verify(module, other, key, digest, bytes(64), CKM_ECDSA) == CKR_SIGNATURE_INVALID


def sockets():
    """The sockets of this process."""
    found = set()
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(FileNotFoundError):  # the one that lists the folder
            found.add(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115
    return {one for one in found if one.startswith("socket:")}


def forks(module, connection):
    session = module.session(slot_of(module, "ed25519"))
    private = module.key(session, "ed25519")
    expected = module.sign_once(session, private, b"m")
    assert expected[0] == 0
    child = os.fork()
    if child == 0:  # its sessions are the parent's, its connection is not; and it may begin afresh
        status = 1
        try:
            assert module.sign_once(session, private, b"m") == expected
            assert not connection & sockets()
            assert module.initialize() == 0
            assert module.initialize() == p11.CKR_CRYPTOKI_ALREADY_INITIALIZED
            assert module.sign_init(session, private) == p11.CKR_SESSION_HANDLE_INVALID
            status = 0
        finally:
            os._exit(status)
    assert module.sign_once(session, private, b"m") == expected
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert module.sign_once(session, private, b"m") == expected


@one_loop
async def test_calls_by_the_rules_of_the_standard(world, tmp_path, monkeypatch):
    async with served(world, tmp_path) as site:
        monkeypatch.setenv("HSMCORE_PKCS11_ADDRESS", site.address)
        before = sockets()
        with initialized(site.address) as module:
            by_the_rules(module)
            digests(module)
            connection = sockets() - before
            assert len(connection) == 1
            forks(module, connection)


@one_loop
async def test_a_rotation_takes_the_private_half_away_and_shows_the_new_one(fresh_token, tmp_path):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"})
    gateway = GatewayProcess(tmp_path, document_of(token.config(), f"unix:{tmp_path}/sign.sock"))
    await gateway.start()
    try:
        with initialized(*gateway.addresses) as module:
            [slot] = module.slots()
            session = module.session(slot)
            private, public = (
                module.key(session, "default", kind) for kind in (p11.CKO_PRIVATE_KEY, p11.CKO_PUBLIC_KEY)
            )
            rv, signature = module.sign_once(session, private, b"m")
            assert rv == 0
            async with Client(gateway.addresses[0]) as km:
                await km.set_current_key_id(await km.generate_key())
            assert module.sign_once(session, private, b"m")[0] == CKR_KEY_HANDLE_INVALID
            assert module.sign_init(session, private) == CKR_KEY_HANDLE_INVALID
            assert len(module.find(session, {p11.CKA_CLASS: p11.CKO_PRIVATE_KEY})[1]) == 1
            following = module.key(session, "default")
            assert following != private
            rv, other = module.sign_once(session, following, b"m")
            assert rv == 0
            assert verify(module, session, public, b"m", signature) == 0  # the old public half is still there
            assert verify(module, session, public, b"m", other) == CKR_SIGNATURE_INVALID
            assert module.attribute(session, public, p11.CKA_LABEL) == (0, b"default#1")
    finally:
        await gateway.end()


@one_loop
async def test_by_tls(world, tmp_path):
    authority = Authority(tmp_path)
    own, mine = authority.issue("gateway", ips=["127.0.0.1"]), authority.issue("mine", dns=["mine.example"])
    files = {"certificateFile": str(own.certificate), "keyFile": str(own.key), "clientCaFile": str(authority.file)}
    clients = {"test": {"names": ["dns:mine.example"], "keys": ["default"]}}
    config = document_of(world.config(maxCacheSize=0), "tls:127.0.0.1:0", tls=files, clients=clients)
    gateway = GatewayProcess(tmp_path, config)
    await gateway.start()
    try:
        tls = f"{mine.certificate},{mine.key},{authority.file}"
        with initialized(*gateway.addresses, tls=tls) as module:
            [slot] = module.slots()
            session = module.session(slot)
            rv, signature = module.sign_once(session, module.key(session, "default"), bytes(1200))
            assert rv == 0
            VerifyKey(world.keys["ed25519"].public_key).verify(bytes(1200), signature)
        for bad in ({"tls": tls, "tls_name": "other.example"}, {"tls": "/no,/such,/file"}, {}):
            with initialized(*gateway.addresses, timeout_ms=600_000, **bad) as module:  # it is said at once
                count = ctypes.c_ulong()
                assert module("C_GetSlotList", 1, None, ctypes.byref(count)) == p11.CKR_FUNCTION_FAILED
    finally:
        await gateway.end()
