"""python-pkcs11 on a module that the native core holds.

python-pkcs11 calls C_Initialize with no arguments. SoftHSM takes that as "one thread only" and turns its mutexes off,
while python-pkcs11 lets other threads run during each call; two threads then crash it. A second C_Initialize also
fails. So the native core initializes, with CKF_OS_LOCKING_OK, and alone finalizes; this subclass adopts.
"""

from __future__ import annotations

from typing import Protocol

from pkcs11 import _pkcs11
from pkcs11.exceptions import PKCS11Error

from hsmcore.control.faults import ControlError


class ModuleHolder(Protocol):
    """What keeps a module loaded and initialized: hsmcore._native.Module.

    The native core may initialize the module anew when it breaks, but not between `enter` and `exit`, which one thread
    calls in pairs and does not nest. `enter` returns how often that has happened: after a change, whatever was opened
    before is gone, and its handles may be somebody else's.
    """

    def enter(self) -> int: ...

    def exit(self) -> None: ...

    def close(self) -> None: ...


def hold_module(path: str, args: str | None = None) -> ModuleHolder:
    """Load and initialize a module, or join those who already hold it; release it with close().

    `args` is CK_C_INITIALIZE_ARGS.pReserved. Raises an HsmError that says what is wrong with the path.
    """
    from hsmcore._native import Module

    holder: ModuleHolder = Module(path, args)
    return holder


class AdoptedLibrary(_pkcs11.lib):
    """A python-pkcs11 library object that neither initializes nor finalizes its module.

    `initialized` stays False, so that the base class's finalizer leaves the module alone too.
    """

    def initialize(self) -> None:
        """Nothing: the native core has done it."""

    def finalize(self) -> None:
        """Nothing: others use the module."""

    def reinitialize(self) -> None:
        raise ControlError("a module is initialized again by the native core only")


def adopt(path: str) -> AdoptedLibrary:
    """Wrap a module that a ModuleHolder of this process holds; refused when nobody does."""
    try:
        return AdoptedLibrary(path)
    except PKCS11Error as error:
        # python-pkcs11 has no exception of its own for CKR_CRYPTOKI_NOT_INITIALIZED.
        raise ControlError(
            f"{path} is not held by the native core ({error})", hint="hold it with hsmcore._native.Module first"
        ) from error
