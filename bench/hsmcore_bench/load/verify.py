"""Whether each request was answered once, and with a signature that is right; after a run, from what was kept of it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from hsmcore._native import verify as is_good
from hsmcore_bench.harness.environment import cores
from hsmcore_bench.load.mix import Messages

RECORD: Final = struct.Struct("<QII64s")
"""What a process keeps of an answer, as native/load has it: number, status, nothing, signature."""
_CHUNK: Final = 512
"""Records in one go of a thread."""


@dataclass(slots=True)
class Verdict:
    """Counts. `kept` is the number of requests of which there is an answer."""

    kept: int = 0
    verified: int = 0
    wrong: int = 0
    twice: int = 0

    def add(self, other: Verdict) -> None:
        """Take another one in."""
        self.kept += other.kept
        self.verified += other.verified
        self.wrong += other.wrong
        self.twice += other.twice


Key = tuple[str, bytes]
"""Algorithm and public key."""


def verify(spool: Path, messages: Messages, keys: Sequence[Key], advance: Callable[[int], None]) -> Verdict:
    """Judge what one process kept. A signature is right if it is by any of `keys`. `advance` hears of records done."""
    verdict = Verdict()
    seen = bytearray()
    with spool.open("rb") as file, ThreadPoolExecutor(cores(), thread_name_prefix="hsmcore-load-verify") as pool:
        jobs = []
        for chunk in _chunks(file):
            for number, *_ in chunk:
                place, bit = divmod(number, 8)
                if place >= len(seen):
                    seen.extend(bytes(place + 1 - len(seen) + (1 << 16)))
                verdict.twice += seen[place] >> bit & 1
                verdict.kept += not seen[place] >> bit & 1
                seen[place] |= 1 << bit
            jobs.append(pool.submit(_judge, chunk, messages, keys))
            if len(jobs) >= 4 * cores():
                _take(jobs.pop(0).result(), verdict, advance)
        for job in jobs:
            _take(job.result(), verdict, advance)
    return verdict


def records(spool: Path) -> int:
    """How many answers a process kept."""
    return spool.stat().st_size // RECORD.size


_Record = tuple[int, int, int, bytes]


def _chunks(file: IO[bytes]) -> Iterator[list[_Record]]:
    while text := file.read(RECORD.size * _CHUNK):
        yield list(RECORD.iter_unpack(text[: len(text) // RECORD.size * RECORD.size]))


def _judge(chunk: Sequence[_Record], messages: Messages, keys: Sequence[Key]) -> tuple[int, int, int]:
    good = wrong = 0
    for number, status, _, signature in chunk:
        if status == 0:
            message = messages.message(number)
            right = any(is_good(algorithm, key, message, signature) for algorithm, key in keys)
            good += right
            wrong += not right
    return len(chunk), good, wrong


def _take(found: tuple[int, int, int], verdict: Verdict, advance: Callable[[int], None]) -> None:
    done, good, wrong = found
    verdict.verified += good
    verdict.wrong += wrong
    advance(done)
