"""The control plane of a simulated device: the verbs that a rotation uses, as members/control has them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import orjson
from tests.simulation import engine
from tests.simulation.device import Device, Key, Pair

from hsmcore.errors import HsmError, KeyNotFound, error_of

_LIMIT: Final = 0x05  # CKR_GENERAL_ERROR
_ID_BYTES: Final = 16


def _failure(device: Device, status: str, call: str) -> HsmError:
    return error_of(status, ckr=_LIMIT, call=call, member=device.name)


def _of(device: Device, key_id: str) -> Key:
    for key in device.keys:
        if key.id.hex() == key_id and not device.has("keyless"):
            return key
    raise KeyNotFound(f"there is no key {key_id}", member=device.name)


def _record(key: Key) -> Any:
    from hsmcore.members.control import KeyRecord

    return KeyRecord(key.id.hex(), key.label, "ed25519", key.public_key, key.can_sign, True, True)


def _list(device: Device, _verb: Any) -> Any:
    return [] if device.has("keyless") else [_record(key) for key in device.keys]


def _generate(device: Device, verb: Any) -> Any:
    from hsmcore.members.control.keys import key_forms
    from hsmcore.members.control.quirks import quirks_for

    key_id = verb.key_id or device.random_bytes(_ID_BYTES)
    _require_free(device, key_id)
    pair = Pair(device.random_bytes(32))
    key = Key(verb.label, key_id, pair, pair.public_key)
    device.keys.append(key)
    return _record(key), key_forms(quirks_for("generic"), "ed25519")[0]


def _require_free(device: Device, key_id: bytes) -> None:
    from hsmcore.members.control.faults import ControlError

    if device.has("keyless"):
        raise _failure(device, "TOKEN_LOST", "C_GenerateKeyPair")
    if any(key.id == key_id for key in device.keys):
        raise ControlError(f"there is a key {key_id.hex()} already", member=device.name)


def _deactivate(device: Device, verb: Any) -> Any:
    from hsmcore.members.control import Deactivation

    _of(device, verb.key_id).can_sign = False
    return Deactivation(verb.key_id, True)


def _destroy(device: Device, verb: Any) -> None:
    key = _of(device, verb.key_id)
    key.exists = False
    device.keys.remove(key)
    device.destroyed(key)


def _export(device: Device, verb: Any) -> bytes:
    key = device.wrapped[verb.key_id] = _of(device, verb.key_id)
    return orjson.dumps({"id": key.id.hex(), "label": key.label, "canSign": key.can_sign, "of": device.name})


def _import(device: Device, verb: Any) -> Any:
    given = orjson.loads(verb.backup)
    _require_free(device, bytes.fromhex(given["id"]))
    source = engine.devices[given["of"]]
    # As it was when it was wrapped: what has become of the source's since changes nothing.
    key = replace(source.wrapped[given["id"]], can_sign=given["canSign"], exists=True)
    device.keys.append(key)
    return _record(key)


_VERBS: Final[dict[str, Callable[[Device, Any], Any]]] = {
    "ListKeys": _list,
    "NewKeyId": lambda device, _verb: device.random_bytes(_ID_BYTES),
    "Sweep": lambda _device, _verb: 0,
    "WhyNoBackup": lambda _device, _verb: None,
    "Prove": lambda device, verb: _of(device, verb.key_id).pair.sign(verb.message),
    "GenerateKey": _generate,
    "Deactivate": _deactivate,
    "Destroy": _destroy,
    "ExportWrapped": _export,
    "ImportWrapped": _import,
}
_CHANGES: Final = frozenset({"GenerateKey", "Deactivate", "Destroy", "ImportWrapped"})


def perform(device: Device, verb: Any) -> Any:
    """Run a verb. Where the device has a fault, it fails before its effect, or after it."""
    name = type(verb).__name__
    if device.is_gone:
        raise _failure(device, "TOKEN_LOST", "C_OpenSession")
    rng, fails = device.chance.time, False
    for fault in device.now():
        fails |= fault.kind in ("error", "silent") and rng.random() < fault.share
    if fails and rng.random() < 0.5:
        raise _failure(device, "CKR_UNKNOWN", name)
    result = _VERBS[name](device, verb)
    if name in _CHANGES:
        what = getattr(verb, "key_id", b"") or b""
        device.tell(device.name, f"{name} {what if isinstance(what, str) else what.hex()}"[:60])
    if fails:
        raise _failure(device, "CKR_UNKNOWN", name)
    return result


def install() -> None:
    """Once in a process."""
    from hsmcore.members.control import ControlPlane, admin, remote

    def do(self: Any, verb: Any) -> Any:
        return perform(engine.devices[self._access.token.label], verb)

    def opened(self: Any) -> Any:
        device = engine.devices[self._access.token.label]
        if device.is_gone:
            raise _failure(device, "TOKEN_LOST", "C_OpenSession")
        return self

    ControlPlane._do = do
    admin.TokenAdmin.open = remote.RemoteAdmin.open = opened  # a command logs in


def name_of(public_key: bytes) -> str:
    """How the story names a key."""
    return hashlib.sha256(public_key).hexdigest()[:6]
