"""A digest is signed as it is: under which key, beside messages of the same bytes, and only where the policy says
so."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from tests.support.chaos import Chaos, engine_of, supervisor_of, wrap
from tests.support.kms import config as kms_config
from tests.support.levels import Site
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, start, until
from tests.support.verifiers import is_good, is_low_s, recovered

import hsmcore
from hsmcore._native import Digest, verify
from hsmcore.audit.check.verify import verify as verify_log
from hsmcore.audit.layout import Layout
from hsmcore.failover.errors import AllLevelsFailed

pytestmark = pytest.mark.integration

CURVES = {"ecdsa-p256": ec.SECP256R1(), "ecdsa-secp256k1": ec.SECP256K1()}
ALLOWED = {"kinds": ["prehashed", "digest32", "raw"]}
DIGEST = hashlib.sha256(b"a block").digest()
_SECRET = b"\x46" * 32
_PUBLIC = ec.derive_private_key(int.from_bytes(_SECRET), ec.SECP256K1()).public_key().public_numbers()
SAME = {
    "name": "ed25519",  # what Site calls a member's key
    "kind": "ecdsa-secp256k1",
    "seed": _SECRET.hex(),
    "public_key": (b"\x04" + _PUBLIC.x.to_bytes(32) + _PUBLIC.y.to_bytes(32)).hex(),
}
OTHER = {"name": "ed25519", "kind": "ecdsa-secp256k1"}


def fits(algorithm: str, public_key: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether it is a signature of the digest itself, by libcrypto."""
    key = ec.EllipticCurvePublicKey.from_encoded_point(CURVES[algorithm], public_key)
    pair = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    try:
        key.verify(pair, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return len(signature) == 64 and is_low_s(algorithm, signature)


def require_good(algorithm: str, public_key: bytes, digest: bytes, signed: hsmcore.DigestSignature) -> None:
    assert fits(algorithm, public_key, digest, signed.signature)
    assert not is_good(algorithm, public_key, digest, signed.signature), "the digest was hashed too"
    ids = recovered(public_key, digest, signed.signature) if algorithm == "ecdsa-secp256k1" else [None]
    assert [signed.recovery_id] == ids


async def records(manager: hsmcore.KeyManager) -> list[dict[str, Any]]:
    await manager.audit.flush()
    return [record async for record in manager.audit.query(match={"operation": "sign"})]


# ---- signatures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("algorithm", CURVES)
async def test_a_digest_is_signed_as_it_is(world, algorithm, isolation):
    settings = {"isolation": isolation, "verifySignatures": "always"}
    async with opened(world.config(algorithm, settings=settings, policy=ALLOWED)) as manager:
        digests = [os.urandom(32) for _ in range(16)]
        answers = await asyncio.gather(*(manager.sign_digest(digest) for digest in digests))
        for digest, signed in zip(digests, answers, strict=True):
            require_good(algorithm, manager.public_key, digest, signed)
        signature, _ = await manager.sign_digest(memoryview(bytearray(DIGEST)), timeout=5)
        assert fits(algorithm, manager.public_key, DIGEST, signature)
        assert await manager.verify(b"a block", signature), "as if the message had been given"
        assert counters(manager)["signatures"] == 17
        assert counters(manager)["wrong"] == 0


@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_SECG_P256K1"])
async def test_kms_is_given_the_digest(kms, spec):
    algorithm = {"ECC_NIST_P256": "ecdsa-p256", "ECC_SECG_P256K1": "ecdsa-secp256k1"}[spec]
    key = kms.store.make(spec)
    given = kms_config(kms, key, {"verifySignatures": "always"}, maxCacheSize=0, policy=ALLOWED)
    async with opened(given) as manager:
        require_good(algorithm, key.raw_public, DIGEST, await manager.sign_digest(DIGEST))
        assert kms.store.signed[-1] == (key.id, DIGEST)
        assert is_good(algorithm, key.raw_public, DIGEST, await manager.sign(DIGEST))


# ---- a digest and a message of the same bytes ------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", CURVES)
async def test_the_cache_tells_a_digest_from_a_message(world, algorithm):
    given = world.config(algorithm, maxCacheSize=10, cacheNonDeterministic=True, policy=ALLOWED)
    async with opened(given) as manager:
        hashed, (signature, _) = await manager.sign(DIGEST), await manager.sign_digest(DIGEST)
        assert is_good(algorithm, manager.public_key, DIGEST, hashed)
        assert fits(algorithm, manager.public_key, DIGEST, signature)
        assert await manager.sign(DIGEST) == hashed
        assert (await manager.sign_digest(DIGEST)).signature == signature
        assert counters(manager)["signatures"] == 2
        assert manager.get_cache_stats()["hits"] == 2


# ---- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_the_record_has_the_digest_that_was_given(world, tmp_path, isolation):
    log = tmp_path / "audit.log"
    given = world.config("ecdsa-p256", settings={"isolation": isolation}, auditLogFile=str(log), policy=ALLOWED)
    async with opened(given) as manager:
        public_key = manager.public_key
        with hsmcore.audit_tag("batch 7"):
            signature, _ = await manager.sign_digest(DIGEST)
        hashed = await manager.sign(DIGEST)
        as_it_is, of_message = await records(manager)
    assert as_it_is["message_sha256"] == DIGEST.hex()
    assert (as_it_is["kind"], as_it_is["tag"], as_it_is["message_bytes"]) == ("prehashed", "batch 7", 32)
    assert of_message["message_sha256"] == hashlib.sha256(DIGEST).hexdigest()
    assert "kind" not in of_message
    for record, signed in ((as_it_is, signature), (of_message, hashed)):
        assert record["signature"] == signed.hex()
        assert fits("ecdsa-p256", public_key, bytes.fromhex(record["message_sha256"]), signed)
    assert verify_log(Layout(log)).ok


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, {"kinds": ["digest32", "raw"]}], ids=["no policy", "another kind"])
async def test_it_is_off_by_default(world, tmp_path, policy):
    given = world.config("ecdsa-p256", auditLogFile=str(tmp_path / "audit.log"), policy=policy)
    async with opened(given) as manager:
        with pytest.raises(hsmcore.PolicyRefused):
            await manager.sign_digest(DIGEST)
        [record] = await records(manager)
        assert (record["result"], record["error"], record["kind"]) == ("error", "POLICY_REFUSED", "prehashed")
        assert record["message_sha256"] == DIGEST.hex()
        for way in (manager.sign, manager.sign_with_receipt):  # nor does it come in by another door
            with pytest.raises(hsmcore.HsmError):
                await way(Digest(DIGEST))
        with pytest.raises(hsmcore.InvalidMessage):
            await manager.sign_many([Digest(DIGEST)])
        assert counters(manager)["signatures"] == 0


