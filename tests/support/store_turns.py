"""A child that opens a token again and again, each thread through a module of its own, and never looks twice.

The command line has {"modules", "token", "pin_file", "rounds"} as JSON; standard output says how often that failed.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hsmcore.errors import HsmError
from hsmcore.members.control import admin
from hsmcore.members.control.records import TokenAccess, TokenSelector


def failures(access: TokenAccess, pin_file: Path, rounds: int) -> int:
    """In how many of the rounds the token was not found, or the login failed."""
    count = 0
    for _ in range(rounds):
        try:
            with admin.TokenAdmin(access, pin=lambda: bytearray(pin_file.read_bytes())):
                pass
        except HsmError:
            count += 1
    return count


def main() -> None:
    asked = json.loads(sys.argv[1])
    admin.PAUSES = ()  # type: ignore[misc]  # another look would hide what the first one missed
    token = TokenSelector(label=asked["token"])
    with ThreadPoolExecutor() as threads:
        counts = threads.map(
            lambda path: failures(TokenAccess(path, token), Path(asked["pin_file"]), asked["rounds"]), asked["modules"]
        )
        sys.stdout.write(f"{sum(counts)}\n")


if __name__ == "__main__":
    main()
