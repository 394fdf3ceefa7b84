"""A child that opens a token again and again, each thread through a module of its own: counts what it did not see.

Standard input: {"modules", "token", "pin", "rounds"}; standard output: how often the token was not shown or opened.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from hsmcore._native import Turn
from hsmcore.control.adopt import adopt, hold_module
from hsmcore.control.cryptoki import CkrError, Cryptoki, handle_of


def missed(path: str, label: str, pin: bytes, rounds: int) -> int:
    """In how many of the rounds C_Initialize did not show the token, or a login failed."""
    count = 0
    for _ in range(rounds):
        with Turn(path), closing(hold_module(path)):
            found = [slot.get_token() for slot in adopt(path).get_slots(token_present=True)]
            tokens = [token for token in found if token.label == label]
            count += len(tokens) != 1
            for token in tokens:
                with token.open(rw=True) as session:
                    try:
                        Cryptoki(path).login(handle_of(session), pin)
                    except CkrError:
                        count += 1
    return count


def main() -> None:
    asked = json.load(sys.stdin)
    with ThreadPoolExecutor() as threads:
        counts = threads.map(
            lambda path: missed(path, asked["token"], asked["pin"].encode(), asked["rounds"]), asked["modules"]
        )
        sys.stdout.write(f"{sum(counts)}\n")


if __name__ == "__main__":
    main()
