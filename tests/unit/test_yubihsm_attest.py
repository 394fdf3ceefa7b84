"""A YubiHSM's certificates: what shows that the device generated a key, and each thing that does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.support.yubihsm.attest import Attestation, Root, certificate
from tests.support.yubihsm.codes import Algorithm, Capability, Kind
from tests.support.yubihsm.objects import GENERATED, IMPORTED, IMPORTED_WRAPPED, Stored

from hsmcore.providers.yubihsm.attest import Claim, exportable, problem_of

SERIAL, KEY_ID = 9_000_001, 0x64
DEVICE = Attestation(SERIAL)
VECTORS = Path(__file__).parents[1] / "vectors" / "yubihsm"


def stored(
    origin: int = GENERATED, key_id: int = KEY_ID, algorithm: Algorithm = Algorithm.ED25519, capabilities: int = 0
) -> Stored:
    return Stored(key_id, Kind.ASYMMETRIC_KEY, algorithm, capabilities, 1, b"", bytes(31) + b"\1", origin=origin)


def raw_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.public_key().public_bytes_raw()
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1")
CLAIM = Claim(raw_of(KEY), f"{KEY_ID:04x}", str(SERIAL))


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "roots.pem"
    made.write_bytes(DEVICE.root.pem)
    return made


def chain_of(device: Attestation = DEVICE, **key) -> list[bytes]:
    return [device.attest(stored(**key)), device.certificate()]


def issued(subject, public, issuer, key, *, ca=False, depth=None, **more) -> bytes:
    extensions = {int(name[1:]): value for name, value in more.items()}
    made = certificate(subject, public, issuer, key, ca=ca, more=extensions, depth=depth)
    return made.public_bytes(Encoding.DER)


def test_it_shows_a_key_that_the_device_generated(path):
    assert problem_of(chain_of(), [path], CLAIM) == ""
    point = stored(algorithm=Algorithm.EC_P256)
    public = x509.load_der_x509_certificate(DEVICE.attest(point)).public_key()
    claim = replace(CLAIM, public_key=public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
    assert problem_of(chain_of(algorithm=Algorithm.EC_P256), [path], claim) == ""


@pytest.mark.parametrize(
    ("name", "key_id", "serial", "leaves"),
    [("exportable", "0105", "31650558", True), ("confined", "7e57", "31650425", False)],
)
def test_real_devices_certificates_lead_to_the_vendor_s_root(name, key_id, serial, leaves):
    certs = x509.load_pem_x509_certificates((VECTORS / f"{name}.pem").read_bytes())
    chain, roots = [one.public_bytes(Encoding.DER) for one in certs], [VECTORS / "roots.pem"]
    public = certs[0].public_key()
    if isinstance(public, ed25519.Ed25519PublicKey):
        raw = public.public_bytes_raw()
    else:
        raw = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    claim = Claim(raw, key_id, serial)
    assert problem_of(chain, roots, claim) == ""
    assert exportable(chain) is leaves
    others = {"key_id": "0106"}, {"serial": "31650559"}, {"public_key": bytes(32)}
    for wrong in (replace(claim, **other) for other in others):
        assert problem_of(chain, roots, wrong) != ""
    bits = next(one.value.value for one in certs[0].extensions if one.oid.dotted_string.endswith(".41482.4.5"))
    turned = chain[0].replace(bits, bits[:8] + bytes([bits[8] ^ 1]) + bits[9:])
    assert exportable([turned]) is not leaves
    assert "not lead" in problem_of([turned, chain[1]], roots, claim)


@pytest.mark.parametrize("capabilities", [0, 1 << 8, 1 << 16, 0x10100, 1 << 15, 1 << 17, 1 << 63, (1 << 64) - 1])
def test_a_certificate_says_whether_its_key_can_leave_under_a_wrapping_key(capabilities):
    assert exportable(chain_of(capabilities=capabilities)) is bool(capabilities & Capability.EXPORTABLE_UNDER_WRAP)


@pytest.mark.parametrize("said", [None, b"", b"\3\x09\0" + bytes(7), b"\3\x09\1" + bytes(8), b"\4\x08" + bytes(9)])
def test_what_says_nothing_of_capabilities_says_neither(said):
    more = {} if said is None else {5: said}
    made = certificate("key", KEY.public_key(), DEVICE._own, DEVICE.key, ca=False, more=more)
    assert exportable([made.public_bytes(Encoding.DER)]) is None
    assert exportable([]) is exportable([b"x"]) is None


@pytest.mark.parametrize("origin", [IMPORTED, GENERATED | IMPORTED_WRAPPED, IMPORTED | IMPORTED_WRAPPED, 3, 0, 0x80])
def test_a_key_that_came_from_elsewhere_is_none(path, origin):
    assert "imported" in problem_of(chain_of(origin=origin), [path], CLAIM)


def test_a_certificate_is_of_this_key_object_and_device(path):
    chain = chain_of()
    assert "another key" in problem_of(chain, [path], replace(CLAIM, public_key=bytes(32)))
    assert "object 0x0065" in problem_of(chain, [path], replace(CLAIM, key_id="0065"))
    assert "device 9000002" in problem_of(chain, [path], replace(CLAIM, serial="9000002"))
    other = Attestation(SERIAL + 1, DEVICE.root)  # of the same vendor
    assert "device" in problem_of(chain_of(other), [path], CLAIM)
    assert "not lead" in problem_of(chain, [path], replace(CLAIM, serial="x"))


def test_certificates_lead_to_a_root_that_is_given(path, tmp_path):
    chain = chain_of()
    assert "no root" in problem_of(chain, [], CLAIM)
    assert "no certificate" in problem_of([], [path], CLAIM)
    assert "not valid now" in problem_of(chain, [path], CLAIM, datetime(2072, 1, 1, tzinfo=UTC))
    assert "not lead" in problem_of([b"x", chain[1]], [path], CLAIM)
    assert "not lead" in problem_of([chain[0][:-1] + bytes([chain[0][-1] ^ 1]), chain[1]], [path], CLAIM)
    same_names = Attestation(SERIAL)
    assert "not lead" in problem_of([chain[0], same_names.certificate()], [path], CLAIM)
    other = tmp_path / "other.pem"
    other.write_bytes(Root().pem)
    assert "not lead" in problem_of(chain, [other], CLAIM)
    between = x509.load_pem_x509_certificates(DEVICE.root.pem)[1]
    other.write_bytes(between.public_bytes(Encoding.PEM))
    assert "not lead" in problem_of(chain, [other], CLAIM), "what is between is no root"


def test_there_are_two_certificates(path):
    chain = chain_of()
    between = x509.load_pem_x509_certificates(DEVICE.root.pem)[1].public_bytes(Encoding.DER)
    for other in (chain[:1], [*chain, between], [chain[0], *chain], chain * 2):
        assert "two certificates" in problem_of(other, [path], CLAIM)
    assert "not lead" in problem_of(chain[::-1], [path], CLAIM)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_what_an_attested_key_has_signed_shows_nothing(path, kind):
    """It signs any bytes, so also the certificate of a key in software."""
    key = KEY if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    software = ed25519.Ed25519PrivateKey.generate()
    claim = replace(CLAIM, public_key=raw_of(software))
    extensions = {"_2": DEVICE.number, "_3": b"\x03\x02\x00\x01", "_6": b"\x02\x01\x64"}
    for names in ({"_2": DEVICE.number}, extensions):
        # As the device makes it: of no CA. Were it of one, it would still name an object.
        attested = issued("attested", key.public_key(), DEVICE._own, DEVICE.key, **extensions)
        forged = issued("forged", software.public_key(), "attested", key, **extensions)
        device = issued("attested", key.public_key(), f"{DEVICE.root.name} 2", DEVICE.root.between, ca=True, **names)
        assert "second certificate" in problem_of([forged, attested], [path], claim)
        assert "two certificates" in problem_of([forged, attested, DEVICE.certificate()], [path], claim)
        assert ("second certificate" in problem_of([forged, device], [path], claim)) == ("_3" in names)


def test_a_device_vouches_for_no_other_ca(path):
    """Also where its certificate is among the roots, as one of what is between."""
    device = x509.load_der_x509_certificate(DEVICE.certificate())
    path.write_bytes(DEVICE.root.pem + device.public_bytes(Encoding.PEM))
    assert problem_of(chain_of(), [path], CLAIM) == ""
    software, under = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    second = issued("ca", under.public_key(), DEVICE._own, DEVICE.key, ca=True, _2=DEVICE.number)
    first = issued(
        "key", software.public_key(), "ca", under, _2=DEVICE.number, _3=b"\x03\x02\x00\x01", _6=b"\x02\x01\x64"
    )
    assert "not lead" in problem_of([first, second], [path], replace(CLAIM, public_key=raw_of(software)))


@pytest.mark.parametrize(("key_is_ca", "device_is_ca"), [(True, True), (False, False)])
def test_each_certificate_has_its_role(path, key_is_ca, device_is_ca):
    own = ec.generate_private_key(ec.SECP256R1())
    device = issued(
        "own", own.public_key(), f"{DEVICE.root.name} 2", DEVICE.root.between, ca=device_is_ca, _2=DEVICE.number
    )
    extensions = {"_2": DEVICE.number, "_3": b"\x03\x02\x00\x01", "_6": b"\x02\x01\x64"}
    key = issued("key", KEY.public_key(), "own", own, ca=key_is_ca, **extensions)
    wrong = "one of a CA" if key_is_ca else "second certificate"
    assert wrong in problem_of([key, device], [path], CLAIM)


@pytest.mark.parametrize("missing", [2, 3, 6])
def test_what_a_certificate_does_not_say_is_not_so(path, missing):
    extensions = {2: DEVICE.number, 3: b"\x03\x02\x00\x01", 6: b"\x02\x01\x64"}
    del extensions[missing]
    made = certificate("key", KEY.public_key(), DEVICE._own, DEVICE.key, ca=False, more=extensions)
    assert problem_of([made.public_bytes(Encoding.DER), DEVICE.certificate()], [path], CLAIM) != ""
