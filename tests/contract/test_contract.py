"""What every provider has to do. One suite over all rigs (rig.py)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.contract.rig import Rig, contract
from tests.support.loops import one_loop
from tests.support.managers import opened, start
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.config import load
from hsmcore.doctor.doctor import diagnose
from hsmcore.errors import DeadlineExceeded, KeyDeactivated, KeyNotFound, LoginError
from hsmcore.members.control.backup import ImportWrapped

pytestmark = pytest.mark.integration


def judged(rig: Rig, manager: hsmcore.KeyManager, message: bytes, signature: Any) -> bool:
    """Whether a signature is good, by a verifier that shares nothing with its maker."""
    return is_good(rig.algorithm, manager.public_key, message, signature)


async def failure_of(rig: Rig, manager: hsmcore.KeyManager, message: bytes) -> hsmcore.HsmError | None:
    """What signing fails with; None for a signature, which is judged."""
    try:
        signature = await manager.sign(message, timeout=2.0)
    except hsmcore.HsmError as error:
        return error
    assert is_good(rig.algorithm, manager.public_key, message, signature)
    return None


async def signs_within(rig: Rig, manager: hsmcore.KeyManager) -> None:
    """Sign until that succeeds, for as long as the rig is given. Every failure until then must be worth a retry."""
    end = time.monotonic() + rig.patience
    while (failure := await failure_of(rig, manager, os.urandom(16))) is not None:
        assert failure.retryable, failure
        assert time.monotonic() < end, failure
        await asyncio.sleep(0.02)


async def until(condition: Callable[[], bool]) -> None:
    """Wait; the test's own timeout ends a wait in vain."""
    while not condition():  # noqa: ASYNC110  # what is waited for happens in another process
        await asyncio.sleep(0.005)


@contract()
@one_loop
async def test_it_signs_and_says_with_what(rig):
    async with opened(rig.config()) as manager:
        assert rig.public_key in (None, manager.public_key)
        receipt = await manager.sign_with_receipt(b"a block")
        assert judged(rig, manager, b"a block", receipt.signature)
        assert receipt.public_key == manager.public_key
        assert receipt.key_id == await manager.get_current_key_id()
        assert receipt.member
        assert not receipt.cached


@contract()
@one_loop
async def test_it_signs_a_batch_in_order(rig):
    async with opened(rig.config()) as manager:
        messages = [f"transaction {number}".encode() * (1 + number % 7) for number in range(40)]
        signatures = await manager.sign_many(messages)
        assert len(signatures) == len(messages)
        assert all(judged(rig, manager, *pair) for pair in zip(messages, signatures, strict=True))
        assert await manager.sign_many([]) == []


@contract()
@one_loop
async def test_it_signs_for_many_callers_at_once(rig):
    async with opened(rig.config()) as manager:
        messages = [f"caller {number}".encode() for number in range(64)]
        signatures = await asyncio.gather(*(manager.sign(message) for message in messages))
        assert all(judged(rig, manager, *pair) for pair in zip(messages, signatures, strict=True))


@contract()
@one_loop
async def test_it_verifies(rig):
    async with opened(rig.config()) as manager:
        signature = await manager.sign(b"right")
        assert await manager.verify(b"right", signature)
        assert not await manager.verify(b"wrong", signature)
        assert not await manager.verify(b"right", bytes(64))
        with pytest.raises(KeyNotFound):
            await manager.verify(b"right", signature, key_id="no such key")


@contract()
@one_loop
async def test_a_repeated_message_may_come_from_the_cache(rig):
    async with opened(rig.config(maxCacheSize=100, cacheNonDeterministic=True)) as manager:
        first = await manager.sign_with_receipt(b"once")
        again = await manager.sign_with_receipt(b"once")
        assert again.signature == first.signature
        assert (first.cached, again.cached) == (False, True)


@contract("logins")
@one_loop
async def test_a_wrong_pin_is_tried_once(rig):
    before = rig.attempts()
    manager = hsmcore.create_key_manager(rig.wrong_pin())
    for _attempt in range(2):
        with pytest.raises(LoginError) as caught:
            await manager.initialize()
        assert not caught.value.retryable
        assert caught.value.hint
    assert rig.attempts() == before + 1
    async with opened(rig.config()) as manager:
        assert judged(rig, manager, b"after all", await manager.sign(b"after all"))


@contract()
@one_loop
async def test_a_missing_key_fails_the_start_as_not_found(rig):
    config = rig.missing_key()
    if config is None:
        return
    manager = hsmcore.create_key_manager(config)
    with pytest.raises(KeyNotFound) as caught:
        await manager.initialize()
    assert caught.value.hint
    assert not caught.value.retryable


@contract("lasts")
@one_loop
async def test_it_starts_again_with_the_same_key(rig):
    keys = set()
    for number in range(2):
        before = rig.attempts() if "logins" in rig.can else 0
        async with opened(rig.config()) as manager:
            message = f"start {number}".encode()
            assert judged(rig, manager, message, await manager.sign(message))
            keys.add(manager.public_key)
        if "logins" in rig.can:
            assert rig.attempts() == before + 1
    assert keys == {rig.public_key}


@contract("breaks")
@one_loop
async def test_it_signs_again_when_the_device_is_back(rig):
    async with opened(rig.config(settings={"verifySignatures": "always"}, requestTimeoutMs=2000)) as manager:
        assert judged(rig, manager, b"before", await manager.sign(b"before"))
        key = manager.public_key
        rig.break_device()
        try:
            while (failure := await failure_of(rig, manager, os.urandom(16))) is None:
                pass  # what was under way when it went may still be answered
        finally:
            rig.mend_device()
        assert failure.retryable, failure
        await signs_within(rig, manager)
        assert manager.public_key == key


