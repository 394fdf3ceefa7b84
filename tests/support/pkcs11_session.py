"""The PKCS #11 module in this process, and what tests ask of it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import pkcs11_client as p11
from tests.support.pkcs11_module import MODULE


@contextmanager
def initialized(*addresses: str, timeout_ms: int = 10_000, **settings: str) -> Iterator[p11.Module]:
    """The module, until C_Finalize."""
    module = p11.Module(MODULE)
    more = "".join(f" {name}={value}" for name, value in settings.items())
    reserved = f"address={','.join(addresses)} timeout_ms={timeout_ms}{more}"
    assert module.initialize(reserved=reserved.encode()) == 0
    try:
        yield module
    finally:
        assert module("C_Finalize", ctypes.c_void_p()) == 0


def slot_of(module: p11.Module, label: str) -> int:
    """The slot whose token has this label."""
    for slot in module.slots():
        info = ctypes.create_string_buffer(512)
        assert module("C_GetTokenInfo", slot, info) == 0
        if info.raw[:32].rstrip() == label.encode():
            return slot
    raise AssertionError(label)


def verify(
    module: p11.Module, session: int, key: int, message: bytes, signature: bytes, mechanism: int = p11.CKM_EDDSA
) -> int:
    """The CKR of C_Verify."""
    assert module("C_VerifyInit", session, ctypes.byref(p11.Mechanism(mechanism)), key) == 0
    return module("C_Verify", session, message, len(message), signature, len(signature))
