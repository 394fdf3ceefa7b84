"""The certificate by which a YubiHSM 2 says that it holds a key, and the check of it against roots that are given.

PKCS#11 does not offer it, so python-yubihsm (extra `hsmcore[yubihsm]`) asks for it, as the user of the device's log if
one is configured. The user needs the capabilities sign-attestation-certificate and get-opaque.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hsmcore.audit.devices.yubihsm_log import DeviceSession, LogSource
from hsmcore.config import YubiHsmSettings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_OWN: Final = 0
"""The id of the device's own attestation key and certificate, which are made in its factory."""
_MOST_ISSUERS: Final = 8


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


def problem_of(chain: Sequence[bytes], roots: Iterable[Path], public_key: bytes, now: datetime | None = None) -> str:
    """Return why certificates do not show that a device made by the owner of one of the roots holds a key; "": they do.
    `roots`: files of certificates in PEM, those between root and device too. Raises OSError."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    try:
        certs = [x509.load_der_x509_certificate(one) for one in chain]
        known = [cert for path in roots for cert in x509.load_pem_x509_certificates(path.read_bytes())]
        if not certs or not known:
            return "there is no certificate" if not certs else "no root is given"
        form = serialization.PublicFormat
        raw = (serialization.Encoding.Raw, form.Raw)
        point = (serialization.Encoding.X962, form.UncompressedPoint)
        found = certs[0].public_key().public_bytes(*(raw if len(public_key) == 32 else point))
        if found != public_key:
            return "the certificate is of another key"
        moment = datetime.now(UTC) if now is None else now
        chain_ = [*certs, *_issuers(certs[-1], known)]
        for subject, issuer in zip(chain_, [*chain_[1:], chain_[-1]], strict=True):
            if not subject.not_valid_before_utc <= moment <= subject.not_valid_after_utc:
                return f"a certificate is not valid now: {subject.subject.rfc4514_string()}"
            subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as error:
        return f"the certificates do not lead to a root: {type(error).__name__}"
    return "" if chain_[-1] in known and len(chain_) > len(certs) else "the certificates do not lead to a root"


def _issuers(last: Certificate, known: Sequence[Certificate]) -> list[Certificate]:
    """The certificates from the one that issued the last to a root, which issued itself."""
    found: list[Certificate] = []
    while len(found) < _MOST_ISSUERS and last.issuer != last.subject:
        issuer = next((one for one in known if one.subject == last.issuer and _may_issue(one)), None)
        if issuer is None:
            return []
        found.append(issuer)
        last = issuer
    return found


def _may_issue(cert: Certificate) -> bool:
    from cryptography import x509

    try:
        return cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
