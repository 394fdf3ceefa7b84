"""A module may leave out a token when it is initialized: SoftHSM does while another process writes the token's file."""

from __future__ import annotations

import pytest
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.verifiers import is_good
from tests.support.wrapper import compile_wrapper

import hsmcore
from hsmcore.config import load
from hsmcore.members.control.plane import ControlPlane

pytestmark = pytest.mark.integration

# The token is there from the second C_Initialize of a process on, or never.
_BODY = r"""
static int initialized;

static CK_RV initialize(void *args) {
    initialized++;
    return theirs->C_Initialize(args);
}

static CK_RV token_info(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
    return initialized < FROM ? CKR_TOKEN_NOT_PRESENT : theirs->C_GetTokenInfo(slot, info);
}

static CK_RV slots(CK_BBOOL present, CK_SLOT_ID_PTR list, CK_ULONG_PTR count) {
    if (present && initialized < FROM) {
        *count = 0;
        return CKR_OK;
    }
    return theirs->C_GetSlotList(present, list, count);
}

static void change(void) {
    own.C_Initialize = initialize;
    own.C_GetTokenInfo = token_info;
    own.C_GetSlotList = slots;
}
"""

# The first question for the slots fails, in each process.
_FAILS_TWICE = r"""
static int asked;

static CK_RV slots(CK_BBOOL present, CK_SLOT_ID_PTR list, CK_ULONG_PTR count) {
    return asked++ < 2 ? CKR_GENERAL_ERROR : theirs->C_GetSlotList(present, list, count);
}

static void change(void) {
    own.C_GetSlotList = slots;
}
"""


@pytest.fixture
def config(tmp_path, fresh_token):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"})

    def make(first: int, isolation: str) -> dict:
        module = compile_wrapper(_BODY, token.module, tmp_path / "late.so", FROM=str(first))
        return token.config(settings={"modulePath": str(module), "isolation": isolation})

    return make


@pytest.mark.parametrize("isolation", ["thread", "process"])
@one_loop
async def test_a_token_that_was_left_out_is_looked_for_again(config, isolation):
    async with opened(config(2, isolation)) as manager:
        assert is_good("ed25519", manager.public_key, b"m", await manager.sign(b"m", 5.0))
        assert await manager.generate_key()  # the control plane finds it, too


@one_loop
async def test_an_error_that_passes_while_the_control_plane_opens_the_token(tmp_path, fresh_token):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"})
    module = compile_wrapper(_FAILS_TWICE, token.module, tmp_path / "late.so")
    plane = ControlPlane.for_settings(
        load(token.config(settings={"modulePath": str(module)})).key_manager.own.config, member="m", isolated=True
    )
    try:
        assert {key.label for key in await plane.list_keys()} == {"ed25519-key"}
    finally:
        await plane.close()


@pytest.mark.parametrize("isolation", ["thread", "process"])
@one_loop
async def test_one_that_is_not_there_is_not_found(config, isolation):
    with pytest.raises(hsmcore.TokenNotFound):
        await hsmcore.create_key_manager(config(99, isolation)).initialize()
