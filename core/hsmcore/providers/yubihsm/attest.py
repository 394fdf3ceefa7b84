"""The certificate by which a YubiHSM 2 says that it holds a key, and the check of it against roots that are given.

PKCS#11 does not offer it, so python-yubihsm (extra `hsmcore[yubihsm]`) asks for it, as the user of the device's log if
one is configured. The user needs the capabilities sign-attestation-certificate and get-opaque.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hsmcore.providers.yubihsm.drain import DeviceSession, LogSource
from hsmcore.providers.yubihsm.settings import YubiHsmSettings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_OWN: Final = 0
"""The id of the device's own attestation key and certificate, which are made in its factory."""
_MOST_ISSUERS: Final = 8
_VENDOR: Final = "1.3.6.1.4.1.41482.4"
"""The arc of the vendor's extensions; those in a device's own certificate are firmware and serial number alone."""
_SERIAL, _ORIGIN, _CAPABILITIES, _OBJECT_ID = 2, 3, 5, 6
_GENERATED: Final = b"\x03\x02\x00\x01"
"""The bit string 0x01. 0x02 is imported, and 0x10, with one of them, came back under a wrapping key."""
_SET: Final = b"\x03\x09\x00"
"""The head of a bit string of 64 capabilities, the first one in its last bit."""
_EXPORTABLE_UNDER_WRAP: Final = 1 << 16


def certificates(settings: YubiHsmSettings, key_id: str) -> list[bytes]:
    """Return the certificate of a key, and that of the device's attestation key, which signed it; as DER. Blocks.
    Raises HsmError; RequestRejected if the user may not ask for it."""
    session = DeviceSession(LogSource.of(settings), "sign-attestation-certificate")
    try:
        _, opened = session.log_in("attest a key")
        with session.translated("attesting a key"):
            from cryptography.hazmat.primitives.serialization import Encoding
            from yubihsm.objects import AsymmetricKey, Opaque

            made = AsymmetricKey(opened, int(key_id, 16)).attest(_OWN)
            return [made.public_bytes(Encoding.DER), Opaque(opened, _OWN).get()]
    finally:
        session.close()


def judge(chain: Sequence[bytes], settings: YubiHsmSettings, public_key: bytes, key_id: str, serial: str) -> str:
    """Return what `problem_of` says by the roots of the settings. Raises OSError."""
    return problem_of(chain, map(Path, settings.attestation_roots or ()), Claim(public_key, key_id, serial))


def exportable(chain: Sequence[bytes]) -> bool | None:
    """Return whether the first of such certificates says that its key can leave the device under a wrapping key; None:
    it does not say. Whether it is to be believed, `judge` says."""
    from cryptography import x509

    try:
        value = _extension(x509.load_der_x509_certificate(chain[0]), _CAPABILITIES) or b""
    except (ValueError, IndexError):
        return None
    if not value.startswith(_SET) or len(value) != len(_SET) + 8:
        return None
    return bool(int.from_bytes(value[len(_SET) :]) & _EXPORTABLE_UNDER_WRAP)


@dataclass(frozen=True, slots=True)
class Claim:
    """The claim that certificates must show: this device made this key, under this object id."""

    public_key: bytes
    key_id: str
    """Four hexadecimal digits."""
    serial: str
    """The device's serial number, in decimal, as its token shows it."""


class _Refused(Exception):
    """Certificates that show nothing; the text says why."""


