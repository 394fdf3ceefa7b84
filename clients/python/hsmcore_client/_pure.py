"""What the client needs of hsmcore's native core, in Python. As strict: tests/vectors hold both to the same."""

from __future__ import annotations

from typing import Final

from hsmcore.base.extras import install
from hsmcore.errors import BadArgument
from hsmcore.gateway.client.arguments import as_bytes

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"to verify, cryptography is needed: {install('verify')}", name=error.name) from error

_CURVES: Final[dict[str, tuple[ec.EllipticCurve, int]]] = {
    "ecdsa-p256": (ec.SECP256R1(), 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
    "ecdsa-secp256k1": (ec.SECP256K1(), 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141),
}
"""With their orders."""
_P: Final = 2**255 - 19
_EIGHTH: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
"""The y of a point of order eight."""
_SMALL: Final = (0, 1, _P - 1, _EIGHTH, _P - _EIGHTH)


def freeze(message: object) -> bytes:
    """The message as immutable bytes. Raises InvalidMessageType."""
    return as_bytes(message)


def verify(algorithm: str, public_key: bytes, message: object, signature: bytes) -> bool:
    """Whether `signature` is good for a message. Any thread. Raises BadArgument for a bad key, InvalidMessageType."""
    data = as_bytes(message)
    if len(public_key) != (32 if algorithm == "ed25519" else 65):
        raise BadArgument(f"not an {algorithm} public key")
    try:
        if algorithm == "ed25519":
            return _ed25519(public_key, data, signature)
        return _ecdsa(algorithm, public_key, data, signature)
    except InvalidSignature:
        return False


def _ed25519(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """OpenSSL looks at S and the spelling of R, but takes keys of a second spelling, and points of small order."""
    y, r = (int.from_bytes(point, "little") % 2**255 for point in (public_key, signature[:32]))
    if len(signature) != 64 or y >= _P or y in _SMALL or r in _SMALL:
        return False
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    return True


def _ecdsa(algorithm: str, public_key: bytes, data: bytes, signature: bytes) -> bool:
    """OpenSSL takes a high s, too: a second spelling of a signature."""
    try:
        curve, order = _CURVES[algorithm]
        key = ec.EllipticCurvePublicKey.from_encoded_point(curve, public_key)
    except (KeyError, ValueError):
        raise BadArgument(f"not an {algorithm} public key") from None
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    if len(signature) != 64 or s > order // 2:
        return False
    key.verify(encode_dss_signature(r, s), data, ec.ECDSA(SHA256()))
    return True
