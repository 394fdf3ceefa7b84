"""What a control child and its parent say to each other, as JSON-ready data. No PIN is among it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from hsmcore.control.records import KeyRecord
from hsmcore.errors import EXCEPTION_OF_STATUS, ConfigurationError, HsmError, InternalError


def record_to_json(record: KeyRecord) -> dict[str, Any]:
    """A key, its public key in hexadecimal."""
    return {**asdict(record), "public_key": record.public_key.hex() if record.public_key is not None else None}


def record_of_json(data: dict[str, Any]) -> KeyRecord:
    """The key that `record_to_json` wrote."""
    public_key = data["public_key"]
    return KeyRecord(**{**data, "public_key": bytes.fromhex(public_key) if public_key is not None else None})


def error_to_json(error: HsmError) -> dict[str, Any]:
    """An error with everything that it knows."""
    return {
        "class": type(error).__name__,
        "message": str(error.args[0]) if error.args else "",
        "status": error.status,
        "ckr": error.ckr,
        "ckr_name": error.ckr_name,
        "call": error.call,
        "member": error.member,
        "hint": error.hint,
    }


def error_of_json(data: dict[str, Any]) -> HsmError:
    """The error that `error_to_json` wrote, of the same class, to be raised."""
    message, name = data["message"], data["class"]
    fields = {key: data[key] for key in ("status", "ckr", "ckr_name", "call", "member", "hint")}
    kind = next((kind for kind in _kinds(HsmError) if kind.__name__ == name), None)
    if kind is None or issubclass(kind, ConfigurationError):  # which is made in another way
        kind = EXCEPTION_OF_STATUS.get(fields["status"], InternalError)
    return kind(message, **fields)


def _kinds(root: type[HsmError]) -> Iterator[type[HsmError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _kinds(kind)
