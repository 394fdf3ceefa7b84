"""The control plane beside an engine that reinitializes the module: no stale handle is used, no call waits for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pkcs11 import Attribute, ObjectClass
from tests.chaos.load import until_it_signs
from tests.support.chaos import Chaos, wrap
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, start
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.config import load
from hsmcore.errors import MemberDown, PinIncorrect, SessionFailed
from hsmcore.members.control import ControlPlane, TokenAccess, TokenSelector
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.adopt import hold_module
from hsmcore.members.control.keys import Deactivate, Destroy, GenerateKey, ListKeys

pytestmark = [pytest.mark.integration]

NOT_INITIALIZED = "CKR_CRYPTOKI_NOT_INITIALIZED"
PAUSE = 0.05  # the engine does not initialize the module more often than this allows


@pytest.fixture
def chaos(fresh_token, tmp_path):
    chaos = Chaos(tmp_path, wrap(fresh_token()))
    chaos.pin = chaos.wrapped.settings["pin"]["file"]
    return chaos


def administrator(chaos, *, pin=True, given=None):
    def source():
        secret = bytearray(Path(chaos.pin).read_bytes())
        if given is not None:
            given.append(secret)
        return secret

    selector = TokenSelector(label=chaos.wrapped.settings["tokenLabel"])
    return TokenAdmin(TokenAccess(chaos.module, selector, chaos.args), pin=source if pin else None)


def initializations(chaos):
    """How often the module has been initialized again since the first holder."""
    holder = hold_module(chaos.module, chaos.args)
    try:
        count = holder.enter()
        holder.exit()
        return count
    finally:
        holder.close()


async def reinitialize(chaos, manager):
    """Have the engine initialize the module once more."""
    before = initializations(chaos)
    await asyncio.sleep(PAUSE)
    chaos.fault("C_SignInit", "return", ckr=NOT_INITIALIZED)
    assert is_good("ed25519", manager.public_key, b"again", await manager.sign(b"again"))
    assert initializations(chaos) == before + 1


@one_loop
async def test_what_was_open_before_is_forgotten_and_not_closed(chaos):
    given = []
    admin = administrator(chaos, given=given).open()  # first: the login is its own, in a session of its own
    async with opened(chaos.config()) as manager:
        assert [key.label for key in ListKeys().run(admin)] == ["ed25519-key"]
        await reinitialize(chaos, manager)
        # The module numbers its sessions from the start again: to close the old one would be to close the engine's.
        sessions = chaos.stats()["sessions"]
        assert [key.label for key in ListKeys().run(admin)] == ["ed25519-key"]
        made = GenerateKey("ed25519", "later").run(admin)[0]
        assert Deactivate(made.id).run(admin).enforced
        Destroy(made.id).run(admin)
        assert chaos.stats()["sessions"] == sessions
        await reinitialize(chaos, manager)
        sessions = chaos.stats()["sessions"]
        admin.close()
        assert chaos.stats()["sessions"] == sessions
        before = counters(manager)["recoveries"]
        for n in range(10):
            assert is_good("ed25519", manager.public_key, b"%d" % n, await manager.sign(b"%d" % n))
        assert counters(manager)["recoveries"] == before
    assert given == [bytearray(len(given[0]))]  # the engine had logged in when it was needed again


@one_loop
async def test_the_module_is_not_reinitialized_while_calls_are_inside(chaos):
    async with opened(chaos.config()) as manager:
        with administrator(chaos, pin=False) as admin:
            with admin.session("looking") as session:
                ListKeys().run(admin)  # nested: still one series
                chaos.fault("C_SignInit", "return", ckr=NOT_INITIALIZED, every=1)
                with pytest.raises((SessionFailed, MemberDown)) as caught:
                    await manager.sign(b"x")
                assert caught.value.retryable
                chaos.clear()
                assert len(list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))) == 1
            assert initializations(chaos) == 0
            await until_it_signs(manager)
            await reinitialize(chaos, manager)
            assert len(ListKeys().run(admin)) == 1


@one_loop
async def test_it_logs_in_when_the_login_went_with_the_engine(chaos):
    given = []
    admin = administrator(chaos, given=given)
    async with opened(chaos.config()) as manager:
        assert len(ListKeys().run(admin.open())) == 1
        assert given == []
        await reinitialize(chaos, manager)
        assert len(ListKeys().run(admin)) == 1
        assert given == []
    assert len(ListKeys().run(admin)) == 1
    assert len(given) == 1
    admin.close()


def test_a_refused_pin_is_not_tried_again(chaos):
    given = []

    def wrong():
        given.append(bytearray(b"wrong-pin"))
        return given[-1]

    admin = TokenAdmin(
        TokenAccess(chaos.module, TokenSelector(label=chaos.wrapped.settings["tokenLabel"]), chaos.args), pin=wrong
    )
    for match in ("PIN", "earlier attempt", "earlier attempt"):
        with pytest.raises(PinIncorrect, match=match):
            ListKeys().run(admin)
    assert given == [bytearray(len("wrong-pin"))]


@pytest.mark.parametrize("ckr", ["CKR_FUNCTION_FAILED", "CKR_TEMPLATE_INCONSISTENT"])
def test_a_key_is_made_although_the_token_was_searched_meanwhile(chaos, ckr):
    """SoftHSM's answers when a search in another thread has read the object while it was being made."""
    chaos.write(
        faults=[{"function": "C_GenerateKeyPair", "nth": nth, "action": "return", "ckr": ckr} for nth in (1, 2)]
    )
    with administrator(chaos) as admin:
        made = GenerateKey("ed25519", "second").run(admin)[0]
        assert [key.id for key in ListKeys().run(admin) if key.label == "second"] == [made.id]


async def test_under_load(chaos):
    """Signing, with faults that take everything away, beside key work without an end."""
    fault = {"function": "C_SignInit", "action": "return", "probability": 0.01}
    config = chaos.config(settings={"sessions": 4})
    chaos.write(faults=[{**fault, "ckr": ckr} for ckr in (NOT_INITIALIZED, "CKR_DEVICE_ERROR")])
    settings = load(config).key_manager.config
    async with opened(config) as manager, ControlPlane.for_settings(settings, log_in=True) as plane:
        done = asyncio.Event()
        signed = 0
        unexpected = []

        async def sign(worker):
            nonlocal signed
            count = 0
            while not done.is_set():
                message = b"%d %d" % (worker, count)
                count += 1
                try:
                    assert is_good("ed25519", manager.public_key, message, await manager.sign(message, 5.0))
                    signed += 1
                except hsmcore.HsmError as error:
                    unexpected.extend([] if error.retryable else [error])
                    await asyncio.sleep(0.02)

        signers = [start(sign(worker)) for worker in range(8)]
        made = worked = 0
        while worked < 12 or initializations(chaos) < 5:
            await asyncio.sleep(0.02)  # else hardly a moment would be left in which no call is inside
            try:
                key = await plane.generate_key("ed25519", f"loaded-{made}")
                made += 1
                assert (await plane.deactivate(key.id)).enforced
                await plane.destroy(key.id)
                worked += 1
            except hsmcore.HsmError as error:
                unexpected.extend([] if error.retryable else [error])
        done.set()
        await asyncio.gather(*signers)
        chaos.clear()
        assert unexpected == []
        assert signed > 0
