"""The signatures of one request to Vault's face, each with the number of the version that made it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hsmcore.base.keyring import KeyVersion
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError, KeyNotCurrent
from hsmcore.gateway.admission import Admission, current
from hsmcore.gateway.clients import KnownClient
from hsmcore.gateway.vault import text as transit
from hsmcore.gateway.vault.versions import Versions


class Signing:
    """The signatures of one request. `key`: the version that is to sign."""

    def __init__(
        self,
        desk: Admission,
        client: KnownClient,
        name: str,
        versions: Versions,
        options: transit.TransitOptions,
        key: KeyVersion,
    ) -> None:
        self._desk, self._client, self._name = desk, client, name
        self._versions, self._options, self._key = versions, options, key

    async def one(self, message: bytes, *, only: bool) -> tuple[str, int]:
        """Return a signature as text, and its version. `only`: of no other key."""
        signed: Receipt
        if self._options.prehashed:
            only_key = self._key.public_key if only else None
            signed = await self._desk.sign_digest(self._client, self._name, message, only_key)
        else:
            key_id = self._key.id if only else None
            signed = await self._desk.sign(self._client, self._name, message, key_id=key_id)
        return await self._written(signed.signature, signed.public_key)

    async def _written(self, signature: bytes, public_key: bytes) -> tuple[str, int]:
        number = await self._versions.of(public_key)
        return transit.written(signature, number, self._key.algorithm, jws=self._options.jws), number

    async def many(self, messages: Sequence[bytes | HsmError]) -> list[tuple[str, int] | BaseException]:
        """Return the same for each message, or its error. What is an error already is not signed."""
        good = [message for message in messages if isinstance(message, bytes)]
        if self._options.prehashed:
            only = bool(self._options.version)
            found: list[Any] = await asyncio.gather(*(self.one(m, only=only) for m in good), return_exceptions=True)
        else:
            found = await self._batch(good, again=not self._options.version) if good else []
        answers = iter(found)
        return [next(answers) if isinstance(message, bytes) else message for message in messages]

    async def _batch(self, messages: Sequence[bytes], *, again: bool) -> list[Any]:
        """All under one key, so that their version is known. `again`: those that another key has to sign, because it
        became the current one at this moment, are sent for once more."""
        key, manager = self._key, self._desk.manager(self._client, self._name)
        try:
            found: list[Any] = await self._desk.sign_many(self._client, self._name, messages, key_id=key.id)
        except KeyNotCurrent as error:
            found = [error] * len(messages)
        number = await self._versions.of(key.public_key)
        late = [at for at, one in enumerate(found) if isinstance(one, KeyNotCurrent) and not one.maybe_signed]
        found = [
            (transit.written(one, number, key.algorithm, jws=self._options.jws), number)
            if isinstance(one, bytes)
            else one
            for one in found
        ]
        if again and late:
            self._key = current(manager)
            for at, one in zip(late, await self._batch([messages[at] for at in late], again=False), strict=True):
                found[at] = one
        return found
