"""Signing in software with a key in memory: what the same processors make without an HSM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hsmcore_bench.suite.child.protocol import Job, check_message
from hsmcore_bench.suite.child.threads import threaded_slice

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


def _sodium() -> Callable[[bytes], Any]:
    from nacl.signing import SigningKey

    made: Callable[[bytes], Any] = SigningKey(SEED).sign
    return made


def _openssl(algorithm: str) -> Callable[[bytes], Any]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.hashes import SHA256

    if algorithm == "ed25519":
        return ed25519.Ed25519PrivateKey.from_private_bytes(SEED).sign
    key = ec.generate_private_key(ec.SECP256R1() if algorithm == "ecdsa-p256" else ec.SECP256K1())
    return lambda message: key.sign(message, ec.ECDSA(SHA256()))
