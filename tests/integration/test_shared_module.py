"""Members and key managers of one process that share a module: what one of them needs of C_Initialize, all get."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.levels import QUICK, SAME
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start
from tests.support.softhsm import Token
from tests.support.verifiers import is_good
from tests.support.wrapper import compile_wrapper

import hsmcore

pytestmark = pytest.mark.integration

# Once it has signed "poison", it fails until it is initialized again.
_POISONED = r"""
#include <stdio.h>

static volatile int poisoned;

static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG size, CK_BYTE_PTR out, CK_ULONG_PTR room) {
    CK_RV rv = theirs->C_Sign(session, data, size, out, room);
    poisoned = poisoned || memmem(data, size, "poison", 6) != NULL;
    return rv;
}

static CK_RV sign_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    return poisoned ? CKR : theirs->C_SignInit(session, mechanism, key);
}

static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR data, CK_NOTIFY notify,
                          CK_SESSION_HANDLE_PTR session) {
    return poisoned ? CKR : theirs->C_OpenSession(slot, flags, data, notify, session);
}

static CK_RV initialize(void *args) {
    FILE *log = fopen(LOG, "a");
    fputs("C_Initialize\n", log);
    fclose(log);
    poisoned = 0;
    return theirs->C_Initialize(args);
}

static void change(void) {
    own.C_Sign = sign;
    own.C_SignInit = sign_init;
    own.C_OpenSession = open_session;
    own.C_Initialize = initialize;
}
"""

CKRS = pytest.mark.parametrize("ckr", [0x190, 0x30], ids=["CKR_CRYPTOKI_NOT_INITIALIZED", "CKR_DEVICE_ERROR"])


class Poisoned:
    """A module before SoftHSM."""

    def __init__(self, target: str, folder: Path, ckr: int) -> None:
        self._log = folder / "initialized"
        self.path = compile_wrapper(_POISONED, target, folder / "poisoned.so", CKR=f"{ckr}UL", LOG=f'"{self._log}"')

    def initializations(self) -> int:
        return len(self._log.read_text().splitlines())


def levels(primary: Token, secondary: Token, module: str, folder: Path) -> dict[str, Any]:
    """Two tokens with the same key as two levels behind one module."""
    settings = {"modulePath": module, "isolation": "thread"}
    block = secondary.config(settings=settings)["sequencer"]["keyManager"]
    return primary.config(
        settings=settings,
        maxCacheSize=0,
        stateFile=str(folder / "state.db"),
        failover={**QUICK, "secondary": [{"type": block["type"], "config": block["config"]}]},
    )


async def signs(manager: hsmcore.KeyManager, message: bytes) -> str:
    """Sign, and say who did."""
    receipt = await manager.sign_with_receipt(message, 20.0)
    assert is_good("ed25519", receipt.public_key, message, receipt.signature)
    return receipt.member


@one_loop
@CKRS
async def test_levels_behind_a_module_that_lost_its_state_sign_again(ckr, fresh_token, tmp_path):
    primary, secondary = fresh_token(dict(SAME)), fresh_token(dict(SAME))
    module = Poisoned(primary.module, tmp_path, ckr)
    async with opened(levels(primary, secondary, str(module.path), tmp_path)) as manager:
        for number in range(3):
            first = await signs(manager, b"before %d" % number)
            begun = module.initializations()
            await signs(manager, b"poison %d" % number)
            await asyncio.gather(*(signs(manager, b"after %d, %d" % (number, n)) for n in range(20)))
            assert module.initializations() > begun

        async def is_back() -> bool:
            return await signs(manager, b"again") == first

        await becomes(is_back)


@one_loop
@CKRS
async def test_key_managers_on_a_module_that_lost_its_state_sign_again(ckr, fresh_token, tmp_path):
    token = fresh_token({"name": "blocks", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    module = Poisoned(token.module, tmp_path, ckr)
    blocks = {
        name: token.config(name, settings={"modulePath": str(module.path)}, maxCacheSize=0)["sequencer"]["keyManager"]
        for name in token.keys
    }
    async with hsmcore.create_key_managers({"keyManagers": blocks}) as managers:
        for number in range(3):
            await signs(managers["blocks"], b"poison %d" % number)
            await asyncio.gather(
                *(signs(m, b"after %d, %d" % (number, n)) for m in managers.values() for n in range(9))
            )
        assert module.initializations() > 1


@one_loop
async def test_a_token_that_was_away_comes_back_beside_one_that_signs(fresh_token, tmp_path):
    primary, secondary = fresh_token(dict(SAME)), fresh_token(dict(SAME))
    elsewhere = tmp_path / "token"
    async with opened(levels(primary, secondary, primary.module, tmp_path)) as manager:
        first = await signs(manager, b"before")
        going = True

        async def load() -> int:
            count = 0
            while going:
                await signs(manager, b"message %d" % count)
                count += 1
            return count

        callers = [start(load()) for _ in range(4)]
        primary.folder.rename(elsewhere)
        away = _other_than(manager, first)
        await becomes(away)
        await asyncio.sleep(2.0)
        assert await away(), "its token is away"
        elsewhere.rename(primary.folder)

        async def is_back() -> bool:
            return not await away()

        await becomes(is_back)
        going = False
        assert min(await asyncio.gather(*callers)) > 0, "each request was signed meanwhile"


def _other_than(manager: hsmcore.KeyManager, member: str) -> Callable[[], Any]:
    async def other() -> bool:
        return await signs(manager, b"who signs?") != member

    return other
