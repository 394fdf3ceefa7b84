"""The yardstick: the plain C signing loop of the benchmark, in a process of its own, in turn with our phases."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import orjson

from hsmcore.errors import SystemFailure
from hsmcore_bench.harness.locate import RAW_SIGN, native

_PIN_VARIABLE = "HSMCORE_RAWSIGN_PIN"
_START_SECONDS = 30.0
_SPARE_SECONDS = 30.0
_STOP_SECONDS = 5.0


class RawLoopError(SystemFailure):
    """The child could not be started or did not answer."""

    default_hint = "Run the demonstration again; if it lasts, build the package again."


class RawLoop:
    """One hsmcore-rawsign child that signs with the same key, as many threads, and messages of the same length."""

    def __init__(self, arguments: list[str], pin: bytearray) -> None:
        self._arguments = arguments
        self._pin = pin
        self._child: asyncio.subprocess.Process | None = None

    async def start(self) -> bool:
        """Start the child and wait until it is ready. Call stop() afterwards in any case."""
        program = native(RAW_SIGN)
        if program is None:
            raise RawLoopError(f"{RAW_SIGN} was not built with this package")
        self._child = await asyncio.create_subprocess_exec(
            program,
            *self._arguments,
            "--pin-env",
            _PIN_VARIABLE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, _PIN_VARIABLE: self._pin.decode()},
        )
        self._pin[:] = bytes(len(self._pin))
        answer = await self._answer(_START_SECONDS)
        return bool(answer.get("ready"))

    async def rate(self, seconds: float) -> float:
        """Run it for so long and return signatures a second."""
        assert self._child is not None and self._child.stdin is not None
        self._child.stdin.write(f"run {seconds:.3f}\n".encode())
        result = await self._answer(seconds + _SPARE_SECONDS)
        return float(result["signatures"]) / float(result["seconds"])

    async def _answer(self, timeout: float) -> dict[str, Any]:
        assert self._child is not None and self._child.stdout is not None and self._child.stderr is not None
        try:
            line = await asyncio.wait_for(self._child.stdout.readline(), timeout)
        except TimeoutError:
            raise RawLoopError(f"hsmcore-rawsign did not answer within {timeout:.0f} s") from None
        if not line:
            said = (await self._child.stderr.read()).decode(errors="replace").strip()
            raise RawLoopError(said or "hsmcore-rawsign ended without a word")
        answer: dict[str, Any] = orjson.loads(line)
        return answer

    async def stop(self) -> None:
        """End the child. Doing it twice is no error."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        child.stdin.close()  # it ends when its input does
        try:
            await asyncio.wait_for(child.wait(), _STOP_SECONDS)
        except TimeoutError:
            child.kill()
            await child.wait()
