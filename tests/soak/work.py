"""What a soak does with a key manager: every kind of call, at random, and a judgement of what comes back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.support.softhsm import Key
from tests.support.verifiers import is_good

import hsmcore

T = TypeVar("T")

ANSWER_SECONDS = 30.0
"""An answer that takes longer never comes: requests time out after ten."""
HOT_MESSAGES = 64
SAMPLE = 16
"""One signature in so many is verified."""


@dataclass
class Tally:
    """What was done, what failed in an expected way, and what must not have happened."""

    done: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, what: str) -> None:
        """Note what must not happen."""
        if len(self.faults) < 100:
            self.faults.append(what)


@dataclass(frozen=True)
class Target:
    """A token to sign on. `honest` says whether the module really signs; one that doesn't signs short messages that
    begin with "hsmcore". `keys` may become current; none: the configured one stays, and none is made."""

    settings: Mapping[str, Any]
    keys: tuple[Key, ...]
    honest: bool
    faulty: bool


class Work:
    """One manager's load until `until` (of the event loop's clock). `faulty` targets may answer with any retryable
    error; others only with an exceeded deadline, and only if it was short."""

    def __init__(self, manager: hsmcore.KeyManager, target: Target, tally: Tally, until: float) -> None:
        self.manager, self.target, self.tally, self.until = manager, target, tally, until
        # Of keys that go by their place in the token's list the algorithms are known; of a lone one it is asked.
        ring = manager.keys()
        current = next(version for version in ring if version.public_key == manager.public_key)
        lone = Key(current.label, current.id, current.algorithm, current.public_key)
        self.keys = {key.id: key for key in target.keys or (lone,)}

    async def run(self, callers: int, seed: int) -> None:
        """All callers, and beside them the tasks that change and make keys."""
        others = [self._keys(random.Random(seed))] if self.target.keys else []
        await asyncio.gather(*(self._caller(random.Random(f"{seed} {n}")) for n in range(callers)), *others)

    async def _caller(self, rng: random.Random) -> None:
        calls: list[Callable[[random.Random], Awaitable[None]]] = [
            self._sign,
            self._receipt,
            self._many,
            self._cancelled,
            self._short,
        ]
        while asyncio.get_running_loop().time() < self.until:
            [call] = rng.choices(calls, weights=(10, 3, 2, 2, 2))
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await call(rng)
            except TimeoutError as error:
                if not isinstance(error, hsmcore.HsmError):
                    self.tally.fault(f"{call.__name__} was never answered")
                self._error(error)
            except hsmcore.HsmError as error:
                self._error(error)
                await asyncio.sleep(0.005)

    def _error(self, error: Exception, *, short: bool = False) -> None:
        if isinstance(error, hsmcore.HsmError):
            self.tally.errors[error.status] += 1
            late = ("DEADLINE_EXCEEDED", "QUEUE_FULL")
            expected = error.retryable if self.target.faulty else short and error.status in late
            if not expected:
                self.tally.fault(f"{type(error).__name__}: {error}")

    # ---- calls ----

    async def _sign(self, rng: random.Random) -> None:
        message = self._message(rng)
        self._judge(rng, message, await self.manager.sign(message), self.keys.values())
        self.tally.done["sign"] += 1

    async def _receipt(self, rng: random.Random) -> None:
        message = self._message(rng)
        receipt = await self.manager.sign_with_receipt(message)
        if receipt.key_id not in self.keys:
            self.tally.fault(f"signed by {receipt.key_id}, which was never current")
        else:
            self._judge(rng, message, receipt.signature, [self.keys[receipt.key_id]])
        self.tally.done["receipt"] += 1

    async def _many(self, rng: random.Random) -> None:
        messages = [self._message(rng) for _ in range(rng.choice((1, 8, 64)))]
        results = await self.manager.sign_many(messages, return_exceptions=True)
        if len(results) != len(messages):
            self.tally.fault(f"{len(results)} answers to {len(messages)} messages")
        for message, result in zip(messages, results, strict=False):
            if isinstance(result, hsmcore.HsmError):
                self._error(result)
            else:
                self._judge(rng, message, result, self.keys.values())
                self.tally.done["batched"] += 1

    async def _cancelled(self, rng: random.Random) -> None:
        message = self._message(rng)
        call = self.manager.sign(message) if rng.random() < 0.7 else self.manager.sign_many([message] * 8)
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(call)
        await asyncio.sleep(rng.choice((0, 0, rng.random() * 0.002)))
        task.cancel()
        await asyncio.wait([task])
        self.tally.done["cancelled" if task.cancelled() else "not cancelled in time"] += 1
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _short(self, rng: random.Random) -> None:
        message = self._message(rng)
        try:
            signature = await self.manager.sign(message, timeout=rng.choice((0.00005, 0.0005, 0.005)))
        except hsmcore.HsmError as error:
            self._error(error, short=True)
        else:
            self._judge(rng, message, signature, self.keys.values())
        self.tally.done["short"] += 1

    # ---- keys ----

    async def _keys(self, rng: random.Random) -> None:
        changed = 0
        while asyncio.get_running_loop().time() < self.until:
            await asyncio.sleep(0.02 + rng.random() * 0.1)
            try:
                await self.manager.set_current_key_id(rng.choice(self.target.keys).id)
                self.tally.done["key changed"] += 1
                changed += 1
                if changed % 8 == 4:
                    await self._life_of_a_key()
            except hsmcore.HsmError as error:
                self._error(error)

    async def _life_of_a_key(self) -> None:
        made = await self.manager.generate_key()
        await self.manager.deactivate_key(made)
        member = self.manager._path.member
        assert member is not None
        await member.control.destroy(made)
        self.tally.done["key made and destroyed"] += 1

    # ---- messages and signatures ----

    def _message(self, rng: random.Random) -> bytes:
        provable = self.target.honest or self.target.faulty or rng.randrange(SAMPLE) == 0
        prefix = b"" if self.target.honest else b"hsmcore " if provable else b"unsigned "
        if rng.random() < 0.3:
            return prefix + b"hot %d" % rng.randrange(HOT_MESSAGES)
        return prefix + rng.randbytes(rng.randrange(1, 1200 if self.target.honest or not provable else 56))

    def _judge(self, rng: random.Random, message: bytes, signature: bytes, keys: Any) -> None:
        known = list(keys)
        if len(signature) != 64:
            self.tally.fault(f"a signature of {len(signature)} bytes")
        elif not self.target.honest:
            if message.startswith(b"hsmcore") and not self._good(message, signature, known):
                self.tally.fault(f"a wrong signature of {message!r}")
        elif rng.randrange(SAMPLE) == 0 and not self._good(message, signature, known):
            self.tally.fault(f"a wrong signature of {message!r}")

    def _good(self, message: bytes, signature: bytes, keys: list[Key]) -> bool:
        self.tally.done["verified"] += 1
        return any(is_good(key.algorithm, key.public_key, message, signature) for key in keys)
