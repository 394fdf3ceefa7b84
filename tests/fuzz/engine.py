"""What every fuzzer in Python is run by: `python -m tests.fuzz.fuzz_config --seconds 30 --seed 1`.

A fuzzer is a module with `seeds()`, the inputs to begin with, and `one(data)`, which raises if an input does what it
must not. Where atheris is installed, as in OSS-Fuzz, and the arguments are libFuzzer's, it chooses the inputs by
coverage. Elsewhere they are changed at random, and kept when `one` returns a word that it did not return before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from random import Random
from typing import Any

Seeds = Callable[[], list[bytes]]
One = Callable[[bytes], str | None]

_MOST_BYTES = 4096
_NUMBERS = (0, 1, 2, 11, 12, 13, 64, 65, 127, 128, 255, 256, 65_535, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 2**32 - 1)
_WORDS = (
    b"null",
    b"true",
    b"-1",
    b"1e400",
    b"[]",
    b"{}",
    b'""',
    b"\\u0000",
    b"\n\n",
    b"{pid}",
    b"\xff",
    b"99999999999999999999",
)


def changed(chance: Random, inputs: Sequence[bytes], most: int = _MOST_BYTES) -> bytes:
    """One of the inputs, changed a few times."""
    data = bytearray(chance.choice(inputs))
    for _ in range(1 << chance.randrange(4)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(8):
            case 0 if data:
                data[place % len(data)] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[place % len(data)] = chance.randrange(256)
            case 2:
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice(_NUMBERS) + chance.randrange(-1, 2)
                data[place : place + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
            case 3:
                del data[place : place + chance.randrange(1, 9)]
            case 4:
                data[place:place] = chance.randbytes(chance.randrange(1, 9))
            case 5:
                other = chance.choice(inputs)
                begin = chance.randrange(len(other) + 1)
                data[place:place] = other[begin : begin + chance.randrange(1, 64)]
            case 6:
                word = chance.choice(_WORDS)
                data[place : place + chance.choice((0, len(word)))] = word
            case 7 if len(data) >= 4:  # so that what lies behind a length is looked at
                data[:4] = (len(data) - 4).to_bytes(4, "little")
    return bytes(data[:most])


def fuzz(seeds: Seeds, one: One, *, count: int, seconds: float, seed: int, most: int) -> tuple[int, set[str]]:
    """Try so many inputs. Returns how many were tried, and the words of `one`. Raises what `one` raises, with the input
    as a note."""
    chance, inputs, seen = Random(seed), list(seeds()), set[str]()
    begun, done = time.monotonic(), 0
    for data in inputs:
        seen.add(_tried(one, data))
    while done < count and time.monotonic() - begun < seconds:
        data = changed(chance, inputs, most)
        word = _tried(one, data)
        done += 1
        if word not in seen:
            seen.add(word)
            inputs.append(data)
    return done, seen


def _tried(one: One, data: bytes) -> str:
    try:
        return one(data) or ""
    except BaseException as error:
        error.add_note(f"input: {data.hex()}")
        raise


def main(seeds: Seeds, one: One, *, most: int = _MOST_BYTES) -> None:
    """Run a fuzzer's program. `most`: bytes of an input."""
    if find_spec("atheris") is not None and not any(word.startswith("--") for word in sys.argv[1:]):
        import atheris  # type: ignore[import-not-found]

        atheris.instrument_all()
        atheris.Setup(sys.argv, one_of(one))
        atheris.Fuzz()
        return
    parser = argparse.ArgumentParser(description="Try inputs that are changed at random.")
    parser.add_argument("--count", type=int, default=sys.maxsize)
    parser.add_argument("--seconds", type=float, default=60.0, help="end after so long, once all seeds were tried")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    done, seen = fuzz(seeds, one, count=asked.count, seconds=asked.seconds, seed=asked.seed, most=most)
    sys.stdout.write(f"{done} inputs, {len(seen)} kinds of outcomes\n")


def one_of(one: One) -> Callable[[bytes], Any]:
    """`one` as atheris calls it: what it returns says nothing there."""

    def test_one_input(data: bytes) -> None:
        one(data)

    return test_one_input
