"""C_Initialize with OS locking, which python-pkcs11 doesn't do, through ctypes."""

from __future__ import annotations

import ctypes

CKF_OS_LOCKING_OK = 2
_INITIALIZE, _FINALIZE = 0, 1  # places in CK_FUNCTION_LIST


class _InitializeArgs(ctypes.Structure):
    _fields_ = [
        ("callbacks", ctypes.c_void_p * 4),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    ]


class _FunctionList(ctypes.Structure):
    _fields_ = [("version", ctypes.c_ubyte * 2), ("functions", ctypes.c_void_p * 68)]


class Module:
    """A loaded module. It stays mapped for the life of the process: some crash when they are unloaded."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        pointer = ctypes.POINTER(_FunctionList)()
        _check("C_GetFunctionList", library.C_GetFunctionList(ctypes.byref(pointer)))
        self._functions = pointer.contents.functions

    def initialize(self) -> None:
        """C_Initialize so that the module's own locks work: python-pkcs11 passes NULL, which switches them off."""
        args = _InitializeArgs(flags=CKF_OS_LOCKING_OK)
        function = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.POINTER(_InitializeArgs))(self._functions[_INITIALIZE])
        _check("C_Initialize", function(ctypes.byref(args)))

    def finalize(self) -> None:
        function = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)(self._functions[_FINALIZE])
        _check("C_Finalize", function(None))


def _check(call: str, rv: int) -> None:
    if rv != 0:
        raise RuntimeError(f"{call}: CKR 0x{rv:X}")
