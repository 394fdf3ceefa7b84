"""What a key manager signs by batches, of which the HSM signs the root; batching has their making."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

from hsmcore._native import BatchedSignature
from hsmcore.manager.batching import AnyBatches

Message = bytes | bytearray | memoryview


class BatchedSigning:
    """Part of KeyManager."""

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
        return self._batches.sign_many(list(messages), timeout, kind)

    def hurry_batches(self) -> None:
        """Have the batch that is open signed now, before its age: no more messages are expected."""
        self._batches.hurry()

    def submit_batched(
        self, message: bytes, timeout: float | None, kind: str | None
    ) -> asyncio.Future[BatchedSignature] | None:
        """Begin `sign_batched`, without a coroutine. None: something must be awaited first, so call that."""
        return self._batches.begin(message, timeout, kind)
