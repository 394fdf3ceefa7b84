"""The signatures of one request to Vault's face, each with the number of the version that made it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from typing import Any

from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError, KeyNotCurrent
from hsmcore.gateway.admission import ClientKey
from hsmcore.gateway.operations import SIGN, SIGN_MANY, ask, current
from hsmcore.gateway.vault import text as transit
from hsmcore.gateway.wire import messages as wire


class Signing:
    """The signatures of one request. `key`: the version that is to sign. `context`: as of GatewayRequest."""

    def __init__(self, counter: ClientKey, options: transit.TransitOptions, key: KeyVersion, context: Context) -> None:
        self._counter, self._options, self._key, self._context = counter, options, key, context

    async def one(self, wanted: transit.Wanted) -> dict[str, Any]:
        """Return a signature as text, and its version: of no other key, if the request names one."""
        kind = "prehashed" if self._options.prehashed else wanted.kind
        asked = wire.Sign(kind, 0, wanted.position, self._options.version, wanted.message)
        signed: Receipt = await ask(self._counter, SIGN, asked, self._context)
        return self._written(signed.signature, await self._counter.versions.of(signed.public_key))

    def _written(self, signature: bytes, number: int) -> dict[str, Any]:
        text = transit.written(signature, number, self._key.algorithm, jws=self._options.jws)
        return {"signature": text, "key_version": number}

    async def many(self, items: Sequence[transit.Wanted | HsmError]) -> list[dict[str, Any] | BaseException]:
        """Return the same for each item, or its error. What is an error already is not signed."""
        answers: list[Any] = list(items)
        alone, together = list[int](), list[int]()
        for at, item in enumerate(items):
            if isinstance(item, HsmError):
                continue
            plain = not (self._options.prehashed or item.kind or item.position is not None)
            (together if plain else alone).append(at)
        messages = [answers[at].message for at in together]
        found = await self._batch(messages, again=not self._options.version) if together else []
        found += await asyncio.gather(*(self.one(answers[at]) for at in alone), return_exceptions=True)
        for at, answer in zip([*together, *alone], found, strict=True):
            answers[at] = answer
        return answers

    async def _batch(self, messages: list[bytes], *, again: bool) -> list[Any]:
        """All under one key, so that their version is known. `again`: those that another key has to sign, because it
        became the current one at this moment, are sent for once more."""
        number = await self._counter.versions.of(self._key.public_key)
        found: list[Any]
        try:
            asked = wire.SignMany("", 0, number, messages)
            _, found = await ask(self._counter, SIGN_MANY, asked, self._context)
        except KeyNotCurrent as error:
            found = [error] * len(messages)
        late = [at for at, one in enumerate(found) if isinstance(one, KeyNotCurrent) and not one.maybe_signed]
        found = [self._written(one, number) if isinstance(one, bytes) else one for one in found]
        if again and late:
            self._key = current(self._counter.manager)
            for at, one in zip(late, await self._batch([messages[at] for at in late], again=False), strict=True):
                found[at] = one
        return found
