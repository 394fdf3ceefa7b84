"""The device's own attestation key and certificate, signed by a root of the tests in place of the vendor's; and the
certificates that it makes of keys."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from .objects import CURVES, Stored, public_key

_BEGUN, _ENDS = datetime.datetime(2017, 1, 1, tzinfo=datetime.UTC), datetime.datetime(2071, 10, 5, tzinfo=datetime.UTC)
_VENDOR = "1.3.6.1.4.1.41482.4"  # followed by 2: serial number, 3: origin, 5: capabilities, 6: object id
_Key = ec.EllipticCurvePrivateKey


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def integer(number: int) -> bytes:
    """A whole number in DER."""
    data = number.to_bytes(number.bit_length() // 8 + 1)
    return bytes([2, len(data)]) + data


def certificate(
    subject: str,
    public: object,
    issuer: str,
    key: object,
    *,
    ca: bool,
    more: dict[int, bytes],
    depth: int | None = None,
) -> x509.Certificate:
    """A certificate. `more`: the vendor's extensions; `depth`: of a CA, how many CAs may be under it."""
    made = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer))
    made = made.serial_number(x509.random_serial_number()).not_valid_before(_BEGUN).not_valid_after(_ENDS)
    made = made.public_key(public)  # type: ignore[arg-type]
    if ca:
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
    for number, value in more.items():
        oid = x509.ObjectIdentifier(f"{_VENDOR}.{number}")
        made = made.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return made.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())  # type: ignore[arg-type]


@dataclass
class Root:
    """A root and what it signed between itself and devices."""

    name: str = "Test HSM Root CA"
    key: _Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    between: _Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def pem(self) -> bytes:
        """Both certificates."""
        own = certificate(self.name, self.key.public_key(), self.name, self.key, ca=True, more={})
        under = certificate(f"{self.name} 2", self.between.public_key(), self.name, self.key, ca=True, more={})
        return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (own, under))


@dataclass
class Attestation:
    """Of one device."""

    serial: int
    root: Root = field(default_factory=Root)
    key: _Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def number(self) -> bytes:
        """The serial number as an extension has it."""
        return integer(self.serial)

    @property
    def _own(self) -> str:
        return f"Test HSM Attestation ({self.serial})"

    def certificate(self) -> bytes:
        """Of the device's own key: the opaque object 0."""
        made = certificate(
            self._own,
            self.key.public_key(),
            f"{self.root.name} 2",
            self.root.between,
            ca=True,
            more={2: self.number},
            depth=0,
        )
        return made.public_bytes(serialization.Encoding.DER)

    def attest(self, stored: Stored) -> bytes:
        """SIGN ATTESTATION CERTIFICATE."""
        raw = public_key(stored)
        public = (
            ec.EllipticCurvePublicKey.from_encoded_point(CURVES[stored.algorithm], b"\4" + raw)
            if stored.algorithm in CURVES
            else ed25519.Ed25519PublicKey.from_public_bytes(raw)
        )
        more = {
            2: self.number,
            3: bytes([3, 2, 0, stored.origin]),
            5: b"\3\x09\0" + stored.capabilities.to_bytes(8),
            6: integer(stored.id),
        }
        subject = f"Test HSM Attestation id:0x{stored.id:04x}"
        made = certificate(subject, public, self._own, self.key, ca=False, more=more)
        return made.public_bytes(serialization.Encoding.DER)
