"""Attributes that cannot be read for a moment, while a token is healed: that is no other key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.chaos.load import signs, until_it_signs
from tests.simulation.calls import OPTIONS
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.wrapper import compile_wrapper

from hsmcore._native import Engine
from hsmcore.errors import HsmError, KeyMismatch

pytestmark = pytest.mark.integration

# Once it has signed "lose", the next C_SignInit finds no login, and the next READS attributes are not what they are.
_BODY = r"""
static volatile int unread, lost;

static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG size, CK_BYTE_PTR out, CK_ULONG_PTR room) {
    CK_RV rv = theirs->C_Sign(session, data, size, out, room);
    if (memmem(data, size, "lose", 4) != NULL) {
        unread = READS;
        lost = 1;
    }
    return rv;
}

static CK_RV sign_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    return __sync_lock_test_and_set(&lost, 0) ? CKR_USER_NOT_LOGGED_IN : theirs->C_SignInit(session, mechanism, key);
}

static CK_RV read_attributes(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR asked,
                             CK_ULONG count) {
    CK_RV rv;
    if (unread == 0 || (ONLY != 0 && asked->type != ONLY)) {
        return theirs->C_GetAttributeValue(session, object, asked, count);
    }
    unread -= SHAPE <= 4;
    switch (SHAPE) {
    case 0:
        asked->ulValueLen = (CK_ULONG)-1;
        return CKR_ATTRIBUTE_TYPE_INVALID;
    case 1:
        asked->ulValueLen = (CK_ULONG)-1;
        return CKR_ATTRIBUTE_SENSITIVE;
    case 2:
        asked->ulValueLen = 0;
        return CKR_OK;
    case 3: /* it writes nothing */
        return CKR_OK;
    case 4:
        asked->ulValueLen = 100000;
        return CKR_OK;
    default: /* another point of the right length */
        rv = theirs->C_GetAttributeValue(session, object, asked, count);
        if (rv == CKR_OK && asked->pValue != NULL && asked->ulValueLen > 0) {
            ((CK_BYTE *)asked->pValue)[asked->ulValueLen - 1] ^= 1;
            unread--;
        }
        return rv;
    }
}

static void change(void) {
    own.C_Sign = sign;
    own.C_SignInit = sign_init;
    own.C_GetAttributeValue = read_attributes;
}
"""

BOTH = pytest.mark.parametrize("isolation", ["thread", "process"])
SHAPES = ["type invalid", "sensitive", "empty", "not written", "too long"]
OTHER = len(SHAPES)
ANY, CKA_KEY_TYPE, CKA_EC_PARAMS, CKA_EC_POINT = 0, 0x100, 0x180, 0x181


def forgetful(world, folder, shape: int, *, only: int = ANY, reads: int = 12, **settings):
    """A configuration of a module before SoftHSM."""
    numbers = {"SHAPE": str(shape), "ONLY": f"{only}UL", "READS": str(reads)}
    module = compile_wrapper(_BODY, world.module, folder / "forgetful.so", **numbers)
    own = {"modulePath": str(module), "quirks": "softhsm", **settings}
    return world.config(settings=own, maxCacheSize=0)


@one_loop
@BOTH
@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
async def test_attributes_that_cannot_be_read_for_a_moment_are_no_other_key(world, tmp_path, shape, isolation):
    async with opened(forgetful(world, tmp_path, shape, isolation=isolation)) as manager:
        await signs(manager, b"lose")
        errors = await until_it_signs(manager, 20.0)
        assert all(error.retryable and not isinstance(error, KeyMismatch) for error in errors)
        await asyncio.gather(*(signs(manager, b"%d" % number, 10.0) for number in range(20)))


@one_loop
@pytest.mark.parametrize("only", [CKA_KEY_TYPE, CKA_EC_PARAMS, CKA_EC_POINT], ids=hex)
@pytest.mark.parametrize("shape", range(len(SHAPES)), ids=SHAPES)
async def test_nor_is_one_of_them(world, tmp_path, shape, only):
    async with opened(forgetful(world, tmp_path, shape, only=only, reads=2)) as manager:
        await signs(manager, b"lose")
        errors = await until_it_signs(manager, 20.0)
        assert all(error.retryable and not isinstance(error, KeyMismatch) for error in errors)
        await asyncio.gather(*(signs(manager, b"%d" % number, 10.0) for number in range(20)))


@one_loop
@BOTH
async def test_a_key_that_was_another_one_for_a_moment_is_looked_at_again(world, tmp_path, isolation):
    """What was read was compared, and differed: no request is signed then, and the pinned key decides later."""
    config = forgetful(world, tmp_path, OTHER, only=CKA_EC_POINT, reads=1, isolation=isolation)
    async with opened(config) as manager:
        await signs(manager, b"lose")
        with pytest.raises(KeyMismatch):
            await manager.sign(b"not with this key", 5.0)
        errors = await until_it_signs(manager, 20.0)
        assert all(isinstance(error, KeyMismatch) for error in errors)
        await asyncio.gather(*(signs(manager, b"%d" % number, 5.0) for number in range(20)))


_OPEN_SEARCH = r"""
static CK_RV end_search(CK_SESSION_HANDLE session) {
    static int ends;
    return ends++ == 0 ? CKR_FUNCTION_FAILED : theirs->C_FindObjectsFinal(session);
}

static void change(void) {
    own.C_FindObjectsFinal = end_search;
}
"""


def test_a_session_that_is_still_in_its_search_looks_for_no_other_key(world, tmp_path):
    """The module has not ended the first search, and begins none in that session."""
    module = compile_wrapper(_OPEN_SEARCH, world.module, tmp_path / "open.so")
    label = next(iter(world.keys.values())).label
    engine: Any = Engine(**OPTIONS)
    try:
        engine.start(module_path=str(module), token_label=world.label, pin=bytearray(world.pin.encode()), workers=1)
        with pytest.raises(HsmError, match="C_FindObjectsFinal"):
            engine.add_key(label=label)
        engine.add_key(label=label)
    finally:
        engine.stop(5.0)
        engine.release()
