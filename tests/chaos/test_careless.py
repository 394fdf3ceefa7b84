"""A module that writes where it may only read, or nothing where it should write."""

from __future__ import annotations

import pytest
from tests.support.loops import one_loop
from tests.support.managers import counters, opened
from tests.support.verifiers import is_good
from tests.support.wrapper import compile_wrapper

from hsmcore.errors import DeadlineExceeded, SignatureMalformed

pytestmark = pytest.mark.integration

BOTH = pytest.mark.parametrize("isolation", ["thread", "process"])
MESSAGES = 40

_SIGN = r"""
static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG size, CK_BYTE_PTR out, CK_ULONG_PTR room) {
    static int calls, failed;
    CK_BYTE scratch[64];
    CK_BYTE *where = memmem(data, size, "spoil", 5);
    CK_RV rv = theirs->C_Sign(session, data, size, WRITES_NOTHING && ++calls > GOOD ? scratch : out, room);
    failed = FAILS && where != NULL && !failed;
    if (where != NULL) {
        memcpy(where, "SPOIL", 5);
    }
    return failed ? CKR_FUNCTION_FAILED : rv;
}

static void change(void) {
    own.C_Sign = sign;
}
"""


def careless(world, folder, key: str, *, fails: bool = False, writes_nothing: bool = False, **settings):
    """A configuration of a module before SoftHSM that overwrites "spoil" in its input. `fails`: and then fails, once
    for each message; `writes_nothing`: after two signatures it leaves the buffer as it was, and says that all is well.
    """
    numbers = {"FAILS": str(int(fails)), "WRITES_NOTHING": str(int(writes_nothing)), "GOOD": "2"}
    module = compile_wrapper(_SIGN, world.module, folder / "careless.so", **numbers)
    own = {"modulePath": str(module), "sessions": 1, "quirks": "softhsm", **settings}
    return world.config(key, settings=own, maxCacheSize=0)


@one_loop
@BOTH
@pytest.mark.parametrize("fails", [True, False], ids=["and fails", "and signs"])
async def test_a_module_that_writes_into_its_input_signs_what_was_asked(world, tmp_path, isolation, fails):
    config = careless(world, tmp_path, "ed25519", fails=fails, isolation=isolation, verifySignatures="always")
    async with opened(config) as manager:
        for number in range(MESSAGES):
            message = f"spoil {number}".encode()
            assert is_good("ed25519", manager.public_key, message, await manager.sign(message)), number
        assert counters(manager)["wrong"] == 0


@one_loop
@BOTH
@pytest.mark.parametrize("key", ["ed25519", "ecdsa-p256"])
async def test_a_module_that_writes_no_signature_has_not_signed(world, tmp_path, isolation, key):
    config = careless(world, tmp_path, key, writes_nothing=True, isolation=isolation, verifySignatures="never")
    async with opened(config) as manager:
        assert is_good(key, manager.public_key, b"good", await manager.sign(b"good"))  # the other one was the start's
        for number in range(3):
            with pytest.raises((SignatureMalformed, DeadlineExceeded)) as caught:
                await manager.sign(f"none {number}".encode(), 0.5)
            assert "SIGNATURE_MALFORMED" in f"{caught.value.status} {caught.value}"
