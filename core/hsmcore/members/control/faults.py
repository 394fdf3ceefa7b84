"""Exceptions of python-pkcs11 as hsmcore's errors.

python-pkcs11 has one exception class for each return value that it knows and writes the number of any other into the
text. The number is found here; the native core's table maps it to a status.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pkcs11 import exceptions as p11

from hsmcore._native import ckr_table
from hsmcore.errors import HsmError, KeyNotFound, KeyUnusable, LoginError, RequestRejected, error_of
from hsmcore.members.control.calls import CkrError

_NUMBERS: Final[dict[type[p11.PKCS11Error], int]] = {
    p11.HostMemory: 0x002,
    p11.SlotIDInvalid: 0x003,
    p11.GeneralError: 0x005,
    p11.FunctionFailed: 0x006,
    p11.ArgumentsBad: 0x007,
    p11.AttributeReadOnly: 0x010,
    p11.AttributeSensitive: 0x011,
    p11.AttributeTypeInvalid: 0x012,
    p11.AttributeValueInvalid: 0x013,
    p11.DataInvalid: 0x020,
    p11.DataLenRange: 0x021,
    p11.DeviceError: 0x030,
    p11.DeviceMemory: 0x031,
    p11.DeviceRemoved: 0x032,
    p11.EncryptedDataInvalid: 0x040,
    p11.FunctionCancelled: 0x050,
    p11.FunctionNotSupported: 0x054,
    p11.KeyHandleInvalid: 0x060,
    p11.KeySizeRange: 0x062,
    p11.KeyTypeInconsistent: 0x063,
    p11.KeyNotWrappable: 0x069,
    p11.KeyUnextractable: 0x06A,
    p11.MechanismInvalid: 0x070,
    p11.MechanismParamInvalid: 0x071,
    p11.ObjectHandleInvalid: 0x082,
    p11.OperationActive: 0x090,
    p11.OperationNotInitialized: 0x091,
    p11.PinIncorrect: 0x0A0,
    p11.PinInvalid: 0x0A1,
    p11.PinLenRange: 0x0A2,
    p11.PinExpired: 0x0A3,
    p11.PinLocked: 0x0A4,
    p11.SessionClosed: 0x0B0,
    p11.SessionCount: 0x0B1,
    p11.SessionHandleInvalid: 0x0B3,
    p11.SessionReadOnly: 0x0B5,
    p11.SessionExists: 0x0B6,
    p11.SessionReadOnlyExists: 0x0B7,
    p11.TemplateIncomplete: 0x0D0,
    p11.TemplateInconsistent: 0x0D1,
    p11.TokenNotPresent: 0x0E0,
    p11.TokenNotRecognised: 0x0E1,
    p11.TokenWriteProtected: 0x0E2,
    p11.UserAlreadyLoggedIn: 0x100,
    p11.UserNotLoggedIn: 0x101,
    p11.UserPinNotInitialized: 0x102,
    p11.AnotherUserAlreadyLoggedIn: 0x104,
    p11.UserTooManyTypes: 0x105,
    p11.WrappedKeyInvalid: 0x110,
    p11.WrappedKeyLenRange: 0x112,
    p11.WrappingKeyHandleInvalid: 0x113,
    p11.WrappingKeySizeRange: 0x114,
    p11.WrappingKeyTypeInconsistent: 0x115,
    p11.DomainParamsInvalid: 0x130,
    p11.FunctionRejected: 0x200,
}
_NOT_INITIALIZED: Final = 0x190
_OBJECT_HANDLE_INVALID: Final = 0x082
_UNMAPPED: Final = re.compile(r"0x([0-9a-fA-F]+)")


class ControlError(RequestRejected):
    """A request to the control plane that does not fit this token."""

    default_hint = "See `hsmcore keys list` for what the token holds."


class KeyNotExportable(KeyUnusable):
    """No wrapped copy of this key, or of any key of this token, can be made."""

    default_hint = "Back the whole device up by its vendor's own means."


def ckr_of(error: p11.PKCS11Error) -> int:
    """The return value behind an exception of python-pkcs11; 0 if python-pkcs11 itself refused."""
    text = str(error)
    number = _NUMBERS.get(type(error))
    if number is not None:
        return 0 if text else number  # a text comes from python-pkcs11 itself
    found = _UNMAPPED.search(text)
    if found is not None:
        return int(found[1], 16)
    return _NOT_INITIALIZED if "not initialized" in text else 0


@contextmanager
def translated(what: str, member: str | None = None) -> Iterator[None]:
    """Turn an exception of a module call inside into an HsmError; `what` names the operation."""
    try:
        yield
    except HsmError:
        raise
    except CkrError as error:
        raise _of_ckr(error.ckr, error.call, what, member) from error
    except p11.PKCS11Error as error:
        number = ckr_of(error)
        if number == 0:
            text = f"{what}: python-pkcs11 refused: {type(error).__name__} {error}".rstrip()
            raise ControlError(text, member=member) from error
        raise _of_ckr(number, "", what, member) from error


def refused_before(error: LoginError) -> HsmError:
    """The error in the place of a second attempt with a refused PIN."""
    return error_of(
        error.status, detail="an earlier attempt was refused; none was made now", member=error.member, hint=error.hint
    )


def no_such_key(key_id: str) -> KeyNotFound:
    return KeyNotFound(f"no private key has the id {key_id!r}")


def _of_ckr(number: int, call: str, what: str, member: str | None) -> HsmError:
    rows = {ckr: (name, status) for ckr, name, status in ckr_table()}
    name, status = rows.get(number, (None, "CKR_UNKNOWN"))
    if call == "C_Login" and number == _OBJECT_HANDLE_INVALID:
        status = "LOGIN_REFUSED"  # C_Login takes no object: the token has no such user
    return error_of(status, ckr=number, ckr_name=name, call=call, detail=what, member=member)
