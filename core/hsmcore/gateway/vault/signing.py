"""The signatures of one request to Vault's face, each with the number of the version that made it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError, KeyNotCurrent
from hsmcore.gateway.admission import ClientKey
from hsmcore.gateway.operations import SIGN, SIGN_MANY, ask, current
from hsmcore.gateway.vault import text as transit
from hsmcore.gateway.wire import messages as wire


class Signing:
    """The signatures of one request. `key`: the version that is to sign."""

    def __init__(self, counter: ClientKey, options: transit.TransitOptions, key: KeyVersion) -> None:
        self._counter, self._options, self._key = counter, options, key

    async def one(self, message: bytes) -> tuple[str, int]:
        """Return a signature as text, and its version: of no other key, if the request names one."""
        kind = "prehashed" if self._options.prehashed else ""
        signed: Receipt = await ask(self._counter, SIGN, wire.Sign(kind, 0, None, self._options.version, message))
        number = await self._counter.versions.of(signed.public_key)
        return self._written(signed.signature, number), number

    def _written(self, signature: bytes, number: int) -> str:
        return transit.written(signature, number, self._key.algorithm, jws=self._options.jws)

    async def many(self, messages: Sequence[bytes | HsmError]) -> list[tuple[str, int] | BaseException]:
        """Return the same for each message, or its error. What is an error already is not signed."""
        good = [message for message in messages if isinstance(message, bytes)]
        if self._options.prehashed:
            found: list[Any] = await asyncio.gather(*map(self.one, good), return_exceptions=True)
        else:
            found = await self._batch(good, again=not self._options.version) if good else []
        answers = iter(found)
        return [next(answers) if isinstance(message, bytes) else message for message in messages]

    async def _batch(self, messages: list[bytes], *, again: bool) -> list[Any]:
        """All under one key, so that their version is known. `again`: those that another key has to sign, because it
        became the current one at this moment, are sent for once more."""
        number = await self._counter.versions.of(self._key.public_key)
        found: list[Any]
        try:
            _, found = await ask(self._counter, SIGN_MANY, wire.SignMany("", 0, number, messages))
        except KeyNotCurrent as error:
            found = [error] * len(messages)
        late = [at for at, one in enumerate(found) if isinstance(one, KeyNotCurrent) and not one.maybe_signed]
        found = [(self._written(one, number), number) if isinstance(one, bytes) else one for one in found]
        if again and late:
            self._key = current(self._counter.manager)
            for at, one in zip(late, await self._batch([messages[at] for at in late], again=False), strict=True):
                found[at] = one
        return found
