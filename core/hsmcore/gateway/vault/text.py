"""What requests and answers of Vault Transit's API say: parameters, signatures as text, keys as Vault shows them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from hsmcore.base.traceparent import TraceParent
from hsmcore.errors import BadArgument, HsmError
from hsmcore.gateway.version_number import Version
from hsmcore.gateway.wire.messages import KINDS

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
FIELDS: Final = {
    "input": ("string", "the message, in base64"),
    "signature": ("string", "a signature of `input`: vault:vN:…"),
    "batch_input": ("array", "objects with these fields and a `reference`, instead of one input; each has its answer"),
    "key_version": ("integer", "the version that signs, or 0: the current one"),
    "kind": ("string", f"what the message is: {', '.join(kind for kind in KINDS[1:] if kind != 'prehashed')}"),
    "position": ("integer", "the place in its chain that the message claims"),
    "prehashed": ("boolean", "ECDSA: `input` is a digest"),
    "hash_algorithm": ("string", "sha2-256; Ed25519: sha2-512 too, which changes nothing"),
    "marshaling_algorithm": ("string", "asn1 or jws"),
}
"""Type and meaning of the fields of a request to sign or verify. To verify, there is neither kind nor position, and
the version stands in the signature."""
_HALF: Final = 32
_SIGNATURE: Final = re.compile(r"vault:v([1-9][0-9]{0,9}):(.*)", re.DOTALL)
_URL_SAFE: Final = str.maketrans("-_+/", "+/!!")
_LINE_ENDS: Final = str.maketrans("", "", "\r\n")
_NEVER: Final = "0001-01-01T00:00:00Z"
"""A time that is not known, as Vault writes it."""


class Wanted(NamedTuple):
    """What is to be signed. `kind`: "": the request does not say."""

    message: bytes
    kind: str
    position: int | None


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


def wanted(item: object) -> Wanted:
    """Return what a request, or an item of a batch, wants signed. Raises BadArgument."""
    said = _object(item)
    kind, position = _word(said, "kind"), said.get("position")
    if kind not in KINDS or kind == "prehashed":
        hint = "Say prehashed: true." if kind else ""
        raise BadArgument(f"kind {kind!r:.40} is none that is signed here", hint=hint)
    return Wanted(data(said), kind, None if position is None else whole(said, "position"))


def batch(body: Mapping[str, Any]) -> list[Any] | None:
    """Return the items of a batch, which may be anything: each is refused by itself. None if the request is none.
    Raises BadArgument."""
    items = body.get("batch_input")
    if items is None:
        return None
    if not isinstance(items, list):
        raise BadArgument("batch_input must be a list of objects")
    if not items:
        raise BadArgument("missing batch input to process")
    return items


def parent(headers: Sequence[str]) -> TraceParent | None:
    """Return the client's span, of its headers `traceparent`. Two name none, as W3C Trace Context has it."""
    return TraceParent.parsed(headers[0]) if len(headers) == 1 else None


def results(
    items: Sequence[object], answers: Sequence[Mapping[str, Any] | BaseException], refused: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the answer to a batch. `refused`: what an item's error stands beside."""
    return {"batch_results": [_answered(item, one, refused) for item, one in zip(items, answers, strict=True)]}


def _answered(item: object, answer: Mapping[str, Any] | BaseException, refused: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a batch's answer says of an item: its answer, or its error beside what `refused` says."""
    reference = item.get("reference") if isinstance(item, dict) else ""
    shown = {"reference": reference if isinstance(reference, str) else ""}
    if isinstance(answer, HsmError):
        return {**refused, "error": str(answer), **shown}
    if isinstance(answer, BaseException):
        raise answer
    return {**answer, **shown}


def _object(item: object) -> Mapping[str, Any]:
    """Return an item of a batch, or a request. Raises BadArgument, also for what no key here does."""
    if not isinstance(item, dict):
        raise BadArgument("an item of batch_input must be an object")
    if not isinstance(item.get("reference", ""), str):
        raise BadArgument("reference must be text")
    for name in ("context", "hmac", "cmac"):
        if item.get(name):
            raise BadArgument(f"{name} is not supported: {_ONLY_ELSEWHERE[name]}")
    return item


def written(signature: bytes, number: int, algorithm: str, *, jws: bool) -> str:
    """Return a signature (64 bytes) as Vault writes it."""
    if jws:
        return f"vault:v{number}:{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    encoded = signature if algorithm == "ed25519" else _to_der(signature)
    return f"vault:v{number}:{base64.b64encode(encoded).decode()}"


def parsed(item: object) -> tuple[bytes, int, str]:
    """Return message, version's number and encoded signature of what is to be verified. Raises BadArgument."""
    said = _object(item)
    text = said.get("signature")
    if not isinstance(text, str) or not text:
        raise BadArgument("missing signature")
    found = _SIGNATURE.fullmatch(text)
    if found is None:
        raise BadArgument("invalid signature: it must begin with vault:vN:")
    return data(said), int(found[1]), found[2]


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


def capabilities(path: str, keys: Iterable[str]) -> list[str]:
    """Return what a client that may use these keys may do at a path, in the words of Vault's policies."""
    *place, name = path.strip("/").split("/")
    if place in (["transit", "sign"], ["transit", "verify"]) and name in keys:
        return ["update"]
    if place == ["transit", "keys"] and name in keys:
        return ["read"]
    return ["list"] if path.strip("/") == "transit/keys" else ["deny"]


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
