"""What the device does inside a session, one function for each command."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import objects, wrap
from .codes import FORCE_AUDIT, Algorithm, Capability, Command, DeviceError, Error, Kind
from .log import NOBODY
from .objects import Stored

if TYPE_CHECKING:
    from .device import Device, Session

_NEW = struct.Struct("!H40sHQB")
_MAX_RANDOM = 2021
_LIST_FILTERS = {1: 2, 2: 1, 3: 2, 4: 8, 5: 1, 6: objects.LABEL_BYTES}
_DELETES = {
    Kind.OPAQUE: Capability.DELETE_OPAQUE,
    Kind.AUTHENTICATION_KEY: Capability.DELETE_AUTHENTICATION_KEY,
    Kind.ASYMMETRIC_KEY: Capability.DELETE_ASYMMETRIC_KEY,
    Kind.WRAP_KEY: Capability.DELETE_WRAP_KEY,
}


@dataclass(slots=True)
class Call:
    """One command under way. `target` and `second` go into the log."""

    device: Device
    session: Session
    data: bytes
    target: int = NOBODY
    second: int = NOBODY

    @property
    def user(self) -> Stored:
        """The authentication key of the session."""
        return self.session.user

    def require(self, capability: int) -> None:
        """Refuse unless the user may."""
        if not self.user.capabilities & capability:
            raise DeviceError(Error.INSUFFICIENT_PERMISSIONS)

    def unpack(self, form: str) -> tuple[int, ...]:
        """The whole data by a struct format."""
        try:
            return struct.unpack(form, self.data)
        except struct.error:
            raise DeviceError(Error.WRONG_LENGTH) from None

    def find(self, object_id: int, kind: int) -> Stored:
        """An object that the user sees."""
        self.target = object_id
        return self.device.store.find(object_id, kind, self.user.domains)


def _echo(call: Call) -> bytes:
    return call.data


def _device_info(call: Call) -> bytes:
    return call.device.info(call.data)


def _close(call: Call) -> bytes:
    call.device.end(call.session)
    return b""


def _storage(call: Call) -> bytes:
    used = len(call.device.store)
    return struct.pack("!HHHHH", objects.MAX_OBJECTS, objects.MAX_OBJECTS - used, 1024, 1024 - used, 126)


def _new(call: Call, kind: Kind, *, delegates: bool = False) -> tuple[Stored, bytes]:
    """The object that the head of the data describes, without its secret; and the rest of the data."""
    head = _NEW.size + (8 if delegates else 0)
    if len(call.data) < head:
        raise DeviceError(Error.WRONG_LENGTH)
    object_id, label, domains, capabilities, algorithm = _NEW.unpack_from(call.data)
    delegated = int.from_bytes(call.data[_NEW.size : head], "big")
    call.target = object_id
    # Of the domains only the user's own count: the PKCS#11 module always asks for all sixteen.
    domains &= call.user.domains
    if not domains:
        raise DeviceError(Error.INVALID_DATA)
    if (capabilities | delegated) & ~call.user.delegated:
        raise DeviceError(Error.INSUFFICIENT_PERMISSIONS)
    stored = Stored(object_id, kind, algorithm, capabilities, domains, label, b"", delegated)
    return stored, call.data[head:]


def _add(call: Call, stored: Stored, secret: bytes, *, imported: bool = False) -> bytes:
    stored.secret = secret
    stored.origin = objects.IMPORTED if imported else objects.GENERATED
    call.target = call.device.store.add(stored)
    return call.target.to_bytes(2, "big")


def _generate_asymmetric(call: Call) -> bytes:
    stored, rest = _new(call, Kind.ASYMMETRIC_KEY)
    if rest:
        raise DeviceError(Error.WRONG_LENGTH)
    return _add(call, stored, objects.generate_private(stored.algorithm))


def _put_asymmetric(call: Call) -> bytes:
    stored, secret = _new(call, Kind.ASYMMETRIC_KEY)
    if stored.algorithm not in (Algorithm.ED25519, *objects.CURVES):
        raise DeviceError(Error.INVALID_DATA)
    if len(secret) != 32:
        raise DeviceError(Error.WRONG_LENGTH)
    return _add(call, stored, secret, imported=True)


def _generate_wrap(call: Call) -> bytes:
    stored, rest = _new(call, Kind.WRAP_KEY, delegates=True)
    size = objects.WRAP_KEY_BYTES.get(Algorithm(stored.algorithm))
    if rest or size is None:
        raise DeviceError(Error.INVALID_DATA)
    return _add(call, stored, os.urandom(size))


def _put_wrap(call: Call) -> bytes:
    stored, secret = _new(call, Kind.WRAP_KEY, delegates=True)
    if len(secret) != objects.WRAP_KEY_BYTES.get(Algorithm(stored.algorithm)):
        raise DeviceError(Error.WRONG_LENGTH)
    return _add(call, stored, secret, imported=True)


def _put_authentication(call: Call) -> bytes:
    stored, keys = _new(call, Kind.AUTHENTICATION_KEY, delegates=True)
    if stored.algorithm != Algorithm.AES128_YUBICO_AUTHENTICATION:
        raise DeviceError(Error.INVALID_DATA)
    if len(keys) != 32:
        raise DeviceError(Error.WRONG_LENGTH)
    return _add(call, stored, keys, imported=True)


def _change_authentication(call: Call) -> bytes:
    object_id, algorithm, keys = call.unpack("!HB32s")
    stored = call.find(object_id, Kind.AUTHENTICATION_KEY)
    if stored is not call.user or algorithm != stored.algorithm:
        raise DeviceError(Error.INVALID_DATA)
    stored.secret = bytes(keys)  # type: ignore[call-overload]
    return object_id.to_bytes(2, "big")


def _put_opaque(call: Call) -> bytes:
    stored, content = _new(call, Kind.OPAQUE)
    if not content:
        raise DeviceError(Error.WRONG_LENGTH)
    return _add(call, stored, content, imported=True)


def _get_opaque(call: Call) -> bytes:
    (object_id,) = call.unpack("!H")
    if object_id == 0:
        return call.device.attestation.certificate()
    return call.find(object_id, Kind.OPAQUE).secret


def _attest(call: Call) -> bytes:
    object_id, attesting = call.unpack("!HH")
    if attesting != 0:  # only the device's own key attests here
        raise DeviceError(Error.OBJECT_NOT_FOUND)
    return call.device.attestation.attest(call.find(object_id, Kind.ASYMMETRIC_KEY))


def _list(call: Call) -> bytes:
    wanted: dict[int, int | bytes] = {}
    rest = call.data
    while rest:
        size = _LIST_FILTERS.get(rest[0])
        if size is None or len(rest) < 1 + size:
            raise DeviceError(Error.INVALID_DATA)
        value = rest[1 : 1 + size]
        wanted[rest[0]] = value if rest[0] == 6 else int.from_bytes(value, "big")
        rest = rest[1 + size :]
    found = b""
    for stored in call.device.store:
        has: dict[int, int | bytes] = {1: stored.id, 2: stored.kind, 5: stored.algorithm, 6: stored.label}
        shares = {3: stored.domains, 4: stored.capabilities}
        if (
            stored.domains & call.user.domains
            and all(has[what] == value for what, value in wanted.items() if what in has)
            and all(shares[what] & int(value) for what, value in wanted.items() if what in shares)  # type: ignore[arg-type]
        ):
            found += struct.pack("!HBB", stored.id, stored.kind, stored.sequence)
    return found


def _object_info(call: Call) -> bytes:
    return call.find(*call.unpack("!HB")).info()


def _delete(call: Call) -> bytes:
    object_id, kind = call.unpack("!HB")
    stored = call.find(object_id, kind)
    call.require(_DELETES[stored.kind])
    call.device.store.remove(stored)
    return b""


def _public_key(call: Call) -> bytes:
    (object_id,) = call.unpack("!H")
    key = call.find(object_id, Kind.ASYMMETRIC_KEY)
    return bytes([key.algorithm]) + objects.public_key(key)


def _sign(capability: Capability, sign: Callable[[Stored, bytes], bytes]) -> Callable[[Call], bytes]:
    def run(call: Call) -> bytes:
        if len(call.data) < 3:
            raise DeviceError(Error.WRONG_LENGTH)
        key = call.find(int.from_bytes(call.data[:2], "big"), Kind.ASYMMETRIC_KEY)
        if not key.capabilities & capability:
            raise DeviceError(Error.INSUFFICIENT_PERMISSIONS)
        return sign(key, call.data[2:])

    return run


def _export(call: Call) -> bytes:
    wrap_id, kind, object_id = call.unpack("!HBH") if len(call.data) == 5 else call.unpack("!HBHx")
    call.second = object_id
    target = call.find(object_id, kind)
    return wrap.export(call.find(wrap_id, Kind.WRAP_KEY), target)


def _import(call: Call) -> bytes:
    wrap_id = int.from_bytes(call.data[:2], "big")
    stored = wrap.restore(call.find(wrap_id, Kind.WRAP_KEY), call.data[2:])
    call.second = call.device.store.add(stored)
    return struct.pack("!BH", stored.kind, stored.id)


def _random(call: Call) -> bytes:
    (size,) = call.unpack("!H")
    if size > _MAX_RANDOM:
        raise DeviceError(Error.INVALID_DATA)
    return os.urandom(size)


def _get_log(call: Call) -> bytes:
    return call.device.log.read()


def _set_log_index(call: Call) -> bytes:
    (index,) = call.unpack("!H")
    call.device.log.consume(index)
    return b""


def _set_option(call: Call) -> bytes:
    option, length = struct.unpack_from("!BH", call.data.ljust(3, b"\0"))
    if len(call.data) != 3 + length:
        raise DeviceError(Error.WRONG_LENGTH)
    call.device.log.set_option(option, call.data[3:])
    return b""


def _get_option(call: Call) -> bytes:
    return call.device.log.get_option(call.data[0] if call.data else FORCE_AUDIT)


def _reset(call: Call) -> bytes:
    call.device.reset_after = True
    return b""


def _blink(call: Call) -> bytes:
    call.unpack("!B")
    return b""


# What the user must be allowed to do, and how it is done.
COMMANDS: dict[int, tuple[int, Callable[[Call], bytes]]] = {
    Command.ECHO: (0, _echo),
    Command.DEVICE_INFO: (0, _device_info),
    Command.CLOSE_SESSION: (0, _close),
    Command.GET_STORAGE_INFO: (0, _storage),
    Command.LIST_OBJECTS: (0, _list),
    Command.GET_OBJECT_INFO: (0, _object_info),
    Command.GET_PUBLIC_KEY: (0, _public_key),
    Command.BLINK_DEVICE: (0, _blink),
    Command.DELETE_OBJECT: (0, _delete),
    Command.GENERATE_ASYMMETRIC_KEY: (Capability.GENERATE_ASYMMETRIC_KEY, _generate_asymmetric),
    Command.PUT_ASYMMETRIC_KEY: (Capability.PUT_ASYMMETRIC_KEY, _put_asymmetric),
    Command.GENERATE_WRAP_KEY: (Capability.GENERATE_WRAP_KEY, _generate_wrap),
    Command.PUT_WRAP_KEY: (Capability.PUT_WRAP_KEY, _put_wrap),
    Command.PUT_AUTHENTICATION_KEY: (Capability.PUT_AUTHENTICATION_KEY, _put_authentication),
    Command.CHANGE_AUTHENTICATION_KEY: (Capability.CHANGE_AUTHENTICATION_KEY, _change_authentication),
    Command.PUT_OPAQUE: (Capability.PUT_OPAQUE, _put_opaque),
    Command.GET_OPAQUE: (Capability.GET_OPAQUE, _get_opaque),
    Command.SIGN_ATTESTATION_CERTIFICATE: (Capability.SIGN_ATTESTATION_CERTIFICATE, _attest),
    Command.SIGN_EDDSA: (Capability.SIGN_EDDSA, _sign(Capability.SIGN_EDDSA, objects.sign_eddsa)),
    Command.SIGN_ECDSA: (Capability.SIGN_ECDSA, _sign(Capability.SIGN_ECDSA, objects.sign_ecdsa)),
    Command.EXPORT_WRAPPED: (Capability.EXPORT_WRAPPED, _export),
    Command.IMPORT_WRAPPED: (Capability.IMPORT_WRAPPED, _import),
    Command.GET_PSEUDO_RANDOM: (Capability.GET_PSEUDO_RANDOM, _random),
    Command.GET_LOG_ENTRIES: (Capability.GET_LOG_ENTRIES, _get_log),
    Command.SET_LOG_INDEX: (Capability.GET_LOG_ENTRIES, _set_log_index),
    Command.SET_OPTION: (Capability.SET_OPTION, _set_option),
    Command.GET_OPTION: (Capability.GET_OPTION, _get_option),
    Command.RESET_DEVICE: (Capability.RESET_DEVICE, _reset),
}
