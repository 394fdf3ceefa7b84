"""What a key manager signs by batches, of which the HSM signs the root; batching has their making."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

from hsmcore._native import BatchedSignature
from hsmcore.audit.leaves import proof_again
from hsmcore.base.payload import MOST_POSITION
from hsmcore.config import KeyManagerConfig
from hsmcore.errors import BadArgument
from hsmcore.errors.batch import batch_of
from hsmcore.failover.path import SigningPath
from hsmcore.manager.batching import AnyBatches
from hsmcore.manager.keys import KeyOperations
from hsmcore.manager.lifecycle import Lifecycle

Message = bytes | bytearray | memoryview


class BatchedSigning:
    """Part of KeyManager."""

    _life: Lifecycle
    _rules: KeyManagerConfig
    _path: SigningPath
    _keys: KeyOperations
    _batches: AnyBatches

    def sign_batched(
        self, message: Message, timeout: float | None = None, kind: str | None = None
    ) -> Coroutine[Any, Any, BatchedSignature]:
        """Sign a message with others, as `sign`: the HSM signs the root of a whole batch, and `.proof` shows that the
        message is in it (hsmcore.verify_batched). Any bytes may, unless `batching.kinds` says otherwise. `kind`: what
        the caller takes the message for. Raises BadArgument for a kind with a position."""
        return self._batches.sign(message, timeout, kind)

    def sign_batched_many(
        self, messages: Iterable[Message], timeout: float | None = None, kind: str | None = None
    ) -> Coroutine[Any, Any, list[BatchedSignature]]:
        """Sign messages as `sign_batched` does each, for a small part of what that costs. They are in one batch, or in
        as many as they fill. An invalid message is refused before anything is signed; the first error is raised."""
        return self._batches.sign_many(batch_of(messages), timeout, kind)

    async def batched_proof(self, index: int) -> bytes:
        """The `.proof` of the message with this number again, byte for byte, if `batching.keepLeaves` has its batch.
        Raises BadArgument, AuditUnavailable."""
        self._life.check()
        keys = {key.public_key for key in (*self._keys.ring, *self._path.signing()) if key.algorithm == "ed25519"}
        return await asyncio.to_thread(kept_proof, self._rules, index, keys)

    def hurry_batches(self) -> None:
        """Have the batch that is open signed now, before its age: no more messages are expected."""
        self._batches.hurry()

    def submit_batched(
        self, message: bytes, timeout: float | None, kind: str | None
    ) -> asyncio.Future[BatchedSignature] | None:
        """Begin `sign_batched`, without a coroutine. None: something must be awaited first, so call that."""
        return self._batches.begin(message, timeout, kind)


def kept_proof(rules: KeyManagerConfig, index: int, public_keys: set[bytes]) -> bytes:
    """Return a proof as `batched_proof` does. Blocks."""
    if rules.policy is None or rules.batching is None or rules.batching.keep_leaves is None:
        hint = "Set batching.keepLeaves to a folder: from then on, each batch is kept."
        raise BadArgument("the configuration keeps no leaves, of which a proof could be made again", hint=hint)
    if type(index) is not int or not 0 <= index <= MOST_POSITION:
        raise BadArgument(f"index must be the number of a message: 0 to {MOST_POSITION}")
    return proof_again(Path(rules.batching.keep_leaves), rules.policy.domain, index, public_keys)
