"""YubiHSM 2: the vendor's module against a simulated device. What works, and the rights of users."""

from __future__ import annotations

import pytest
from tests.support.loops import one_loop
from tests.support.managers import counters, opened
from tests.support.verifiers import is_good
from tests.support.yubihsm import Capability
from tests.support.yubihsm.rig import ADMIN, DOMAIN, KEY_ID, PASSWORDS, SIGNER

import hsmcore
from hsmcore.errors import HsmError, KeyNotFound, LoginError, RequestRejected
from hsmcore.members.control import ControlPlane
from hsmcore.members.control.backup import ExportWrapped, ImportWrapped
from hsmcore.members.control.faults import ControlError, KeyNotExportable

pytestmark = pytest.mark.integration

isolations = pytest.mark.parametrize("isolation", [pytest.param("thread", marks=pytest.mark.deep), "process"])


@one_loop
async def test_it_is_recognized_without_being_named(rig):
    settings = {name: value for name, value in rig.settings().items() if name in ("modulePath", "keyId")}
    settings |= {"moduleArgs": f"connector={rig.connector.url}"}
    settings["pin"] = {"file": rig.password_file(f"{SIGNER:04x}{PASSWORDS[SIGNER]}")}
    async with opened({"keyManager": {"type": "pkcs11", "config": settings}}) as manager:
        assert manager._path.member.engine.token()["quirks"] == "yubihsm"
        assert is_good("ed25519", rig.public_key, b"x", await manager.sign(b"x"))


# ---- refused at the start --------------------------------------------------------------------------------------------


@isolations
@one_loop
async def test_a_user_that_does_not_exist_is_refused_and_tried_once(rig, isolation):
    manager = hsmcore.create_key_manager(rig.config(0x0777, settings={"isolation": isolation}))
    for _attempt in range(2):
        with pytest.raises(LoginError) as caught:
            await manager.initialize()
        assert not caught.value.retryable
    assert rig.device.openings == {0x0777: 1}
    control = ControlPlane.for_settings(
        hsmcore.config.load(rig.config(0x0777)).key_manager.config, isolated=isolation == "process", log_in=True
    )
    for _attempt in range(2):
        with pytest.raises(LoginError):
            await control.list_keys()
    await control.close()
    assert rig.device.openings == {0x0777: 2}


@one_loop
async def test_a_key_in_another_domain_is_not_seen(rig):
    rig.device.put_key(0x0066, "elsewhere", domains=DOMAIN << 1)
    with pytest.raises(KeyNotFound):
        async with opened(rig.config(settings={"keyId": "0066"})):
            pass


@one_loop
async def test_a_user_without_the_right_to_sign_fails_the_start(rig):
    rig.device.put_user(0x0009, "no-such-user", capabilities=Capability.GET_PSEUDO_RANDOM, delegated=0)
    with pytest.raises(HsmError) as caught:
        async with opened(rig.config(0x0009)):
            pass
    assert (caught.value.status, caught.value.retryable) == ("REQUEST_REJECTED", False)


@one_loop
async def test_opening_and_closing_leaves_no_session_on_the_device(rig):
    for _round in range(20):  # sixteen would be all that the device has
        async with opened(rig.config()) as manager:
            await manager.sign(b"x")
        assert rig.device.sessions == {}


# ---- limits ----------------------------------------------------------------------------------------------------------


@isolations
@one_loop
async def test_a_message_that_the_device_cannot_take_is_that_request_s_fault(rig, isolation):
    async with opened(rig.config(settings={"isolation": isolation})) as manager:
        for size in (3115, 3134, 3135, 4096, 8000, 16_384):
            with pytest.raises(RequestRejected) as caught:
                await manager.sign(bytes(size))
            assert (caught.value.status, caught.value.retryable) == ("MESSAGE_REJECTED", False)
            assert is_good("ed25519", rig.public_key, bytes(3114), await manager.sign(bytes(3114)))
        assert set(counters(manager)["recoveries"]) <= {"REQUEST_FATAL", "RESET"}


# ---- keys ------------------------------------------------------------------------------------------------------------


@one_loop
async def test_generations_of_keys_have_labels_that_fit(rig):
    async with opened(rig.config(ADMIN)) as manager:
        for _generation in range(5):
            await manager.set_current_key_id(await manager.generate_key())
        known = manager.keys()
        assert len({key.label for key in known}) == 6
    with pytest.raises(ControlError, match="40 bytes"):
        async with opened(rig.config(ADMIN)) as manager:
            await manager._path.member.control.generate_key("ed25519", "x" * 41)


@isolations
@one_loop
async def test_the_signing_user_cannot_make_keys(rig, isolation):
    async with opened(rig.config(settings={"isolation": isolation})) as manager:
        before = len(rig.device.store)
        with pytest.raises(HsmError) as caught:
            await manager.generate_key()
        assert (caught.value.ckr_name, caught.value.retryable) == ("CKR_FUNCTION_REJECTED", False)
        assert len(rig.device.store) == before
        assert is_good("ed25519", rig.public_key, b"x", await manager.sign(b"x"))


@one_loop
async def test_what_the_device_does_not_let_out(yubihsm):
    rig = yubihsm(capabilities=Capability.SIGN_EDDSA)
    async with opened(rig.config(ADMIN)) as manager:
        with pytest.raises(KeyNotExportable):
            await manager.export_key_backup(f"{KEY_ID:04x}")


@one_loop
async def test_a_backup_that_names_another_key_restores_nothing(rig):
    async with opened(rig.config(ADMIN)) as manager:
        control = manager._path.member.control
        other = await control.generate_key("ed25519", "other", extractable=True)
        backup, foreign = await control.do(ExportWrapped(f"{KEY_ID:04x}")), await control.do(ExportWrapped(other.id))
        await control.destroy(other.id)
        wrapped = foreign.split(b'"wrapped":')[1]
        mixed = backup.replace(f'"id":"{KEY_ID:04x}"'.encode(), b'"id":"0abc"').split(b'"wrapped":')[0]
        with pytest.raises(ControlError, match="another key"):
            await control.do(ImportWrapped(mixed + b'"wrapped":' + wrapped))
        assert [key.id for key in await control.list_keys()] == [f"{KEY_ID:04x}"]
