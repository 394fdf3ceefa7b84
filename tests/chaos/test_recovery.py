"""The recovery ladder: every CKR at every call; losses under load; wrong signatures; keys that are replaced."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from tests.chaos.load import Load, signs, tell, until_it_signs
from tests.support.chaos import Chaos, destroy_key, replace_key, wrap
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, until
from tests.support.size import share
from tests.support.verifiers import is_good

import hsmcore
from hsmcore import _native
from hsmcore.errors import (
    EXCEPTION_OF_STATUS,
    DeadlineExceeded,
    KeyMismatch,
    KeyNotFound,
    MemberDown,
    SessionFailed,
    SignatureInvalid,
    SignatureMalformed,
)
from hsmcore.errors.statuses import RETRYABLE_CLASSES, STATUSES

pytestmark = [pytest.mark.integration]

CLASS = {status: row.class_ for status, row in STATUSES.items()}
CKRS = [(number, name, status) for number, name, status in _native.ckr_table() if number != 0]
CKRS.append((0x80000042, "vendor", "CKR_UNKNOWN"))
CLASSES = sorted({CLASS[status] for _, _, status in CKRS})
MENDED = {"RETRY", "RESET", "REOPEN", "RELOGIN", "REFIND", "MEMBER_DOWN", "REINIT"}
FINDING = ("C_OpenSession", "C_Login", "C_FindObjectsInit", "C_FindObjects")
# Logging in again and finding keys again is not done more often than this.
HEAL_INTERVAL = 0.02


def of_class(name: str) -> list[tuple[int, str, str]]:
    """The rows of ckr.def with this class."""
    return [row for row in CKRS if CLASS[row[2]] == name]


def gained(manager: hsmcore.KeyManager, before: dict[str, int]) -> dict[str, int]:
    """The rungs climbed since."""
    return dict(Counter(counters(manager)["recoveries"]) - Counter(before))


# ---- every CKR, once, while signing ----------------------------------------------------------------------------------


@one_loop
@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign"])
@pytest.mark.parametrize("class_", CLASSES)
async def test_each_ckr_of_a_signature_has_its_class_s_action(world, tmp_path, class_, function):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 1})) as manager:
        for number, name, status in of_class(class_):
            await asyncio.sleep(HEAL_INTERVAL * 1.2)
            before, calls = counters(manager), chaos.calls(function)
            chaos.fault(function, "return", ckr=number)
            message = f"{function} {name}".encode()
            if class_ in MENDED:
                await signs(manager, message)
                # C_Initialize resets the module's own counts.
                assert chaos.calls(function) == (1 if class_ == "REINIT" else calls + 2), name
            else:
                with pytest.raises(EXCEPTION_OF_STATUS[status]) as caught:
                    await manager.sign(message)
                assert (caught.value.status, caught.value.call, caught.value.ckr) == (status, function, number)
                assert caught.value.retryable == RETRYABLE_CLASSES[class_] is False
                assert chaos.calls(function) == calls + 1, name
            assert gained(manager, before["recoveries"]) == {class_: 1}, name
            assert counters(manager)["signatures"] - before["signatures"] == (class_ in MENDED), name
            assert not counters(manager)["down"], name
        await signs(manager, b"as if nothing had been")
        assert chaos.calls("C_Login") <= 1
        assert counters(manager)["wrong"] == 0


# ---- every CKR, once, while opening ----------------------------------------------------------------------------------


def forget_refusals(manager):
    manager.config.key_manager.refused_logins.unlink(missing_ok=True)


@one_loop
@pytest.mark.parametrize("function", FINDING)
async def test_each_ckr_while_opening_is_reported_and_leaves_nothing(world, tmp_path, function):
    chaos = Chaos(tmp_path, wrap(world))
    config = chaos.config(settings={"sessions": 1})
    with _native.Module(chaos.module, chaos.args):  # so that the module goes on counting from one opening to the next
        for number, name, status in CKRS:
            # C_OpenSession: the login session, then the worker's.
            for nth in (1, 2) if function == "C_OpenSession" else (1,):
                chaos.fault(function, "return", nth=nth, ckr=number)
                logins = chaos.calls("C_Login")
                manager = hsmcore.create_key_manager(config)
                if name == "CKR_USER_ALREADY_LOGGED_IN" and function == "C_Login":
                    await manager.initialize()  # believed, and found out in time
                    await signs(manager, b"logged in after all")
                    await manager.close()
                    continue
                with pytest.raises(hsmcore.HsmError) as caught:
                    await manager.initialize()
                error = caught.value
                assert (error.status, error.call, error.ckr) == (status, function, number), name
                assert type(error) is EXCEPTION_OF_STATUS[status], name
                assert chaos.stats()["sessions"] == 0, name
                if CLASS[error.status] == "AUTH_FATAL":
                    with pytest.raises(hsmcore.HsmError, match="another attempt"):
                        await manager.initialize()
                assert chaos.calls("C_Login") <= logins + 1, name
                forget_refusals(manager)  # it is the right PIN
                chaos.clear()
        async with opened(config) as manager:
            await signs(manager, b"opened after all")


# ---- every CKR, once, while the ladder is climbed --------------------------------------------------------------------


@one_loop
@pytest.mark.parametrize("function", FINDING)
async def test_each_ckr_while_recovering_is_overcome(world, tmp_path, function):
    chaos = Chaos(tmp_path, wrap(world))
    skipped = "AUTH_FATAL" if function == "C_Login" else None  # those have a test of their own
    async with opened(chaos.config(settings={"sessions": 1})) as manager:
        for number, name, status in CKRS:
            if CLASS[status] == skipped and name != "CKR_USER_ALREADY_LOGGED_IN":
                continue
            if status == "KEY_UNUSABLE" and function.startswith("C_FindObjects"):
                continue  # the next test
            await asyncio.sleep(HEAL_INTERVAL * 1.2)
            before = counters(manager)["recoveries"]
            chaos.clear()
            chaos.fault(function, "return", ckr=number)
            chaos.fault("C_SignInit", "kill-all-sessions")
            errors = await until_it_signs(manager)
            assert gained(manager, before).get("REOPEN", 0) >= 1, name
            for error in errors:
                assert error.retryable or error.ckr == number, (name, error)
        assert counters(manager)["wrong"] == 0


@one_loop
@pytest.mark.parametrize("function", ["C_FindObjectsInit", "C_FindObjects"])
async def test_a_search_that_fails_is_not_taken_for_another_key(world, tmp_path, function):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 1})) as manager:
        chaos.fault(function, "return", ckr="CKR_KEY_TYPE_INCONSISTENT")
        chaos.fault("C_SignInit", "kill-all-sessions")
        await until_it_signs(manager, 1.0)


@one_loop
@pytest.mark.parametrize("row", of_class("AUTH_FATAL"), ids=lambda row: row[1])
async def test_a_login_that_is_refused_while_recovering_is_not_tried_again(world, tmp_path, row):
    number, name, _status = row
    if name == "CKR_USER_ALREADY_LOGGED_IN":
        pytest.skip("that is a success")
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2})) as manager:
        chaos.fault("C_Login", "return", ckr=number)
        chaos.fault("C_SignInit", "kill-all-sessions")
        with _native.Module(chaos.module, chaos.args):
            for attempt in range(15):
                with pytest.raises(hsmcore.HsmError) as caught:
                    await manager.sign(f"{attempt}".encode())
                assert caught.value.error_class == "AUTH_FATAL"  # and not what followed from it
                await asyncio.sleep(0.02)
            assert chaos.calls("C_Login") == 2  # the one at the start, and the one that was refused


# ---- under load ------------------------------------------------------------------------------------------------------


LOSSES: dict[str, dict[str, Any]] = {
    "kill-all-sessions": {},
    "logout": {},
    "remove-token": {"milliseconds": 300},
}


@one_loop
@pytest.mark.parametrize("action", LOSSES)
async def test_signing_goes_on_after_a_loss_under_load(world, tmp_path, capsys, action):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 4})) as manager, Load(manager) as load:
        await load.until_good(200)
        begun = time.monotonic()
        await asyncio.sleep(0.3)
        struck = time.monotonic()
        rate = load.between(begun, struck) / (struck - begun)
        chaos.fault("C_Sign", action, **LOSSES[action])
        await asyncio.sleep(LOSSES[action].get("milliseconds", 0) / 1000)
        over = time.monotonic()
        await load.until_good(200)
        back = next(when for when in load.good[-200:] if when > over) - over
        await asyncio.sleep(0.3)
        after = load.between(time.monotonic() - 0.3, time.monotonic()) / 0.3
        stats = counters(manager)
        tell(
            capsys,
            f"{action}: signing {back * 1e3:.1f} ms after it, {rate:.0f}/s before, {after:.0f}/s then, "
            f"{len(load.errors)} of {load.asked} failed as retryable, {stats['recoveries']}",
        )
        assert after > rate * 0.3  # the machine is shared: what is measured is printed
        assert stats["recoveries"]
        assert stats["wrong"] == 0
        assert not stats["down"]
        assert chaos.stats()["sessions"] in (4, 5)  # of four workers, and perhaps the login's, which signs nothing


# ---- wrong signatures ------------------------------------------------------------------------------------------------


@one_loop
@pytest.mark.parametrize("key", ["ed25519", "ecdsa-p256"])
@pytest.mark.parametrize("action", ["wrong-signature", "other-key-signature", "recycle-handle"])
async def test_a_wrong_signature_never_reaches_the_caller(world, tmp_path, action, key):
    chaos = Chaos(tmp_path, wrap(world, key))
    algorithm = world.keys[key].algorithm
    async with opened(chaos.config(settings={"sessions": 2, "verifySignatures": "always"})) as manager:
        for number in range(4):
            await asyncio.sleep(HEAL_INTERVAL * 1.2)
            chaos.fault("C_Sign", action)
            for part in range(4):
                message = f"{action} {number} {part}".encode()
                signature = await manager.sign(message)
                assert is_good(algorithm, world.keys[key].public_key, message, signature)
        stats = chaos.stats()
        assert stats["faults"][action] == 4
        assert stats["skipped"] == 0
        assert counters(manager)["wrong"] == 4
        assert counters(manager)["recoveries"] == {"MEMBER_DOWN": 4}
        assert not counters(manager)["down"]


@one_loop
@pytest.mark.parametrize("action", ["other-key-signature", "recycle-handle"])
async def test_a_key_that_may_not_sign_never_replaces_another(fresh_token, tmp_path, action):
    token = fresh_token(
        {"name": "ed25519", "kind": "ed25519"}, *({"name": f"no-{n}", "kind": "ed25519", "sign": False} for n in "12")
    )
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(chaos.config(settings={"sessions": 2, "verifySignatures": "always"})) as manager:
        chaos.fault("C_Sign", action)
        for part in range(4):
            await signs(manager, f"{action} {part}".encode())
        assert chaos.stats()["skipped"] == 0
        assert counters(manager)["wrong"] == 1


@one_loop
async def test_a_token_that_only_signs_wrongly_gives_no_signature(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2, "verifySignatures": "always"})) as manager:
        chaos.fault("C_Sign", "wrong-signature", every=1)
        answers = await manager.sign_many([f"{n}".encode() for n in range(50)], return_exceptions=True)
        assert {type(answer) for answer in answers} == {SignatureInvalid}
        assert counters(manager)["wrong"] >= 50
        assert counters(manager)["signatures"] == 0
        chaos.clear()
        await until_it_signs(manager)


@one_loop
@pytest.mark.parametrize("verify", ["always", "never"])
@pytest.mark.parametrize("action", ["long-signature", "short-signature"])
async def test_a_signature_of_the_wrong_length_is_never_handed_out(world, tmp_path, action, verify):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 1, "verifySignatures": verify})) as manager:
        chaos.fault("C_Sign", action)
        await signs(manager, b"once")
        assert counters(manager)["recoveries"] == {"RETRY": 1}
        chaos.fault("C_Sign", action, every=1)
        with pytest.raises((SignatureMalformed, DeadlineExceeded)) as caught:  # shortly before its time, or with it
            await manager.sign(b"always", 1.0)
        assert caught.value.retryable
        assert "SIGNATURE_MALFORMED" in f"{caught.value.status} {caught.value}"  # either one names the cause
        assert counters(manager)["recoveries"]["RETRY"] > 2
        chaos.clear()
        await signs(manager, b"and then not")


@one_loop
async def test_a_key_that_comes_back_as_another_is_never_used_again(fresh_token, tmp_path):
    token = fresh_token()
    chaos = Chaos(tmp_path, wrap(token))
    old = token.keys["ed25519"].public_key
    async with opened(chaos.config()) as manager:
        assert manager.public_key == old
        await signs(manager, b"before")
        await asyncio.to_thread(replace_key, token, "ed25519")
        chaos.fault("C_SignInit", "kill-all-sessions")
        with pytest.raises((KeyMismatch, SessionFailed)):
            await manager.sign(b"the one that finds it out")
        for number in range(20):
            with pytest.raises(KeyMismatch):
                await manager.sign(f"{number}".encode())
            await asyncio.sleep(0.01)
        assert manager.public_key == old
        assert counters(manager)["signatures"] == 1


@one_loop
async def test_the_request_that_finds_another_key_does_not_sign_with_it(fresh_token, tmp_path):
    """On a token whose handles follow from the keys' ids, the old handle means the new key."""
    token = fresh_token()
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(chaos.config(settings={"sessions": 1})) as manager:
        await signs(manager, b"before")
        await asyncio.to_thread(replace_key, token, "ed25519")
        chaos.fault("C_SignInit", "kill-all-sessions")
        chaos.fault("C_SignInit", "recycle-handle", nth=3)
        with pytest.raises(KeyMismatch):
            await manager.sign(b"the one that finds it out")
        assert counters(manager)["signatures"] == 1