async def test_an_ed25519_key_signs_none(world, shim):
    async with opened(world.config(settings={"modulePath": shim.path}, policy=ALLOWED)) as manager:
        before = shim.calls("C_SignInit")
        with pytest.raises(hsmcore.AlgorithmUnsupported, match="Ed25519") as caught:
            await manager.sign_digest(DIGEST)
        assert not caught.value.retryable
        with pytest.raises(hsmcore.AlgorithmUnsupported):  # the request table refuses it too
            await engine_of(manager).submit(Digest(DIGEST))
        assert shim.calls("C_SignInit") == before


@pytest.mark.parametrize("digest", [b"", DIGEST[:-1], DIGEST + b"\0", "text", None, 32], ids=repr)
async def test_what_is_no_digest_is_refused(world, digest):
    async with opened(world.config("ecdsa-p256", policy=ALLOWED)) as manager:
        with pytest.raises(hsmcore.InvalidMessage):
            await manager.sign_digest(digest)
        assert counters(manager)["signatures"] == 0


def test_verification_tells_them_apart(world):
    key = world.keys["ecdsa-p256"].public_key
    assert not verify("ecdsa-p256", key, Digest(DIGEST), bytes(64))
    assert not verify("ed25519", world.keys["ed25519"].public_key, Digest(DIGEST), bytes(64))


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, fresh_token: Any) -> Any:
    return lambda *keys: Site(tmp_path, fresh_token, *keys)


