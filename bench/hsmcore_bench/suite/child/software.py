"""Signing in software with a key in memory: what the same processors make without an HSM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from time import time_ns
from typing import Any

from nacl.signing import SigningKey

import hsmcore
from hsmcore._native import Gate, Leaves, verify
from hsmcore.tlog import batch_proof, note
from hsmcore_bench.suite.child.protocol import Job, check_message
from hsmcore_bench.suite.child.threads import threaded_slice

BATCH = 10_000
SEED = bytes(32)  # the key of no token: what it signs is thrown away


class SoftwareSigner:
    """One thread for each that is in flight; both libraries leave the GIL while they sign."""

    def __init__(self, job: Job) -> None:
        message = check_message(job.message_bytes)
        sign = _sodium() if job.kind == "pynacl" else _openssl(job.algorithm)
        self._sign: Callable[[], object] = lambda: sign(message)
        self._threads = job.in_flight

    def describe(self) -> Mapping[str, Any]:
        self._sign()
        return {}

    def run(self, seconds: float) -> Mapping[str, Any]:
        return threaded_slice([self._sign] * self._threads, seconds)

    def close(self) -> None:
        pass


class Verifier:
    """Verifies one signature, in one thread: what nothing that verifies can be cheaper than."""

    def __init__(self, job: Job) -> None:
        key, message = SigningKey(SEED), check_message(job.message_bytes)
        signature = key.sign(message).signature
        self._verify = partial(verify, "ed25519", bytes(key.verify_key), message, signature)

    def describe(self) -> Mapping[str, Any]:
        if not self._verify():
            raise AssertionError("a signature does not verify")
        return {}

    def run(self, seconds: float) -> Mapping[str, Any]:
        return threaded_slice([self._verify], seconds)

    def close(self) -> None:
        pass


class BatchVerifier:
    """Verifies the proof of one message of a batch of 10,000, in one thread."""

    def __init__(self, job: Job) -> None:
        self._message = b"m" * job.message_bytes
        self._public_key, self._proof = asyncio.run(_proof(self._message))

    def describe(self) -> Mapping[str, Any]:
        if not hsmcore.verify_batched(self._public_key, self._message, self._proof):
            raise AssertionError("a proof does not verify")
        return {}

    def run(self, seconds: float) -> Mapping[str, Any]:
        once = partial(hsmcore.verify_batched, self._public_key, self._message, self._proof)
        return threaded_slice([once], seconds)

    def close(self) -> None:
        pass


async def _proof(message: bytes) -> tuple[bytes, bytes]:
    key, gate = SigningKey(SEED), Gate(kinds=("raw",), domain="bench")
    leaves = Leaves(asyncio.get_running_loop())
    futures = [leaves.add(gate, message, None, 10**12, len(message)) for _ in range(BATCH)]
    public_key = bytes(key.verify_key)
    text = batch_proof.checkpoint("bench", 0, BATCH, leaves.build(0, False), 0, time_ns())
    made = note.signed(text, batch_proof.signer(text, public_key), key.sign(text).signature)
    leaves.signed(made, "", public_key, None)
    leaves.answer(BATCH)
    return public_key, (await futures[BATCH // 3]).proof  # type: ignore[misc]  # the gate passes it


def _sodium() -> Callable[[bytes], Any]:
    made: Callable[[bytes], Any] = SigningKey(SEED).sign
    return made


def _openssl(algorithm: str) -> Callable[[bytes], Any]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.hashes import SHA256

    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.from_private_bytes(SEED).sign
    key = ec.generate_private_key(ec.SECP256R1() if algorithm == "ecdsa-p256" else ec.SECP256K1())
    return lambda message: key.sign(message, ec.ECDSA(SHA256()))
