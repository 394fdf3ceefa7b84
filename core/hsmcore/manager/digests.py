"""Signing a digest as it is: who may, what goes to the members, and the recovery id of the signature."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import ExitStack

from hsmcore._native import Digest
from hsmcore.base.keyring import KeyRing
from hsmcore.base.receipt import DigestSignature, Receipt
from hsmcore.config.policy import PREHASHED
from hsmcore.errors import AlgorithmUnsupported, InvalidMessage, PolicyRefused
from hsmcore.failover.path import Ask, SigningPath, Way
from hsmcore.manager.policy import Guard
from hsmcore.manager.verification import VerifierPool


def shown(digest: object) -> object:
    """The digest as members and records take it. What is none stays as it is: `submit` refuses it."""
    try:
        return Digest(digest)
    except InvalidMessage:
        return digest


async def submit(
    path: SigningPath,
    way: Way,
    guard: Guard | None,
    digest: object,
    timeout: float | None,
    extra: bytes | None,
    admitted: ExitStack,
) -> Awaitable[Receipt]:
    """Ask the members. Raises PolicyRefused, AlgorithmUnsupported, InvalidMessage before any member is asked."""
    if guard is None:
        hint = f'Add keyManager.policy, with "{PREHASHED}" among its kinds.'
        raise PolicyRefused(
            f'there is no policy that lists "{PREHASHED}": this key signs no digest as it is', hint=hint
        )
    admitted.enter_context(guard.counted([guard.judge_digest()]))
    if all(version.algorithm == "ed25519" for version in path.signing()):
        hint = "Sign the message itself, or use a P-256 or secp256k1 key."
        raise AlgorithmUnsupported("an Ed25519 key signs no digest: it hashes the message by itself", hint=hint)
    whole = digest if isinstance(digest, Digest) else Digest(digest)
    extra = (extra or b"") + b',"kind":"%s"' % PREHASHED.encode()
    return way.ask(Ask(whole, timeout, extra))


async def finish(way: Way, verifiers: VerifierPool, ring: KeyRing, digest: Digest, receipt: Receipt) -> DigestSignature:
    """Add the recovery id, off the event loop: it takes as long as a verification. Raises SignatureInvalid."""
    try:
        if ring.get(receipt.key_id).algorithm != "ecdsa-secp256k1":
            return DigestSignature(receipt.signature, None)
        found = await verifiers.recovery_id(receipt.public_key, digest, receipt.signature)
    except BaseException:
        way.keep(digest, receipt.public_key)
        raise
    return DigestSignature(receipt.signature, found)
