"""The JSON that a control child and its parent exchange. No PIN is in it.

Types decide the form: bytes are hexadecimal, a dataclass is an object with a member for each field. A message of a
child or a parent is checked against the type, and refused unless it fits exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import IntEnum
from functools import cache
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from hsmcore.errors import EXCEPTION_OF_STATUS, ConfigurationError, HsmError

_UNIONS: Final = (Union, UnionType)  # of which the second member is None
_PLAIN: Final = (str, int, bool, float, type(None))
_TEXT: Final = str | None
_ERROR_FIELDS: Final = {"status": str, "ckr": int | None, "ckr_name": _TEXT, "call": str, "member": _TEXT, "hint": str}


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def secrets_of(kind: type) -> list[str]:
    """The names of a dataclass's secrets, which are in no JSON: its fields of type bytearray."""
    return [name for name, hint in _hints(kind).items() if hint is bytearray]


def _fields(kind: type) -> dict[str, Any]:
    return {name: hint for name, hint in _hints(kind).items() if hint is not bytearray}


def _is_number(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, IntEnum)


def pack(kind: Any, value: Any) -> Any:
    """JSON-ready data for a value of a type. Raises TypeError if it is of another type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in _UNIONS:
        return None if value is None else pack(inner[0], value)
    if origin in (list, Sequence):
        return [pack(inner[0], each) for each in value]
    if origin is Mapping:
        return {pack(inner[0], key): pack(inner[1], each) for key, each in value.items()}
    if origin is tuple:
        return [pack(each, part) for each, part in zip(inner, value, strict=True)]
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, kind):
        return {name: pack(hint, getattr(value, name)) for name, hint in _fields(kind).items()}
    if kind is bytes and isinstance(value, bytes | bytearray):
        return value.hex()
    if _is_number(kind) and isinstance(value, kind):
        return int(value)
    if value in inner if origin is Literal else kind in _PLAIN and isinstance(value, kind):
        return value
    raise _unfit(kind, value)


def unpack(kind: Any, data: Any) -> Any:
    """The value that `pack` made `data` of. Raises TypeError or ValueError for anything else."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in _UNIONS:
        return None if data is None else unpack(inner[0], data)
    if origin in (list, Sequence) and isinstance(data, list):
        return [unpack(inner[0], each) for each in data]
    if origin is Mapping and isinstance(data, dict):
        return {unpack(inner[0], key): unpack(inner[1], each) for key, each in data.items()}
    if origin is tuple and isinstance(data, list):
        return tuple(unpack(each, part) for each, part in zip(inner, data, strict=True))
    if is_dataclass(kind) and isinstance(kind, type):
        return kind(**unpack_fields(kind, data))
    if kind is bytes and isinstance(data, str):
        return bytes.fromhex(data)
    if _is_number(kind) and type(data) is int:
        return int.__new__(kind, data)  # a pkcs11.Mechanism has no member for a vendor's number
    if data in inner if origin is Literal else kind in _PLAIN and type(data) is kind:
        return data
    raise _unfit(kind, data)


def unpack_fields(kind: type, data: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, all of them and no other; but for its secrets."""
    hints = _fields(kind)
    if not isinstance(data, dict) or data.keys() != hints.keys():
        raise _unfit(kind, data)
    return {name: unpack(hint, data[name]) for name, hint in hints.items()}


def _unfit(kind: Any, value: Any) -> TypeError:
    # The types only: the value may be a secret.
    return TypeError(f"a {type(value).__name__} is no {getattr(kind, '__name__', kind)}")


def error_to_json(error: HsmError) -> dict[str, Any]:
    """An error with all its fields."""
    message = str(error.args[0]) if error.args else ""
    return {"class": type(error).__name__, "message": message} | {name: getattr(error, name) for name in _ERROR_FIELDS}


def error_of_json(data: Any) -> HsmError:
    """The error that `error_to_json` wrote, of the same class. Raises TypeError or LookupError for anything else."""
    if not isinstance(data, dict) or data.keys() != {"class", "message", *_ERROR_FIELDS}:
        raise _unfit(HsmError, data)
    message, name = unpack(str, data["message"]), unpack(str, data["class"])
    known = {key: unpack(hint, data[key]) for key, hint in _ERROR_FIELDS.items()}
    by_status = EXCEPTION_OF_STATUS[known["status"]]
    kind = next((kind for kind in _kinds(HsmError) if kind.__name__ == name), by_status)
    # A configuration's error takes other arguments.
    return (by_status if issubclass(kind, ConfigurationError) else kind)(message, **known)


def _kinds(root: type[HsmError]) -> Iterator[type[HsmError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _kinds(kind)