@one_loop
async def test_a_destroyed_key_fails_its_own_requests_as_not_found(fresh_token, tmp_path):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(chaos.config()) as manager:
        await manager.set_current_key_id(token.keys["other"].id)
        await signs(manager, b"before")
        await asyncio.to_thread(destroy_key, token, "ed25519")
        chaos.fault("C_SignInit", "kill-all-sessions")
        await until_it_signs(manager)  # the other key is none the worse
        await manager.set_current_key_id(token.keys["ed25519"].id)
        with pytest.raises(hsmcore.HsmError) as caught:
            await manager.sign(b"with a key that is gone")
        assert isinstance(caught.value, (SessionFailed, KeyNotFound))
        await manager.set_current_key_id(token.keys["other"].id)
        await until_it_signs(manager)


# ---- a token that stays away -----------------------------------------------------------------------------------------


@one_loop
async def test_an_absent_token_is_only_probed_and_used_again_when_it_is_back(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    away = [
        {"function": function, "action": "return", "ckr": "CKR_DEVICE_REMOVED", "every": 1}
        for function in ("C_SignInit", "C_OpenSession")
    ]
    async with opened(chaos.config()) as manager, Load(manager, callers=16) as load:
        await load.until_good(20)
        chaos.write(faults=away)  # for when the module is initialized again
        for fault in away:
            chaos.ask("fault", **fault)
        await until(lambda: counters(manager)["down"])
        before, struck = len(load.errors), len(chaos.log.read_text().splitlines())
        await until(lambda: len(load.errors) - before > 2000)
        # Probes alone, after 20, 40, 80, … ms, each with the ladder's few calls: none for a caller.
        assert len(chaos.log.read_text().splitlines()) - struck < 500
        assert {type(error) for error in load.errors} == {MemberDown}
        chaos.write()
        chaos.clear()
        await load.until_good(20)
        assert not counters(manager)["down"]


@pytest.mark.parametrize("isolation", ["thread", "process"])
@one_loop
async def test_a_token_whose_folder_disappears_is_used_again_when_it_is_back(fresh_token, tmp_path, capsys, isolation):
    token = fresh_token()
    async with opened(token.config(settings={"isolation": isolation}, maxCacheSize=0)) as manager:
        for number in range(share(3, 2)):
            await signs(manager, f"before {number}".encode())
            away = token.folder.rename(tmp_path / "away")
            for n in range(30):
                with pytest.raises(hsmcore.HsmError) as caught:
                    await manager.sign(f"away {number} {n}".encode())
                assert caught.value.retryable or isinstance(caught.value, KeyNotFound)
                await asyncio.sleep(0.01)
            away.rename(token.folder)
            begun = time.monotonic()
            await until_it_signs(manager, 10.0)
            tell(capsys, f"{isolation}: token back, signing {(time.monotonic() - begun) * 1e3:.0f} ms later")


@one_loop
async def test_a_login_session_that_is_stuck_in_a_search_is_replaced(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config()) as manager:
        chaos.fault("C_FindObjectsFinal", "return", ckr="CKR_DEVICE_ERROR")
        chaos.fault("C_SignInit", "logout")
        await until_it_signs(manager, 3.0)


@one_loop
@pytest.mark.parametrize("action", ["kill-all-sessions", "logout"])
async def test_another_key_can_be_used_after_a_loss(fresh_token, tmp_path, action):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(chaos.config()) as manager:
        chaos.fault("C_SignInit", action)
        await until_it_signs(manager)
        await manager.set_current_key_id(token.keys["other"].id)
        await until_it_signs(manager)
        assert manager.public_key == token.keys["other"].public_key


@one_loop
async def test_another_key_can_be_used_after_the_login_session_alone_was_lost(fresh_token, tmp_path):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(chaos.config()) as manager:
        chaos.fault("C_FindObjectsInit", "kill-session")
        for _attempt in range(5):
            try:
                await manager.set_current_key_id(token.keys["other"].id)
            except SessionFailed:
                await asyncio.sleep(0.05)
        assert await manager.get_current_key_id() == token.keys["other"].id
        await until_it_signs(manager)


@one_loop
@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("function", ["C_FindObjectsInit", "C_FindObjects"])
async def test_a_login_that_is_lost_while_a_key_is_loaded_hides_no_key(function, isolation, fresh_token, tmp_path):
    """Without a login all private keys are hidden: that is no token without the key."""
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    config = chaos.config(settings={"sessions": 1, "isolation": isolation})
    async with opened(config) as manager:
        chaos.fault(function, "logout", nth=1)
        await manager.set_current_key_id(token.keys["other"].id)
        assert is_good("ed25519", token.keys["other"].public_key, b"m", await manager.sign(b"m"))
        assert chaos.calls("C_Login") >= 2
        with pytest.raises(KeyNotFound):
            await manager.set_current_key_id("00" * 8)
