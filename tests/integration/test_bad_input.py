"""Bad input gets a clear error: what is wrong with the configuration, the token, the key, a message or a timeout."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tests.support.configs import SEED
from tests.support.loops import one_loop
from tests.support.managers import counters, opened
from tests.support.softhsm import ALGORITHMS
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.errors import (
    AlgorithmUnsupported,
    EmptyMessage,
    InvalidMessageType,
    KeyUnusable,
    PublicKeyMissing,
    TokenAmbiguous,
)

pytestmark = pytest.mark.integration

CKF_USER_PIN_COUNT_LOW = 0x10000
CKF_USER_PIN_FINAL_TRY = 0x20000
CKF_USER_PIN_LOCKED = 0x40000
WRONG_PIN = "wrong-pin-12345"


async def refusal(config: dict[str, Any], kind: type[hsmcore.HsmError]) -> hsmcore.HsmError:
    """The error that initialize() ends with. Afterwards nothing is open and nothing signs."""
    manager = hsmcore.create_key_manager(config)
    with pytest.raises(kind) as caught:
        await manager.initialize()
    assert type(caught.value) is kind
    assert not caught.value.retryable or kind is hsmcore.KeyMismatch
    with pytest.raises(hsmcore.NotInitialized):
        await manager.sign(b"x")
    await manager.close()
    return caught.value


# ---- the PIN ---------------------------------------------------------------------------------------------------------


async def test_a_wrong_pin_costs_one_attempt(fresh_token, shim):
    token = fresh_token()
    token.pin_file.write_text(WRONG_PIN)
    error = await refusal(token.config(settings={"modulePath": shim.path}), hsmcore.PinIncorrect)
    assert shim.calls("C_Login") == 1
    assert error.ckr_name == "CKR_PIN_INCORRECT"
    assert error.call == "C_Login"
    assert error.member == f"softhsm:{token.label}"
    assert str(token.pin_file) in error.hint, "it says where the PIN came from"
    assert WRONG_PIN not in f"{error!s} {error!r} {vars(error)}"


@one_loop
async def test_a_refused_pin_is_not_tried_again_by_the_same_manager(fresh_token, shim):
    token = fresh_token()
    token.pin_file.write_text(WRONG_PIN)
    manager = hsmcore.create_key_manager(token.config(settings={"modulePath": shim.path}))
    for _ in range(3):
        with pytest.raises(hsmcore.LoginError):
            await manager.initialize()
    assert shim.calls("C_Login") == 1


@one_loop
async def test_the_right_pin_works_after_a_wrong_one(fresh_token):
    token = fresh_token()
    token.pin_file.write_text(WRONG_PIN)
    await refusal(token.config(), hsmcore.PinIncorrect)
    token.pin_file.write_text(token.pin)
    async with opened(token.config()) as manager:
        assert len(await manager.sign(b"x")) == 64


@one_loop
@pytest.mark.parametrize("flag", [CKF_USER_PIN_LOCKED, CKF_USER_PIN_FINAL_TRY, CKF_USER_PIN_LOCKED | 0x10000])
async def test_a_locked_pin_or_its_last_try_is_not_touched(world, shim, flag):
    shim.token_flags(flag)
    error = await refusal(world.config(settings={"modulePath": shim.path}), hsmcore.PinLocked)
    assert shim.calls("C_Login") == 0
    assert "no attempt" in str(error)
    shim.token_flags(0)
    async with opened(world.config(settings={"modulePath": shim.path})) as manager:
        assert await manager.sign(b"x")


@one_loop
async def test_a_token_that_counts_wrong_pins_is_still_used(world, shim):
    shim.token_flags(CKF_USER_PIN_COUNT_LOW)
    async with opened(world.config(settings={"modulePath": shim.path})) as manager:
        assert await manager.sign(b"x")
    assert shim.calls("C_Login") == 1


@one_loop
@pytest.mark.parametrize(
    "pin", [{"env": "HSMCORE_TEST_NO_SUCH_VARIABLE"}, {"file": "/nonexistent/pin"}, {"file": "/dev/null"}]
)
async def test_a_pin_that_cannot_be_had_is_named_by_its_path(world, shim, pin):
    with pytest.raises(hsmcore.ConfigurationError) as caught:
        await hsmcore.create_key_manager(world.config(settings={"modulePath": shim.path, "pin": pin})).initialize()
    assert caught.value.path == "$.sequencer.keyManager.config.pin"
    assert shim.calls("C_Login") == 0


# ---- module, token ---------------------------------------------------------------------------------------------------


@one_loop
async def test_a_module_that_is_not_there(world, tmp_path):
    for path in ("/nonexistent/libsofthsm2.so", str(tmp_path)):
        error = await refusal(world.config(settings={"modulePath": path}), hsmcore.ModuleMissing)
        assert path in str(error)
        assert "softhsm2" in error.hint


@one_loop
@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\nexit 0\n", b"\x7fELF and nothing more", bytes(4096)])
async def test_a_module_that_is_no_library(world, tmp_path, content):
    path = tmp_path / "module.so"
    path.write_bytes(content)
    error = await refusal(world.config(settings={"modulePath": str(path)}), hsmcore.ModuleInvalid)
    assert str(path) in str(error)


@one_loop
async def test_a_library_that_is_no_pkcs11_module(world):
    error = await refusal(world.config(settings={"modulePath": str(find_library("libz.so.1"))}), hsmcore.ModuleInvalid)
    assert "C_GetFunctionList" in str(error)
    assert "libz" in str(error)


def find_library(name: str) -> Path:
    """A library that any process has mapped or can map."""
    folders = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib")
    return next(path for folder in folders if (path := Path(folder, name)).exists())


@one_loop
async def test_a_token_that_is_not_there(world):
    for wrong in ({"tokenLabel": "no-such-token"}, {"tokenSerial": "ffffffffffffffff"}, {"slotId": 999_999}):
        error = await refusal(world.config(settings={"tokenLabel": None} | wrong), hsmcore.TokenNotFound)
        assert str(next(iter(wrong.values()))) in str(error)
        assert world.label in str(error), "it says which tokens there are"


@one_loop
async def test_what_is_given_of_a_token_must_all_match(world):
    await refusal(world.config(settings={"tokenSerial": "ffffffffffffffff"}), hsmcore.TokenNotFound)


@one_loop
async def test_several_tokens_match(world, fresh_token):
    fresh_token()
    await refusal(world.config(settings={"tokenLabel": None}), TokenAmbiguous)


@one_loop
async def test_a_module_that_fails_says_where(world, shim):
    for call, ckr, name in (
        ("C_Initialize", 0x5, "CKR_GENERAL_ERROR"),
        ("C_OpenSession", 0xB1, "CKR_SESSION_COUNT"),
        ("C_Login", 0x30, "CKR_DEVICE_ERROR"),
        ("C_FindObjectsInit", 0x30, "CKR_DEVICE_ERROR"),
        ("C_SignInit", 0x30, "CKR_DEVICE_ERROR"),
    ):
        shim.fail(call, ckr)
        with pytest.raises(hsmcore.HsmError, match=name) as caught:
            await hsmcore.create_key_manager(world.config(settings={"modulePath": shim.path})).initialize()
        assert (caught.value.call, caught.value.ckr, caught.value.ckr_name) == (call, ckr, name)
        shim.fail(call, 0, times=0)
    async with opened(world.config(settings={"modulePath": shim.path})) as manager:
        assert await manager.sign(b"x"), "nothing of the failures stayed"


# ---- the key ---------------------------------------------------------------------------------------------------------


@one_loop
async def test_a_key_that_is_not_there(world):
    for wrong in ({"keyLabel": "no-such-key"}, {"keyLabel": None, "keyId": "00ff00ff00ff"}):
        error = await refusal(world.config(settings=wrong), hsmcore.KeyNotFound)
        assert next(filter(None, wrong.values())) in str(error)


@one_loop
async def test_label_and_id_must_both_match(world):
    await refusal(world.config(settings={"keyId": world.keys["second"].id}), hsmcore.KeyNotFound)
    async with opened(world.config(settings={"keyId": world.keys["ed25519"].id.upper()})) as manager:
        assert await manager.sign(b"x")


@one_loop
async def test_two_keys_with_one_label(world):
    error = await refusal(world.config("twin-1"), hsmcore.KeyAmbiguous)
    assert "twin-key" in str(error)
    assert "keyId" in str(error), "it says how to choose"
    twin = world.keys["twin-2"]
    async with opened(world.config("twin-2", settings={"keyId": twin.id})) as manager:
        assert manager.public_key == twin.public_key


@one_loop
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_key_that_does_not_fit_is_found_before_any_signature(world, shim, algorithm):
    for other in ALGORITHMS:
        if other != algorithm:
            config = world.config(algorithm, settings={"modulePath": shim.path, "algorithm": other})
            error = await refusal(config, KeyUnusable)
            assert algorithm in str(error)
            assert other in str(error)
    assert shim.calls("C_SignInit") == 0


@one_loop
@pytest.mark.parametrize(("what", "most"), [("CKA_LABEL", 127), ("CKA_ID", 64)])
async def test_a_key_whose_name_is_too_long(fresh_token, what, most):
    names = {"label": "long", "id": "0a0b"}
    names |= {"label": "x" * 128} if what == "CKA_LABEL" else {"id": "0a" * 65}
    token = fresh_token({"name": "long", "kind": "ed25519", **names})
    chosen = {"keyId": names["id"]} if what == "CKA_LABEL" else {"keyLabel": "long"}
    config = token.config("long")
    settings = config["sequencer"]["keyManager"]["config"]
    settings.pop("keyId", None)
    settings.pop("keyLabel", None)
    settings.update(chosen)
    error = await refusal(config, KeyUnusable)
    assert f"{what} of the private key is longer than {most} bytes" in str(error)


@one_loop
async def test_a_curve_that_is_not_supported(world, shim):
    error = await refusal(world.config("p384", settings={"modulePath": shim.path}), AlgorithmUnsupported)
    assert "p384-key" in str(error)
    assert shim.calls("C_SignInit") == 0


@one_loop
async def test_a_token_without_the_mechanism(world, shim):
    shim.fail("C_GetMechanismInfo", 0x70)
    error = await refusal(world.config(settings={"modulePath": shim.path}), AlgorithmUnsupported)
    assert "ed25519" in str(error)
    assert shim.calls("C_SignInit") == 0


@one_loop
async def test_a_key_that_may_not_sign(world, shim):
    error = await refusal(world.config("no-sign", settings={"modulePath": shim.path}), hsmcore.KeyDeactivated)
    assert "CKA_SIGN" in str(error)
    assert shim.calls("C_SignInit") == 0


@one_loop
async def test_a_key_whose_public_half_is_not_on_the_token(world):
    error = await refusal(world.config("no-public"), PublicKeyMissing)
    assert "publicKey" in str(error)
    public_key = world.keys["no-public"].public_key
    async with opened(world.config("no-public", settings={"publicKey": public_key.hex()})) as manager:
        assert manager.public_key == public_key
        assert await manager.verify(b"x", await manager.sign(b"x"))
    wrong = world.keys["ed25519"].public_key
    await refusal(world.config("no-public", settings={"publicKey": wrong.hex()}), hsmcore.KeyMismatch)


@one_loop
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_key_other_than_the_pinned_one_signs_nothing(world, shim, algorithm):
    right = world.keys[algorithm].public_key
    wrong = world.keys["second"].public_key if algorithm == "ed25519" else right[:-1] + bytes([right[-1] ^ 1])
    config = world.config(algorithm, settings={"modulePath": shim.path, "publicKey": wrong.hex()})
    await refusal(config, hsmcore.KeyMismatch)
    assert shim.calls("C_SignInit") == 0
    async with opened(world.config(algorithm, settings={"publicKey": right.hex()})) as manager:
        assert manager.public_key == right


# ---- messages and timeouts -------------------------------------------------------------------------------------------

NO_MESSAGES = {
    "text": ("a message", InvalidMessageType),
    "a number": (7, InvalidMessageType),
    "nothing": (None, InvalidMessageType),
    "a list": ([1, 2, 3], InvalidMessageType),
    "a list of bytes": ([b"x"], InvalidMessageType),
    "an object": (object(), InvalidMessageType),
    "empty": (b"", EmptyMessage),
    "an empty view": (memoryview(b""), EmptyMessage),
    "an empty bytearray": (bytearray(), EmptyMessage),
    "a mebibyte": (bytes(1 << 20), hsmcore.MessageTooLarge),
    "one byte too many": (bytes(16_385), hsmcore.MessageTooLarge),
}


@pytest.mark.parametrize("cache", [0, 100])
@pytest.mark.parametrize("case", NO_MESSAGES)
async def test_what_is_no_message_costs_nothing(world, case, cache):
    message, kind = NO_MESSAGES[case]
    async with opened(world.config(maxCacheSize=cache)) as manager:
        for call in (manager.sign, manager.sign_with_receipt):
            with pytest.raises(kind) as caught:
                await call(message)
            assert type(caught.value) is kind
            assert not caught.value.retryable
        with pytest.raises(kind):
            await manager.sign_many([b"good", message])
        assert counters(manager)["signatures"] == counters(manager)["in_flight"] == 0
        assert await manager.sign(b"good")


@one_loop
@pytest.mark.parametrize("batch", [b"abc", bytearray(b"abc"), memoryview(b"abc"), "abc", None, 7])
async def test_one_message_is_no_batch(world, batch):
    async with opened(world.config()) as manager:
        with pytest.raises(InvalidMessageType, match=f"iterable of messages, not {type(batch).__name__}") as caught:
            await manager.sign_many(batch)
        assert "list of messages" in caught.value.hint
        assert caught.value.index == 0
        assert counters(manager)["signatures"] == 0
        assert len(await manager.sign_many(iter([b"abc", b"d"]))) == 2


@one_loop
async def test_a_view_that_was_released_is_no_message(world):
    view = memoryview(bytearray(b"gone"))
    view.release()
    async with opened(world.config()) as manager:
        with pytest.raises(InvalidMessageType):
            await manager.sign(view)


@one_loop
async def test_errors_are_caught_as_python_users_expect(world):
    async with opened(world.config()) as manager:
        with pytest.raises(TypeError):
            await manager.sign("text")
        with pytest.raises(ValueError, match="byte"):
            await manager.sign(b"")
        with pytest.raises(ValueError, match="16384"):
            await manager.sign(bytes(1 << 20))
        with pytest.raises(ValueError, match="positive"):
            await manager.sign(b"x", timeout=0)


NO_TIMEOUTS = {
    "zero": 0,
    "zero as a float": 0.0,
    "negative zero": -0.0,
    "negative": -1,
    "a little negative": -1e-12,
    "not a number": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "true": True,
    "false": False,
    "text": "5",
    "decimal": Decimal(5),
    "fraction": Fraction(5),
    "a list": [5],
}


@one_loop
@pytest.mark.parametrize("case", NO_TIMEOUTS)
async def test_what_is_no_timeout_costs_nothing(world, case):
    timeout = NO_TIMEOUTS[case]
    async with opened(world.config()) as manager:
        for call in (
            manager.sign(b"x", timeout),
            manager.sign(b"x", timeout=timeout),
            manager.sign_with_receipt(b"x", timeout),
            manager.sign_many([b"x"], timeout),
            manager.sign_many([], timeout),
        ):
            with pytest.raises(hsmcore.InvalidTimeout):
                await call
        assert counters(manager)["signatures"] == counters(manager)["in_flight"] == 0


@one_loop
async def test_a_timeout_beyond_any_float_is_no_timeout(world):
    async with opened(world.config()) as manager:
        with pytest.raises(hsmcore.InvalidTimeout):
            await manager.sign(b"x", 10**400)


@one_loop
@pytest.mark.parametrize("timeout", [30, 30.0, 1e9, 10**30, 1e300])
async def test_a_long_timeout_is_a_timeout(world, timeout):
    async with opened(world.config(maxCacheSize=0)) as manager:
        assert await manager.sign(b"x", timeout)
        assert await manager.sign_many([b"x"], timeout)


async def test_a_timeout_that_passes_at_once_is_no_loss(world):
    messages = [b"%d" % n for n in range(50)]
    async with opened(world.config(maxCacheSize=0)) as manager:
        for message in messages:
            [answer] = await asyncio.gather(manager.sign(message, 1e-9), return_exceptions=True)
            if isinstance(answer, bytes):  # a worker was quick enough
                assert is_good("ed25519", manager.public_key, message, answer)
            else:
                assert isinstance(answer, hsmcore.DeadlineExceeded)
                assert isinstance(answer, TimeoutError)
                assert answer.retryable
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))


@one_loop
@pytest.mark.parametrize("signature", ["text", None, object()])
async def test_what_is_no_signature_is_refused(world, signature):
    async with opened(world.config()) as manager:
        with pytest.raises(TypeError):
            await manager.verify(b"x", signature)


@one_loop
@pytest.mark.parametrize("signature", [64, [1, 2]])
async def test_a_number_is_no_signature(world, signature):
    async with opened(world.config()) as manager:
        with pytest.raises(TypeError):
            await manager.verify(b"x", signature)


@one_loop
async def test_verifying_what_is_no_message(world):
    async with opened(world.config()) as manager:
        with pytest.raises(hsmcore.InvalidMessage):
            await manager.verify("text", bytes(64))
        with pytest.raises(hsmcore.KeyNotFound):
            await manager.verify(b"x", bytes(64), key_id="00")
        assert not await manager.verify(b"", bytes(64))


# ---- configuration ---------------------------------------------------------------------------------------------------


def changed(path: str, value: object, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """SEED with one thing set."""
    config = copy.deepcopy(json.loads(SEED) if base is None else base)
    *folders, name = path.removeprefix("$.").split(".")
    place: Any = config
    for folder in folders:
        place = place[folder]
    place[name] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("$.sequencer.keyManager.maxCachSize", 10, "maxCacheSize"),
        ("$.sequencer.keyManager.maxCacheSize", "10", "whole number"),
        ("$.sequencer.keyManager.maxCacheSize", -1, "whole number"),
        ("$.sequencer.keyManager.maxCacheSize", True, "whole number"),
        ("$.sequencer.keyManager.queueSize", 0, "whole number"),
        ("$.sequencer.keyManager.type", "cloudhsm", "aws-cloudhsm"),
        ("$.sequencer.keyManager.config.user", "me", "unknown"),
        ("$.sequencer.keyManager.config.sessions", 0, "whole number"),
        ("$.sequencer.keyManager.config.region", 7, "region"),
        ("$.sequencer.keyManager.failover.maxPrimaryRetries", 0, "whole number"),
        ("$.sequencer.keyManager.failover.emergencyModeRestrictions.allowedOperations", ["mint"], ""),
        ("$.sequencer.keyManager.keyRotation.rotationTime", "25:00:00", "HH:MM:SS"),
        ("$.sequencer.keyManager.keyRotation.timeZone", "Mars/Olympus", "time zone"),
    ],
)
def test_a_fault_in_the_configuration_is_named_by_its_path(path, value, says):
    with pytest.raises(hsmcore.ConfigurationError) as caught:
        hsmcore.create_key_manager(changed(path, value))
    assert any(fault.path.startswith(path) for fault in caught.value.faults)
    assert path in str(caught.value)
    assert says in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_all_faults_are_named_at_once(tmp_path):
    config = changed("$.sequencer.keyManager.maxCachSize", 1)
    config["sequencer"]["keyManager"]["queueSize"] = "many"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(hsmcore.ConfigurationError) as caught:
        hsmcore.create_key_manager(path)
    assert {fault.path for fault in caught.value.faults} == {
        "$.sequencer.keyManager.maxCachSize",
        "$.sequencer.keyManager.queueSize",
    }


@pytest.mark.parametrize("source", [None, 7, [], b"{}", "/nonexistent/config.json", '{"keyManager": {}}'])
def test_what_is_no_configuration(source):
    with pytest.raises(hsmcore.ConfigurationError):
        hsmcore.create_key_manager(source)


async def test_the_customers_configuration_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manager = hsmcore.create_key_manager(json.loads(SEED))
    with pytest.raises(hsmcore.ModuleMissing) as caught:
        await manager.initialize()
    assert "libcloudhsm_pkcs11.so" in str(caught.value)
    assert "Client SDK 5" in caught.value.hint
    assert caught.value.hint in str(caught.value)
    assert "password" not in str(caught.value).replace("sequencer-user", "")


@one_loop
async def test_an_audit_log_that_cannot_be_written(world, tmp_path):
    (tmp_path / "file").write_text("")
    config = world.config(auditLogFile=str(tmp_path / "file" / "audit.log"))
    with pytest.raises(hsmcore.HsmError, match="audit log") as caught:
        await hsmcore.create_key_manager(config).initialize()
    assert str(tmp_path) in str(caught.value)
