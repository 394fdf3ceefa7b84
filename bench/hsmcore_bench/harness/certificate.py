"""A certificate for a gateway and for its clients alike, which vouches for itself. Needs the package `cryptography`."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Final, NamedTuple

NAME: Final = "neighbour.example"
"""What a client that has it is called."""
_DAYS: Final = 2


class Certificate(NamedTuple):
    """Paths of PEM files."""

    certificate: str
    key: str


def self_signed(folder: Path) -> Certificate:
    """Make one for 127.0.0.1 and NAME."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName(NAME)]
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=_DAYS))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    found = Certificate(str(folder / "certificate.pem"), str(folder / "key.pem"))
    Path(found.certificate).write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    Path(found.key).write_bytes(key.private_bytes(*form))
    return found