@contract("breaks")
@one_loop
async def test_an_absent_device_fails_the_start_without_a_login_error(rig):
    rig.break_device()
    try:
        manager = hsmcore.create_key_manager(rig.config())
        with pytest.raises(hsmcore.HsmError) as caught:
            await manager.initialize()
        assert not isinstance(caught.value, LoginError)
        assert caught.value.hint
    finally:
        rig.mend_device()
    await manager.initialize()  # the same one: nothing was left of the first attempt
    try:
        assert judged(rig, manager, b"at last", await manager.sign(b"at last"))
    finally:
        await manager.close()


@contract("holds")
@one_loop
async def test_a_deadline_holds_whatever_the_device_does(rig):
    async with opened(rig.config()) as manager:
        rig.hold()
        try:
            with pytest.raises(DeadlineExceeded) as caught:
                await manager.sign(b"too late", timeout=0.2)
            assert caught.value.retryable
        finally:
            rig.release()
        await signs_within(rig, manager)


@contract("holds")
@one_loop
async def test_a_request_can_be_cancelled_while_the_device_signs(rig):
    async with opened(rig.config()) as manager:
        before = rig.begun()
        rig.hold()
        try:
            withdrawn = start(manager.sign(b"withdrawn", timeout=30))
            kept = start(manager.sign(b"kept", timeout=30))
            await until(lambda: rig.begun() > before)
            withdrawn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await withdrawn
            assert not kept.done()
        finally:
            rig.release()
        assert judged(rig, manager, b"kept", await kept)
        assert judged(rig, manager, b"next", await manager.sign(b"next"))


@contract("holds")
@one_loop
async def test_closing_answers_all_requests(rig):
    async with opened(rig.config()) as manager:
        before = rig.begun()
        rig.hold()
        try:
            messages = [f"in flight {number}".encode() for number in range(20)]
            tasks = [start(manager.sign(message, timeout=30)) for message in messages]
            await until(lambda: rig.begun() > before)
            closing = start(manager.close())
        finally:
            rig.release()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await closing
        for message, answer in zip(messages, answers, strict=True):
            assert isinstance(answer, hsmcore.HsmError) or is_good(rig.algorithm, rig.public_key, message, answer)


@contract("generates", "destroys")
@one_loop
async def test_a_new_key_signs_once_it_is_the_current_one(rig):
    async with opened(rig.config()) as manager:
        first, first_key = await manager.get_current_key_id(), manager.public_key
        old = await manager.sign(b"by the first")
        second = await manager.generate_key()
        try:
            assert (await manager.get_current_key_id(), manager.public_key) == (first, first_key)
            await manager.set_current_key_id(second)
            assert manager.public_key != first_key
            new = await manager.sign(b"by the second")
            assert is_good(rig.algorithm, manager.public_key, b"by the second", new)
            assert not is_good(rig.algorithm, first_key, b"by the second", new)
            assert await manager.verify(b"by the first", old)
            assert await manager.verify(b"by the second", new, key_id=second)
            assert not await manager.verify(b"by the second", new, key_id=first)
            await manager.set_current_key_id(first)
            assert is_good(rig.algorithm, first_key, b"back", await manager.sign(b"back"))
        finally:
            await control_of(manager).destroy(second)


@contract("generates", "destroys")
@one_loop
async def test_a_deactivated_key_signs_no_more(rig):
    async with opened(rig.config()) as manager:
        first = await manager.get_current_key_id()
        second = await manager.generate_key()
        try:
            await manager.set_current_key_id(second)
            signature = await manager.sign(b"while it may")
            await manager.deactivate_key(second)
            with pytest.raises(KeyDeactivated):
                await manager.sign(b"no more")
            with pytest.raises(KeyDeactivated):
                await manager.set_current_key_id(second)
            assert await manager.verify(b"while it may", signature, key_id=second)
            await manager.set_current_key_id(first)
            assert judged(rig, manager, b"by another", await manager.sign(b"by another"))
        finally:
            await control_of(manager).destroy(second)


@contract("generates", "destroys", "backs-up")
@one_loop
async def test_a_key_comes_back_from_its_backup(rig):
    rotation = {"enabled": False, "backupEnabled": True, "backupLocation": "file:///nowhere"}
    async with opened(rig.config(keyRotation=rotation)) as manager:
        made = await manager.generate_key()
        await manager.set_current_key_id(made)
        key = manager.public_key
        backup = await manager.export_key_backup(made)
        await control_of(manager).destroy(made)
    async with opened(rig.config(keyRotation=rotation)) as manager:
        with pytest.raises(KeyNotFound):
            await manager.set_current_key_id(made)
        restored = await control_of(manager).do(ImportWrapped(backup))
        try:
            assert (restored.id, restored.public_key) == (made, key)
            await manager.set_current_key_id(made)
            assert is_good(rig.algorithm, key, b"restored", await manager.sign(b"restored"))
        finally:
            await control_of(manager).destroy(made)


@contract()
@one_loop
async def test_doctor_finds_nothing_wrong_and_the_same_key(rig):
    report = await asyncio.to_thread(diagnose, load(rig.config()))
    [provider] = report.providers
    assert [step for step in provider.steps if step.outcome in ("fail", "skipped")] == []
    assert provider.identity is not None
    assert provider.identity.algorithm == rig.algorithm
    if rig.public_key is not None:
        assert provider.identity.public_key == rig.public_key.hex()


def control_of(manager: hsmcore.KeyManager) -> Any:
    """The manager's control plane: no public method destroys a key or puts one back."""
    member = manager._path.member
    assert member is not None
    return member.control
