"""What requests and answers of Vault Transit's API say: parameters, signatures as text, keys as Vault shows them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from hsmcore.errors import BadArgument
from hsmcore.gateway.versions import Version

_TYPES: Final = {
    "ed25519": ("ed25519", "ed25519"),
    "ecdsa-p256": ("ecdsa-p256", "P-256"),
    "ecdsa-secp256k1": ("ecdsa-secp256k1", "secp256k1"),  # Vault has no such type
}
"""Names of an algorithm: of the key's type, and of its curve."""
_SPKI: Final = {
    "ecdsa-p256": bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200"),
    "ecdsa-secp256k1": bytes.fromhex("3056301006072a8648ce3d020106052b8104000a034200"),
}
"""What stands before the point in a SubjectPublicKeyInfo (RFC 5480)."""
_HASHES: Final = {"ed25519": ("sha2-256", "sha2-512")}
"""By algorithm. Ed25519 hashes by itself: "sha2-256" is what the API takes as given where nothing is."""
_ONLY_ELSEWHERE: Final = {
    "context": "no key here is derived",
    "signature_algorithm": "it belongs to RSA keys",
    "salt_length": "it belongs to RSA keys",
    "hmac": "the keys here make signatures only",
    "cmac": "the keys here make signatures only",
}
_HALF: Final = 32
_SIGNATURE: Final = re.compile(r"vault:v([1-9][0-9]{0,9}):(.*)", re.DOTALL)
_URL_SAFE: Final = str.maketrans("-_+/", "+/!!")
_LINE_ENDS: Final = str.maketrans("", "", "\r\n")
_NEVER: Final = "0001-01-01T00:00:00Z"
"""A time that is not known, as Vault writes it."""


class TransitOptions(NamedTuple):
    """What a request says beside its input. `version` 0: the one that signs now."""

    version: int
    prehashed: bool
    jws: bool


def options(body: Mapping[str, Any], in_path: str | None, algorithm: str) -> TransitOptions:
    """Read the parameters of a request. Raises BadArgument, which names what a key of this algorithm cannot do."""
    for name, why in _ONLY_ELSEWHERE.items():
        if body.get(name) not in (None, ""):
            raise BadArgument(f"{name} is not supported: {why}")
    wanted = in_path or _word(body, "hash_algorithm") or _word(body, "algorithm") or "sha2-256"
    if wanted not in _HASHES.get(algorithm, ("sha2-256",)):
        raise BadArgument(f"hash_algorithm {wanted!r:.40} is not supported for a key of type {algorithm}")
    marshaling = _word(body, "marshaling_algorithm") or "asn1"
    if marshaling not in ("asn1", "jws"):
        raise BadArgument(f"marshaling_algorithm {marshaling!r:.40} is not supported: asn1 and jws are")
    prehashed = flag(body, "prehashed")
    if prehashed and algorithm == "ed25519":
        raise BadArgument("prehashed is not supported for a key of type ed25519: it signs the message itself")
    return TransitOptions(whole(body, "key_version"), prehashed, marshaling == "jws")


def _word(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadArgument(f"{name} must be text")
    return value or ""


def whole(body: Mapping[str, Any], name: str) -> int:
    """Return a parameter that is a whole number from 0, also as text; 0 if it is not given. Raises BadArgument."""
    value = body.get(name)
    if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value):
        value = int(value)
    if value is None or value == "":
        return 0
    if type(value) is not int or value < 0:
        raise BadArgument(f"{name} must be a whole number from 0")
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """Return a parameter that is true or false, also as text. Raises BadArgument."""
    value = body.get(name)
    value = {"true": True, "false": False, "": False}.get(value, value) if isinstance(value, str) else value
    if value is None or isinstance(value, bool):
        return bool(value)
    raise BadArgument(f"{name} must be true or false")


def data(item: Mapping[str, Any], name: str = "input") -> bytes:
    """Return the bytes of a parameter in base64. Raises BadArgument."""
    value = item.get(name)
    if value is None:
        raise BadArgument(f"missing {name}")
    found = _decoded(value, name)
    if not found:
        raise BadArgument(f"{name} is empty")
    return found