def bound(place: Site) -> dict[str, Any]:
    return place.config(failover={"acceptOtherKeys": ["secondary"]}, policy=ALLOWED)


async def fail_over(manager: hsmcore.KeyManager) -> None:
    service = manager._path
    await until(lambda: all(endpoint.trusted for endpoint in service.endpoints))  # also on a machine that was busy
    await service.health._desired.set(f"drain:{service.endpoints[0].name}", "yes", "a test")
    await service.health._follow()
    assert service.levels.active == 1


async def require_bound(manager: hsmcore.KeyManager, *ways: Any) -> None:
    """The secondary level, which has another key, signs none of these, but other things."""
    for way in ways:
        with pytest.raises(AllLevelsFailed, match="allow_other_key"):
            await way
    await manager.sign_digest(os.urandom(32), 5)


@one_loop
async def test_another_member_with_the_key_signs(site):
    place = site(SAME, SAME)
    async with opened(place.config(policy=ALLOWED)) as manager:
        require_good("ecdsa-secp256k1", manager.public_key, DIGEST, await manager.sign_digest(DIGEST))
        place.kill(0)
        for _ in range(8):
            require_good("ecdsa-secp256k1", manager.public_key, DIGEST, await manager.sign_digest(DIGEST, 10))
        assert manager._path.levels.active == 1
        assert manager.public_key == bytes.fromhex(str(SAME["public_key"]))


@one_loop
async def test_a_digest_that_may_be_signed_is_signed_under_no_other_key(site):
    place = site(SAME, OTHER)
    message = b"its SHA-256 is what the key signs"
    digest = hashlib.sha256(message).digest()
    async with opened(bound(place)) as manager:
        place.members[0].fault("C_Sign", "hang", forever=True, every=1)
        asked = [start(manager.sign_digest(DIGEST, 20)), start(manager.sign(message, 20))]
        await until(lambda: place.members[0].stats()["hung"] == 2)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        place.members[0].clear()
        place.members[0].release()
        await fail_over(manager)
        # A message and its digest are one thing to an ECDSA key, so they share the binding.
        ways = manager.sign_digest(DIGEST, 5), manager.sign_digest(digest, 5), manager.sign(message, 5)
        await require_bound(manager, *ways, manager.sign(bytearray(message), 5), manager.sign(b"a block", 5))
        assert is_good(
            "ecdsa-secp256k1", place.tokens[1].keys["ed25519"].public_key, DIGEST, await manager.sign(DIGEST)
        )


@one_loop
async def test_digests_that_a_host_left_behind_are_signed_as_digests(world, tmp_path):
    settings = {"isolation": "process", "sessions": 1, "verifySignatures": "always"}
    slow = {"C_Sign": {"kind": "constant", "microseconds": 10_000}}  # so that some are left, however late the kill is
    chaos = Chaos(tmp_path, wrap(world, "ecdsa-p256"), latency=slow)
    async with opened(chaos.config(settings=settings, policy=ALLOWED)) as manager:
        digests = [os.urandom(32) for _ in range(200)]
        asked = [start(manager.sign_digest(digest, 20)) for digest in digests]
        await until(lambda: counters(manager)["signatures"] > 5)
        engine_of(manager).kill_host()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await until(lambda: supervisor_of(manager).restarts > 0)  # an answer may come before
        assert supervisor_of(manager).restarts == 1
        good = [(d, a) for d, a in zip(digests, answers, strict=True) if isinstance(a, tuple)]
        lost = [a for a in answers if not isinstance(a, tuple)]
        assert len(lost) <= 2
        assert all(isinstance(error, hsmcore.HsmError) and error.status == "HOST_LOST" for error in lost)
        for digest, signed in good:
            assert fits("ecdsa-p256", manager.public_key, digest, signed.signature)
