"""The signatures of one request to Vault's face, each with the number of the version that made it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hsmcore.errors import HsmError, KeyNotCurrent
from hsmcore.gateway.client.request import error_of_refusal
from hsmcore.gateway.front.link import RemoteKey, Trail
from hsmcore.gateway.vault import text as transit
from hsmcore.gateway.wire import messages as wire


class Signing:
    """The signatures of one request."""

    def __init__(self, key: RemoteKey, options: transit.TransitOptions, trail: Trail) -> None:
        self._key, self._options, self._trail = key, options, trail

    async def one(self, wanted: transit.Wanted) -> dict[str, Any]:
        """Return a signature as text, and its version: of no other key, if the request names one."""
        kind = "prehashed" if self._options.prehashed else wanted.kind
        asked = wire.Sign(kind, 0, wanted.position, self._options.version, wanted.message)
        answer = await self._key.ask(lambda number: self._trail.along(wire.sign(number, asked, slot=self._key.slot)))
        version, _, _, signature = wire.read_signed(answer.body)
        return self._written(signature, await self._key.number(version))

    def _written(self, signature: bytes, version: int) -> dict[str, Any]:
        text = transit.written(signature, version, self._key.algorithm(version), jws=self._options.jws)
        return {"signature": text, "key_version": version}

    async def many(self, items: Sequence[transit.Wanted | HsmError]) -> list[dict[str, Any] | BaseException]:
        """Return the same for each item, or its error. What is an error already is not signed."""
        answers: list[Any] = list(items)
        alone, together = list[int](), list[int]()
        for at, item in enumerate(items):
            if isinstance(item, HsmError):
                continue
            plain = not (self._options.prehashed or item.kind or item.position is not None)
            (together if plain else alone).append(at)
        most = self._key.batch
        pieces = [together[at : at + most] for at in range(0, len(together), most)]
        batches = (self._batch([answers[at].message for at in piece]) for piece in pieces)
        ones = (self.one(answers[at]) for at in alone)
        found = await asyncio.gather(*batches, *ones, return_exceptions=True)
        failed = [one for one in found[: len(pieces)] if isinstance(one, BaseException)]
        if failed and len(failed) == len(pieces) and not any(isinstance(one, KeyNotCurrent) for one in failed):
            raise failed[0]
        for at, answer in zip(alone, found[len(pieces) :], strict=True):
            answers[at] = answer
        for piece, made in zip(pieces, found, strict=False):
            for number, at in enumerate(piece):
                answers[at] = made if isinstance(made, BaseException) else made[number]
        return answers

    async def _batch(self, messages: list[bytes], *, again: bool = True) -> list[Any]:
        """All under one key. `again`: those that another key has to sign, because it became the current one at this
        moment, are sent for once more."""
        asked = wire.SignMany("", 0, self._options.version, messages)
        answer = await self._key.ask(
            lambda number: self._trail.along(wire.sign_many(number, asked, slot=self._key.slot)), len(messages)
        )
        version, outcomes = wire.read_signed_many(answer.body)
        version = await self._key.number(version)
        found: list[Any] = [
            self._written(one, version) if isinstance(one, bytes) else error_of_refusal(one) for one in outcomes
        ]
        late = [at for at, one in enumerate(found) if isinstance(one, KeyNotCurrent) and not one.maybe_signed]
        if again and late and not self._options.version:
            for at, one in zip(late, await self._batch([messages[at] for at in late], again=False), strict=True):
                found[at] = one
        return found
