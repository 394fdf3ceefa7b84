"""Audit records of refused requests, limited in rate: an attacker's guesses must not fill the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from hsmcore.serve.questions import Questions
from hsmcore.serve.source import Unanswered

BURST: Final = 20
REFILL_SECONDS: Final = 1.0


class Refusals:
    """Records up to BURST at once, then one in REFILL_SECONDS, which says how many it stands for (`count`)."""

    def __init__(self, questions: Questions, clock: Callable[[], float] = time.monotonic) -> None:
        self._questions, self._clock = questions, clock
        self._left, self._then = float(BURST), clock()
        self._unsaid = 0

    async def note(self, peer: str, problem: str, path: str) -> None:
        """Note one refusal. Never raises: a refusal that cannot be recorded is still a refusal."""
        now = self._clock()
        self._left = min(float(BURST), self._left + (now - self._then) / REFILL_SECONDS)
        self._then = now
        self._unsaid += 1
        if self._left < 1:
            return
        self._left -= 1
        count, self._unsaid = self._unsaid, 0
        with suppress(Unanswered):  # the answering side has logged it
            await self._questions.order("refused", peer, problem, path, count)
