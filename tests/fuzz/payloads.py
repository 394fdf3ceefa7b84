"""What messages are, beside solders: `python -m tests.fuzz.payloads --count 10000000 --seed 1` compares the classes of
that many messages, and whether transactions are sound. Exit code 1 if one differs."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from random import Random

from tests.support.payloads import a_message, expected

from hsmcore._native import Gate, classify

_CHUNK = 100_000
_ANY = Gate(kinds=("tx-legacy", "tx-v0", "tx-v1"), domain="default")


def differs(message: bytes) -> str | None:
    """How a message is seen otherwise; None: it is not."""
    kind, sound = expected(message)
    found = classify(message), _ANY.passes(message, None)
    return None if found == (kind, sound) else f"{message.hex()}: {found}, solders {(kind, sound)}"


def compare(count: int, seed: int) -> tuple[list[str], Counter[str]]:
    """Compare so many messages. Returns those that differ, and how many of each class there were."""
    chance, found = Random(seed), []
    classes: Counter[str] = Counter()
    for _ in range(count):
        message = a_message(chance)
        text = differs(message)
        if text is not None:
            found.append(text)
        classes[classify(message)] += 1
    return found, classes


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the classes of messages with solders.")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no chunk after so long")
    asked = parser.parse_args()
    begun, done, wrong, classes = time.monotonic(), 0, 0, Counter[str]()
    while done < asked.count and time.monotonic() - begun < asked.seconds:
        size = min(_CHUNK, asked.count - done)
        found, some = compare(size, asked.seed + done // _CHUNK)
        done, wrong, classes = done + size, wrong + len(found), classes + some
        for text in found[:10]:
            sys.stdout.write(f"{text}\n")
        sys.stderr.write(f"\r{done} messages, {wrong} differ, {done / (time.monotonic() - begun):.0f}/s ")
        sys.stderr.flush()
    sys.stderr.write("\n")
    sys.stdout.write(f"{done} messages, {wrong} differ: {dict(classes.most_common())}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