def problem_of(chain: Sequence[bytes], roots: Iterable[Path], claim: Claim, now: datetime | None = None) -> str:
    """Return why certificates do not show what is claimed; "": they do. `chain`: the certificate of the key, then that
    of the device's attestation key, as DER. `roots`: files of certificates in PEM, those between root and device too.
    Raises OSError."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        certs = [x509.load_der_x509_certificate(one) for one in chain]
        known = [cert for path in roots for cert in x509.load_pem_x509_certificates(path.read_bytes())]
        if not certs or not known:
            return "there is no certificate" if not certs else "no root is given"
        if len(certs) != 2:
            return "not two certificates: one of the key, and one of the device's attestation key"
        key, device = certs
        _require_claimed(key, device, claim)
        whole = [key, device, *_issuers(device, known)]
        moment = datetime.now(UTC) if now is None else now
        for subject, issuer in zip(whole, [*whole[1:], whole[-1]], strict=True):
            if not subject.not_valid_before_utc <= moment <= subject.not_valid_after_utc:
                return f"a certificate is not valid now: {subject.subject.rfc4514_string()}"
            subject.verify_directly_issued_by(issuer)
    except _Refused as refused:
        return str(refused)
    except (ValueError, TypeError, InvalidSignature) as error:
        return f"the certificates do not lead to a root: {type(error).__name__}"
    return ""


def _require_claimed(key: Certificate, device: Certificate, claim: Claim) -> None:
    """An attested key may sign whatever looks like a certificate, so the roles count: a device's own certificate is of
    a CA and names no object, the certificate of a key is of none. Raises _Refused."""
    from cryptography.hazmat.primitives import serialization

    form = serialization.PublicFormat
    raw = (serialization.Encoding.Raw, form.Raw)
    point = (serialization.Encoding.X962, form.UncompressedPoint)
    if key.public_key().public_bytes(*(raw if len(claim.public_key) == 32 else point)) != claim.public_key:
        raise _Refused("the certificate is of another key")
    if _extension(key, _ORIGIN) != _GENERATED:
        raise _Refused(
            "the certificate does not say that the device generated the key: it was imported, or nothing says"
        )
    if _extension(key, _OBJECT_ID) != _integer(int(claim.key_id, 16)):
        raise _Refused(f"the certificate is not of object 0x{claim.key_id}")
    if not _extension(key, _SERIAL) == _extension(device, _SERIAL) == _integer(int(claim.serial)):
        raise _Refused(f"the certificates are not of the device {claim.serial}")
    if _ca_depth(key) is not None:
        raise _Refused("the certificate of the key is one of a CA")
    if _ca_depth(device) is None or not _extension(device, _ORIGIN) is _extension(device, _OBJECT_ID) is None:
        raise _Refused("the second certificate is not of a device's attestation key")


def _issuers(device: Certificate, known: Sequence[Certificate]) -> list[Certificate]:
    """The certificates from the one that issued the device's to a root, which issued itself. Raises _Refused."""
    found: list[Certificate] = []
    last = device
    while not found or last.issuer != last.subject:
        below = len(found) + 1  # CAs under the next one
        issuer = next((one for one in known if one.subject == last.issuer and (_ca_depth(one) or 0) >= below), None)
        if issuer is None or issuer == device or below > _MOST_ISSUERS:
            raise _Refused("the certificates do not lead to a root")
        found.append(issuer)
        last = issuer
    return found


def _ca_depth(cert: Certificate) -> float | None:
    """How many CAs may stand between a certificate and one of no CA, itself included; None: it is of no CA."""
    from cryptography import x509

    try:
        found = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None
    if not found.ca or not _may_sign(cert):
        return None
    return inf if found.path_length is None else found.path_length


def _may_sign(cert: Certificate) -> bool:
    from cryptography import x509

    try:
        return cert.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True


def _extension(cert: Certificate, number: int) -> bytes | None:
    """One of the vendor's extensions, as it stands there."""
    from cryptography import x509

    try:
        found = cert.extensions.get_extension_for_oid(x509.ObjectIdentifier(f"{_VENDOR}.{number}")).value
    except x509.ExtensionNotFound:
        return None
    return found.value if isinstance(found, x509.UnrecognizedExtension) else None


def _integer(number: int) -> bytes:
    """A whole number in DER."""
    data = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return bytes([2, len(data)]) + data
