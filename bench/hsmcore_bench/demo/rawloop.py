"""The yardstick: the plain C signing loop of the benchmark, in a process of its own, in turn with our phases."""

from __future__ import annotations

import asyncio
import os

from hsmcore.errors import SystemFailure
from hsmcore_bench.harness.locate import RAW_SIGN, native
from hsmcore_bench.harness.process import Child

_PIN_VARIABLE = "HSMCORE_RAWSIGN_PIN"
_START_SECONDS = 30.0


class RawLoopError(SystemFailure):
    """The child could not be started or did not answer."""

    default_hint = "Run the demonstration again; if it lasts, build the package again."


class _Child(Child):
    def ended(self) -> RawLoopError:
        return RawLoopError(self.last_words() or f"{RAW_SIGN} ended without a word")

    def silent(self, seconds: float) -> RawLoopError:
        return RawLoopError(f"{RAW_SIGN} did not answer within {seconds:.0f} s")


class RawLoop:
    """One hsmcore-rawsign child that signs with the same key, as many threads, and messages of the same length. Threads
    wait for it, so that the event loop need not."""

    def __init__(self, arguments: list[str], pin: bytearray) -> None:
        self._arguments = arguments
        self._pin = pin
        self._child: _Child | None = None

    async def start(self) -> bool:
        """Start the child and wait until it is ready. Call stop() afterwards in any case."""
        program = native(RAW_SIGN)
        if program is None:
            raise RawLoopError(f"{RAW_SIGN} was not built with this package")
        command = [str(program), *self._arguments, "--pin-env", _PIN_VARIABLE]
        self._child = _Child(command, {**os.environ, _PIN_VARIABLE: self._pin.decode()})
        self._pin[:] = bytes(len(self._pin))
        answer = await asyncio.to_thread(self._child.answer, _START_SECONDS)
        return bool(answer.get("ready"))

    async def rate(self, seconds: float) -> float:
        """Run it for so long and return signatures a second."""
        assert self._child is not None
        result = await asyncio.to_thread(self._child.run, seconds)
        return float(result["signatures"]) / float(result["seconds"])

    async def stop(self) -> None:
        """End the child. Idempotent."""
        if self._child is not None:
            await asyncio.to_thread(self._child.close)
