"""Bytes of hsmcore-wire/1 that are changed at random: `python -m tests.fuzz.wire --count 5000000 --seed 1`.

Starts from the golden vectors and tests/fuzz/corpus/wire. Each input is cut into frames and read, whole and in pieces:
only WireError may come of it, the same in both ways, and what is read is written as it was. `--keep` puts inputs that
do what none did before into the corpus. Exit code 1 if one breaks a rule.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from random import Random

from tests.fuzz.engine import changed
from tests.support.paths import ROOT
from tests.support.wire import encoded, read

from hsmcore.gateway.wire import frames
from hsmcore.gateway.wire.frames import Frame, Splitter, Type, WireError

CORPUS = ROOT / "tests" / "fuzz" / "corpus" / "wire"
HEAD_BYTES = 16
_CUT_TEXT = (Type.ERROR, Type.SIGNED_MANY)
"""A text that is too long is read, and written shorter."""


def seeds() -> list[bytes]:
    """The inputs to begin with."""
    vectors = json.loads((ROOT / "tests" / "wire" / "vectors.json").read_text())
    found = [bytes.fromhex(one["hex"]) for part in ("frames", "streams", "refused") for one in vectors[part]]
    return found + [path.read_bytes() for path in sorted(CORPUS.glob("*"))]


def outcome_of(pieces: list[bytes]) -> tuple[list[Frame], str]:
    """The frames that say something, and why the rest is refused, or ""."""
    splitter, found = Splitter(Type), []
    try:
        for piece in pieces:
            for one in splitter.feed(piece):
                read(one)
                found.append(one)
    except WireError as error:
        return found, str(error) or "refused"
    return found, ""


def otherwise_in_python(data: bytes) -> bool:
    """Whether the frames that are cut are others in Python than in C."""
    rules = Splitter(Type)
    asked = data, 0, 1 << 20, rules._flags, rules._types, Frame
    return bool(frames.native.cut_frames(*asked) != frames._cut_frames(*asked))


def problem_of(data: bytes, chance: Random) -> tuple[str | None, str]:
    """What is wrong, if anything is; and what the input did, in words that do not change with its numbers."""
    try:
        whole, why = outcome_of([data])
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(3))
        pieces = [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        cut, why_cut = outcome_of(pieces)
        if otherwise_in_python(data):
            return f"{data.hex()}: is another thing in Python", ""
        for one in cut:
            if one.type not in _CUT_TEXT and encoded(one)[HEAD_BYTES:] != one.body:
                return f"{data.hex()}: {one.type.name} is written otherwise", ""
    except Exception as error:  # noqa: BLE001  # any other than WireError is what is looked for
        return f"{data.hex()}: {type(error).__name__}: {error}", ""
    # In pieces, frames before a fault in the same read are handed out.
    if bool(why) != bool(why_cut) or cut[: len(whole)] != whole or (not why and cut != whole):
        return f"{data.hex()}: {len(whole)} frames ({why}), in pieces {len(cut)} ({why_cut})", ""
    kinds = ",".join(sorted({one.type.name for one in cut}))
    return None, f"{kinds}:{re.sub(r'[0-9]+(x[0-9a-f]+)?', 'N', why)}"


def fuzz(
    count: int, seed: int, *, seconds: float = float("inf"), keep: bool = False
) -> tuple[list[str], int, set[str]]:
    """Try so many inputs. Returns what is wrong, how many were tried, and what they did."""
    chance, inputs, wrong = Random(seed), seeds(), list[str]()
    seen = {problem_of(data, chance)[1] for data in inputs}
    begun, done = time.monotonic(), 0
    while done < count and (done % 1000 or time.monotonic() - begun < seconds):
        data = changed(chance, inputs)
        problem, did = problem_of(data, chance)
        done += 1
        if problem is not None:
            wrong.append(problem)
        elif did not in seen:
            seen.add(did)
            inputs.append(data)
            if keep and len(data) <= 256:
                CORPUS.mkdir(exist_ok=True)
                (CORPUS / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return wrong, done, seen


def main() -> int:
    parser = argparse.ArgumentParser(description="Change bytes of hsmcore-wire/1 at random and read them.")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument("--keep", action="store_true", help="put what is new into the corpus")
    asked = parser.parse_args()
    wrong, done, seen = fuzz(asked.count, asked.seed, seconds=asked.seconds, keep=asked.keep)
    for text in wrong[:10]:
        sys.stdout.write(f"{text}\n")
    sys.stdout.write(f"{done} inputs, {len(wrong)} wrong, {len(seen)} kinds of outcomes\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
