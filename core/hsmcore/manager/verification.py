"""Verification in software, off the event loop: never a call to the HSM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from hsmcore._native import Digest, recovery_id
from hsmcore.base.keyring import KeyVersion, any_good
from hsmcore.base.receipt import signature_bytes

T = TypeVar("T")


class VerifierPool:
    """One thread for each processor, started by the first verification. The native core releases the GIL."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    async def verify(self, versions: Sequence[KeyVersion], message: object, signature: object) -> bool:
        """Whether the signature is valid under any of the keys."""
        return await self._run(any_good, versions, message, signature_bytes(signature))

    async def verify_one(self, version: KeyVersion, message: bytes, signature: bytes) -> bool:
        """Whether the signature is valid under this key."""
        return await self.verify([version], message, signature)

    async def recovery_id(self, public_key: bytes, digest: Digest, signature: bytes) -> int:
        """The recovery id of a secp256k1 signature. Raises SignatureInvalid."""
        return await self._run(recovery_id, public_key, digest, signature)

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="hsmcore-verify")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def close(self) -> None:
        """Stop the threads; the next verification starts new ones."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None
