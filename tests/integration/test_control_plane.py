"""The control plane on a real SoftHSM token, alone and beside a signing engine."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import orjson
import pytest
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, TokenFlag
from pkcs11.exceptions import PKCS11Error

import hsmcore
from hsmcore import _native
from hsmcore.config import load
from hsmcore.errors import (
    KeyAmbiguous,
    KeyNotFound,
    ModuleMissing,
    PinIncorrect,
    PinLocked,
    SessionFailed,
    TokenAmbiguous,
    TokenNotFound,
)
from hsmcore.members.control import (
    ALGORITHMS,
    ControlError,
    ControlPlane,
    KeyNotExportable,
    TokenAccess,
    TokenSelector,
    keys,
)
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.adopt import AdoptedLibrary, adopt, hold_module
from hsmcore.members.control.backup import ExportWrapped, ImportWrapped
from hsmcore.members.control.calls import Calls, CkrError
from hsmcore.members.control.keys import Deactivate, Destroy, GenerateKey, ListKeys, Prove
from hsmcore.members.control.softhsm import SOFTHSM_PATHS, StateFolder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not any(map(os.path.exists, SOFTHSM_PATHS)), reason="SoftHSM is not installed"),
]
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = StateFolder(tmp_path_factory.mktemp("control") / "state")
    folder.create(sessions=2)
    return folder


@pytest.fixture
def settings(folder, monkeypatch):
    monkeypatch.setenv("SOFTHSM2_CONF", str(folder.softhsm_conf))
    before = _native.leaks()
    yield load(folder.config).key_manager.config
    assert _native.leaks() == before


@pytest.fixture
def admin(settings):
    selector = TokenSelector(label=settings.token_label)
    with TokenAdmin(TokenAccess(settings.module_path, selector), pin=settings.resolve_pin) as admin:
        yield admin


def on_plane(settings, work):
    async def run():
        async with ControlPlane.for_settings(settings, log_in=True) as plane:
            return await work(plane)

    return asyncio.run(run())


def sign(admin, record, message):
    """A signature through python-pkcs11: the control plane itself has no way to sign."""
    mechanism, data = Mechanism.EDDSA, message
    if record.algorithm != "ed25519":
        mechanism, data = Mechanism.ECDSA, hashlib.sha256(message).digest()
    with admin.session("signing") as session:
        [key] = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: bytes.fromhex(record.id)})
        return key.sign(data, mechanism=mechanism)


def low_s(signature):
    s = int.from_bytes(signature[32:])
    return signature[:32] + min(s, P256_ORDER - s).to_bytes(32)


# ---- calls ----

DATA = 0
"""CKO_DATA."""


def test_a_session_for_reading_writes_nothing(settings, admin):
    module, template = (
        Calls(settings.module_path),
        {Attribute.CLASS: bytes(ctypes.c_ulong(DATA)), Attribute.TOKEN: b"\1"},
    )
    [slot] = [one for one in module.slots() if module.token(one).label == settings.token_label]
    reads = module.open(slot)
    with pytest.raises(CkrError, match="C_CreateObject returned 0xb5"):
        module.create_object(reads, template)
    module.close(reads)


def test_a_token_is_initialized_by_the_call_itself(settings, admin):
    """On the slot that SoftHSM keeps free for the next token."""
    module = Calls(settings.module_path)
    [free] = [one for one in module.slots() if not module.token(one).label]
    with pytest.raises(ValueError, match="at most 32 bytes"):
        module.init_token(free, b"12345678", "é" * 17)
    module.init_token(free, bytearray(b"12345678"), "é" * 16)
    labels = {module.token(one).label for one in module.slots()}
    assert labels - {""} == {"é" * 16, settings.token_label}


# ---- keys ----


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_generated_key_can_sign_and_nothing_else(admin, algorithm):
    record = GenerateKey(algorithm, f"new-{algorithm}").run(admin)[0]
    assert record in ListKeys().run(admin)
    assert (record.algorithm, record.can_sign, record.sensitive, record.extractable) == (algorithm, True, True, False)
    assert len(record.id) == 32
    with admin.session("looking") as session:
        [key] = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: bytes.fromhex(record.id)})
        true = (Attribute.TOKEN, Attribute.PRIVATE, Attribute.SENSITIVE, Attribute.ALWAYS_SENSITIVE)
        true += (Attribute.NEVER_EXTRACTABLE, Attribute.LOCAL, Attribute.SIGN)
        false = (Attribute.EXTRACTABLE, Attribute.DECRYPT, Attribute.UNWRAP, Attribute.DERIVE)
        assert all(key[name] is True for name in true)
        assert all(key[name] is False for name in false)
    if algorithm != "ecdsa-secp256k1":  # the order for low s is P-256's here
        signature = sign(admin, record, b"message")
        signature = signature if algorithm == "ed25519" else low_s(signature)
        assert _native.verify(algorithm, record.public_key, b"message", signature)
    Destroy(record.id).run(admin)
    assert record not in ListKeys().run(admin)


def test_a_key_may_get_an_id_and_ids_must_be_unique_to_be_used(admin):
    record = GenerateKey("ed25519", "twin", b"\x01\x02").run(admin)[0]
    assert record.id == "0102"
    GenerateKey("ed25519", "twin", b"\x01\x02").run(admin)[0]
    for refused in (Deactivate, Destroy, ExportWrapped):
        with pytest.raises(KeyAmbiguous, match="2 private keys"):
            refused("0102").run(admin)
    with admin.session("cleaning") as session:
        for twin in list(session.get_objects({Attribute.ID: b"\x01\x02"})):
            twin.destroy()


def test_a_new_id_is_none_that_has_a_meaning_or_a_key(admin, monkeypatch):
    record, size = GenerateKey("ed25519", "taken").run(admin)[0], admin.quirks.id_bytes
    meant = [bytes(size), b"\xff" * size, (b"\x00\xff" * size)[:size], bytes.fromhex(record.id)]
    drawn = iter([*meant, b"\x07" * size, b"\x08" * size])
    monkeypatch.setattr(keys.secrets, "token_bytes", lambda count: next(drawn)[:count])
    assert keys.NewKeyId().run(admin) == b"\x07" * size
    Destroy(record.id).run(admin)


def test_half_a_key_is_swept_and_a_whole_one_stays(admin):
    record = GenerateKey("ed25519", "half").run(admin)[0]
    assert (
        keys.Sweep(record.id).run(admin) == keys.Sweep("").run(admin) == keys.Sweep("", nameless=True).run(admin) == 0
    )
    assert record in ListKeys().run(admin)
    with admin.session("a process that is killed") as session:
        keys.find_key(session, record.id)[0].destroy()
    assert keys.Sweep("").run(admin) == 0
    assert keys.Sweep(record.id).run(admin) == 1
    with admin.session("looking") as session:
        assert list(session.get_objects({Attribute.ID: bytes.fromhex(record.id)})) == []


def test_a_key_of_another_curve_is_listed_and_signs_nothing(admin):
    with admin.session("making a key") as session:
        parameters = session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: bytes.fromhex("06052b81040022")}, local=True
        )
        parameters.generate_keypair(id=b"\x03\x84", label="p384", store=True)
    [record] = [one for one in ListKeys().run(admin) if one.label == "p384"]
    assert (record.id, record.algorithm, record.public_key) == ("0384", None, None)
    with pytest.raises(ControlError, match="of a kind that hsmcore does not sign with"):
        Prove("0384", b"message").run(admin)
    Destroy("0384").run(admin)
    assert [one for one in ListKeys().run(admin) if one.label == "p384"] == []


def test_a_label_that_the_token_would_cut_is_refused(admin, monkeypatch):
    monkeypatch.setattr(admin, "quirks", replace(admin.quirks, label_bytes=4))
    with pytest.raises(ControlError, match="at most 4 bytes: 'élan'"):
        GenerateKey("ed25519", "élan").run(admin)
    Destroy(GenerateKey("ed25519", "elan").run(admin)[0].id).run(admin)


@pytest.mark.parametrize(("key_id", "error"), [("00ff", KeyNotFound), ("zz", ControlError), ("", ControlError)])
def test_a_key_that_is_not_there(admin, key_id, error):
    for refused in (Deactivate, Destroy, ExportWrapped):
        with pytest.raises(error):
            refused(key_id).run(admin)


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256"])
def test_a_deactivated_key_is_refused_by_the_token_and_stays_so(settings, admin, algorithm):
    record = GenerateKey(algorithm, "retired").run(admin)[0]
    with admin.session("signing") as session:
        [key] = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: bytes.fromhex(record.id)})
        mechanism = Mechanism.EDDSA if algorithm == "ed25519" else Mechanism.ECDSA
        assert key.sign(bytes(32), mechanism=mechanism)
        done = Deactivate(record.id).run(admin)
        assert (done.key_id, done.enforced, done.reason) == (record.id, True, None)
        with pytest.raises(PKCS11Error, match="0x68"):  # CKR_KEY_FUNCTION_NOT_PERMITTED
            key.sign(bytes(32), mechanism=mechanism)
    assert Deactivate(record.id).run(admin).enforced  # again
    admin.close()  # the module's last user: it is finalized
    [again] = [key for key in on_plane(settings, ControlPlane.list_keys) if key.id == record.id]
    assert not again.can_sign
    Destroy(record.id).run(admin)


def test_a_token_that_does_not_enforce_deactivation_says_so(admin, monkeypatch):
    record = GenerateKey("ed25519", "kept").run(admin)[0]

    def refuse(*_):
        raise PKCS11Error("Unmapped error code 0x1b")

    with admin.session("patching") as session:
        [key] = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: bytes.fromhex(record.id)})
        base = next(kind for kind in type(key).__mro__ if "__setitem__" in vars(kind) and kind.__name__ == "Object")
    monkeypatch.setattr(base, "__setitem__", refuse)
    done = Deactivate(record.id).run(admin)
    assert not done.enforced
    assert "refuses to change CKA_SIGN" in done.reason
    monkeypatch.undo()
    Destroy(record.id).run(admin)


# ---- backups ----


def test_a_deactivated_key_comes_back_deactivated(admin):
    record = GenerateKey("ecdsa-p256", "retired", extractable=True).run(admin)[0]
    Deactivate(record.id).run(admin)
    backup = ExportWrapped(record.id, "wrapper-1").run(admin)
    Destroy(record.id).run(admin)
    assert not ImportWrapped(backup).run(admin).can_sign
    Destroy(record.id).run(admin)


def test_the_wrapping_key_never_leaves(admin):
    record = GenerateKey("ecdsa-p256", "kept safe", extractable=True).run(admin)[0]
    ExportWrapped(record.id, "wrapper-2").run(admin)
    with admin.session("looking") as session:
        [key] = session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: "wrapper-2"})
        assert key[Attribute.SENSITIVE]
        assert key[Attribute.NEVER_EXTRACTABLE]
        assert not key[Attribute.ENCRYPT]
        assert not key[Attribute.DECRYPT]
    Destroy(record.id).run(admin)


def test_nothing_is_wrapped_with_a_key_that_can_be_read(admin):
    record = GenerateKey("ecdsa-p256", "kept safe", extractable=True).run(admin)[0]
    with admin.session("making a trap") as session:
        session.create_object(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: KeyType.AES,
                Attribute.VALUE: bytes(32),
                Attribute.LABEL: "trap",
                Attribute.TOKEN: True,
                Attribute.WRAP: True,
                Attribute.SENSITIVE: False,
                Attribute.EXTRACTABLE: True,
            }
        )
    with pytest.raises(ControlError, match="can leave the token"):
        ExportWrapped(record.id, "trap").run(admin)
    Destroy(record.id).run(admin)


def test_a_label_of_two_wrapping_keys_names_none(admin):
    record = GenerateKey("ecdsa-p256", "kept safe", extractable=True).run(admin)[0]
    backup = ExportWrapped(record.id, "twins").run(admin)
    with admin.session("making a twin") as session:
        session.generate_key(KeyType.AES, 256, label="twins", store=True)
    with pytest.raises(KeyAmbiguous, match="2 secret keys have the label 'twins'"):
        ExportWrapped(record.id, "twins").run(admin)
    Destroy(record.id).run(admin)
    with pytest.raises(KeyAmbiguous, match="2 secret keys have the label 'twins'"):
        ImportWrapped(backup).run(admin)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_is_proved_by_a_signature_of_its_own(admin, algorithm):
    record = GenerateKey(algorithm, "to be proved").run(admin)[0]
    other = GenerateKey(algorithm, "to be proved, too").run(admin)[0]
    assert _native.verify(algorithm, record.public_key, b"message", Prove(record.id, b"message").run(admin))
    assert not _native.verify(algorithm, other.public_key, b"message", Prove(record.id, b"message").run(admin))
    for one in (record, other):
        Destroy(one.id).run(admin)


def test_keys_are_not_extractable_unless_asked_for(admin):
    record = GenerateKey("ecdsa-p256", "kept in").run(admin)[0]
    with pytest.raises(KeyNotExportable, match="not extractable") as caught:
        ExportWrapped(record.id).run(admin)
    assert "--extractable" in caught.value.hint
    assert not caught.value.retryable
    Destroy(record.id).run(admin)


def test_a_token_that_cannot_wrap_ed25519_says_so(admin):
    record = GenerateKey("ed25519", "kept in", extractable=True).run(admin)[0]
    with pytest.raises(KeyNotExportable, match="cannot wrap keys of this type") as caught:
        ExportWrapped(record.id).run(admin)
    assert caught.value.ckr == 0x69
    Destroy(record.id).run(admin)


def test_a_backup_needs_its_wrapping_key(admin):
    record = GenerateKey("ecdsa-p256", "kept safe", extractable=True).run(admin)[0]
    envelope = orjson.loads(ExportWrapped(record.id, "wrapper-1").run(admin))
    Destroy(record.id).run(admin)
    with pytest.raises(KeyNotFound, match="does not hold the wrapping key"):
        ImportWrapped(orjson.dumps({**envelope, "wrappingKey": "elsewhere"})).run(admin)
    wrapped = bytearray(envelope["wrapped"].encode())
    wrapped[10] = ord("A") if wrapped[10] != ord("A") else ord("B")
    with pytest.raises(hsmcore.HsmError):
        ImportWrapped(orjson.dumps({**envelope, "wrapped": wrapped.decode()})).run(admin)
    assert record.id not in [key.id for key in ListKeys().run(admin)]


# ---- the module, the token, the login ----


def test_a_module_that_the_core_does_not_hold_is_refused(settings):
    with pytest.raises(ControlError, match="not held by the native core"):
        adopt(settings.module_path)


def test_adopting_neither_initializes_nor_finalizes(settings):
    holder = hold_module(settings.module_path)
    try:
        for _ in range(3):
            library = adopt(settings.module_path)
            assert isinstance(library, AdoptedLibrary)
            assert not library.initialized
            library.finalize()
            with pytest.raises(ControlError):
                library.reinitialize()
            del library
            assert adopt(settings.module_path).get_slots()
    finally:
        holder.close()


@pytest.mark.parametrize(
    ("selector", "error"),
    [
        (TokenSelector(label="elsewhere"), TokenNotFound),
        (TokenSelector(label="sequencer", serial="0000"), TokenNotFound),
        (TokenSelector(slot_id=2**40), TokenNotFound),
        (TokenSelector(), TokenAmbiguous),  # SoftHSM always shows one more, empty token
    ],
)
def test_exactly_one_token_must_match(settings, selector, error):
    with pytest.raises(error), TokenAdmin(TokenAccess(settings.module_path, selector), pin=settings.resolve_pin):
        pytest.fail("it opened")


def test_a_module_that_is_missing(settings):
    with pytest.raises(ModuleMissing):
        TokenAdmin(TokenAccess("/nowhere/libmissing.so", TokenSelector(label="a"))).open()


def test_without_a_login_a_token_does_not_look_empty(settings):
    with TokenAdmin(TokenAccess(settings.module_path, TokenSelector(label=settings.token_label))) as admin:
        with pytest.raises(SessionFailed, match="no longer logged in") as caught:
            ListKeys().run(admin)
        assert "Start the signing engine" in caught.value.hint


def test_a_wrong_pin_is_tried_once_and_wiped(settings):
    given = []

    def wrong():
        given.append(bytearray(b"wrong-pin"))
        return given[-1]

    selector = TokenSelector(label=settings.token_label)
    with pytest.raises(PinIncorrect) as caught:
        TokenAdmin(TokenAccess(settings.module_path, selector), pin=wrong).open()
    assert given == [bytearray(len("wrong-pin"))]
    assert "wrong-pin" not in repr(caught.value) + str(caught.value.__cause__)


def test_a_locked_pin_is_not_tried(settings, monkeypatch):
    flags = SimpleNamespace(USER_PIN_LOCKED=0, USER_PIN_FINAL_TRY=TokenFlag.USER_PIN_INITIALIZED)
    monkeypatch.setattr("hsmcore.members.control.admin.TokenFlag", flags)
    selector = TokenSelector(label=settings.token_label)
    with pytest.raises(PinLocked):
        TokenAdmin(TokenAccess(settings.module_path, selector), pin=lambda: pytest.fail("the PIN was fetched")).open()


# ---- the event loop ----


def test_a_token_that_cannot_be_opened_leaves_nothing_open(settings):
    async def run():
        plane = ControlPlane(TokenAccess(settings.module_path, TokenSelector(label="elsewhere")))
        with pytest.raises(TokenNotFound):
            async with plane:
                pytest.fail("it opened")
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("hsmcore-control")]

    asyncio.run(run())


def test_beside_a_signing_engine(folder, settings, monkeypatch):
    """Nothing that the control plane does may log the engine out, invalidate its keys or stop its signing."""

    async def run():
        async with hsmcore.create_key_manager(str(folder.config)) as manager:
            plane = ControlPlane.for_settings(settings, member="m")  # without a PIN: the engine has logged in
            stop = False

            async def keep_signing():
                count = 0
                while not stop:
                    signature = await manager.sign(b"%d" % count)
                    assert _native.verify("ed25519", manager.public_key, b"%d" % count, signature)
                    count += 1
                return count

            signing = [asyncio.create_task(keep_signing()) for _ in range(8)]
            for number in range(10):
                record = await plane.generate_key("ed25519", f"beside-{number}")
                assert (await plane.deactivate(record.id)).enforced
                await plane.destroy(record.id)
            await plane.close()
            before = await manager.sign(b"after")
            stop = True
            assert min(await asyncio.gather(*signing)) > 0
            assert await manager.verify(b"after", before)

            late, see = [False], TokenAdmin._logged_in
            # A plane that has a PIN sees that it isn't needed, and leaves the engine's login alone; also one that sees
            # it only when the engine was faster.
            for _ in range(2):
                async with ControlPlane.for_settings(settings, log_in=True) as second:
                    assert await second.list_keys()
                assert await manager.verify(b"still", await manager.sign(b"still"))
                monkeypatch.setattr(TokenAdmin, "_logged_in", lambda *one: late.pop() if late else see(*one))

    asyncio.run(run())