def batch(body: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the items of a batch; None if the request is none. Raises BadArgument."""
    items = body.get("batch_input")
    if items is None:
        return None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadArgument("batch_input must be a list of objects")
    if not items:
        raise BadArgument("missing batch input to process")
    for item in items:
        if not isinstance(item.get("reference", ""), str):
            raise BadArgument("reference must be text")
        for name in ("context", "hmac", "cmac"):
            if item.get(name):
                raise BadArgument(f"{name} is not supported: {_ONLY_ELSEWHERE[name]}")
    return items


def written(signature: bytes, number: int, algorithm: str, *, jws: bool) -> str:
    """Return a signature (64 bytes) as Vault writes it."""
    if jws:
        return f"vault:v{number}:{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    encoded = signature if algorithm == "ed25519" else _to_der(signature)
    return f"vault:v{number}:{base64.b64encode(encoded).decode()}"


def parsed(item: Mapping[str, Any]) -> tuple[int, str]:
    """Return the version's number and the encoded signature of an item to be verified. Raises BadArgument."""
    text = item.get("signature")
    if not isinstance(text, str) or not text:
        raise BadArgument("missing signature")
    found = _SIGNATURE.fullmatch(text)
    if found is None:
        raise BadArgument("invalid signature: it must begin with vault:vN:")
    return int(found[1]), found[2]


def signature_of(text: str, algorithm: str, *, jws: bool) -> bytes:
    """Return the 64 bytes of an encoded signature, or bytes that are no signature. Raises BadArgument."""
    if jws:
        return _decoded(text.translate(_URL_SAFE) + "=" * (-len(text) % 4), "signature")
    raw = _decoded(text, "signature")
    return raw if algorithm == "ed25519" else _from_der(raw)


def _decoded(value: object, name: str) -> bytes:
    """Line ends are left out, as Vault does: the command `base64` writes them."""
    try:
        if isinstance(value, str):
            return binascii.a2b_base64(value.translate(_LINE_ENDS) if "\n" in value else value, strict_mode=True)
    except ValueError:
        pass
    raise BadArgument(f"unable to decode {name} as base64")


def _to_der(signature: bytes) -> bytes:
    """The ASN.1 form of r || s. Both are so short that every length is one byte."""
    body = b"".join(_integer(half) for half in (signature[:_HALF], signature[_HALF:]))
    return b"\x30" + bytes([len(body)]) + body


def _integer(half: bytes) -> bytes:
    digits = half.lstrip(b"\0") or b"\0"
    digits = b"\0" + digits if digits[0] & 0x80 else digits
    return b"\x02" + bytes([len(digits)]) + digits


def _from_der(data: bytes) -> bytes:
    """r || s of its ASN.1 form; b"" for any other bytes, also for the same numbers written in another way."""
    try:
        length = data[3]
        r, s = data[4 : 4 + length].lstrip(b"\0"), data[6 + length :].lstrip(b"\0")
        raw = r.rjust(_HALF, b"\0") + s.rjust(_HALF, b"\0")
        return raw if len(raw) == 2 * _HALF and _to_der(raw) == data else b""
    except IndexError:
        return b""


def key_data(name: str, algorithm: str, versions: Iterable[Version], latest: int) -> dict[str, Any]:
    """Return what Vault says of a key. `latest` is the number of the version that signs: the only one that may."""
    known = sorted(versions, key=lambda version: version.number)
    kind, curve = _TYPES[algorithm]
    return {
        "name": name,
        "type": kind,
        "keys": {str(version.number): _version(version, curve) for version in known},
        "latest_version": latest,
        "min_available_version": 0,
        "min_decryption_version": known[0].number,
        "min_encryption_version": latest,
        "supports_signing": True,
        "supports_encryption": False,
        "supports_decryption": False,
        "supports_derivation": False,
        "derived": False,
        "exportable": False,
        "allow_plaintext_backup": False,
        "deletion_allowed": False,
        "imported_key": False,
        "auto_rotate_period": 0,
    }


def _version(version: Version, curve: str) -> dict[str, str]:
    key = version.key
    if key.algorithm == "ed25519":
        public = base64.b64encode(key.public_key).decode()
    else:
        lines = base64.b64encode(_SPKI[key.algorithm] + key.public_key).decode()
        parts = [lines[at : at + 64] for at in range(0, len(lines), 64)]
        public = "\n".join(("-----BEGIN PUBLIC KEY-----", *parts, "-----END PUBLIC KEY-----", ""))
    return {"name": curve, "public_key": public, "creation_time": _when(version.created_ns)}


def _when(moment_ns: int | None) -> str:
    if moment_ns is None:
        return _NEVER
    seconds, rest = divmod(moment_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
