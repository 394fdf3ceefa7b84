"""python-pkcs11 on a module that the native core holds.

python-pkcs11 calls C_Initialize without arguments. SoftHSM then turns its mutexes off, while python-pkcs11 releases the
GIL during each call: two threads crash it. A second C_Initialize also fails. So the native core alone initializes, with
CKF_OS_LOCKING_OK, and finalizes; python-pkcs11 uses the initialized module, by the core's own function list.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pkcs11 import Attribute, _pkcs11
from pkcs11.attributes import AttributeMapper

from hsmcore._native import Module, functions_of
from hsmcore._native import __file__ as native_file
from hsmcore.base.ownership import FOREIGN_HINT, foreign
from hsmcore.errors import HsmError, ModuleInvalid
from hsmcore.members.control.advice import advise
from hsmcore.members.control.faults import ControlError


def require_safe(path: str, member: str | None = None) -> None:
    """Check that only this user and root may write a module's file: what it holds gets the rights of this process.
    Raises ModuleInvalid. A file that is not there is the loader's to report."""
    problem = ""
    with suppress(OSError):
        problem = foreign(Path(path))
    if problem:
        raise ModuleInvalid(f"the PKCS#11 module is not loaded: {problem}", member=member, hint=FOREIGN_HINT)


def hold_module(path: str, args: str | None = None) -> Module:
    """Load and initialize a module, or share the one that this process holds; release it with close().

    The native core may initialize the module again when it breaks, but not between `enter` and `exit`, which one thread
    calls in pairs and does not nest. `enter` returns how often that has happened: after a change, no session that was
    opened before exists, and its handle may be that of another one. `args` is CK_C_INITIALIZE_ARGS.pReserved. Raises an
    HsmError that says what is wrong with the path.
    """
    require_safe(path)
    try:
        return Module(path, args)
    except HsmError as error:
        advise(error, path, args)
        raise


class AdoptedLibrary(_pkcs11.lib):
    """A python-pkcs11 library object that neither initializes nor finalizes its module.

    `initialized` stays False, so that the base class's finalizer leaves the module alone too.
    """

    def initialize(self) -> None:
        """Do nothing: the native core has done it."""

    def finalize(self) -> None:
        """Do nothing: other parts of the process use the module."""

    def reinitialize(self) -> None:
        raise ControlError("a module is initialized again by the native core only")


def adopt(path: str) -> AdoptedLibrary:
    """Wrap a module that this process holds (hold_module). Raises ControlError if it holds none."""
    if not functions_of(path):
        raise ControlError(f"{path} is not held by the native core", hint="hold it with hsmcore._native.Module first")
    return AdoptedLibrary(native_file)


class Attributes(AttributeMapper):
    """Attribute values as python-pkcs11 reads them, but for labels and types outside its tables, which it refuses."""

    def __init__(self) -> None:
        super().__init__()
        as_number = self.attribute_types[Attribute.MODULUS_BITS]
        self.register_handler(Attribute.LABEL, str.encode, lambda raw: raw.decode("utf-8", "replace"))
        self.register_handler(Attribute.KEY_TYPE, *as_number)
