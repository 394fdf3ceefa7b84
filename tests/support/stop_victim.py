"""A program whose key manager is closed while a call of the recovery ladder hangs; then the call comes back. Prints how
often C_Login was called by the time of the close, and in the end.

    python -m tests.support.stop_victim FUNCTION < {"folder", "wrapped"}
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.chaos import Chaos, Wrapped
from tests.support.managers import start, until

import hsmcore


def workers() -> int:
    """How many threads of engines this process has."""
    count = 0
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            count += (thread / "comm").read_text().startswith("hsm-worker")
    return count


async def main(point: str) -> None:
    """Close in the middle of the ladder."""
    asked = json.load(sys.stdin)
    chaos = Chaos(Path(asked["folder"]), Wrapped(**asked["wrapped"]))
    other, manager = hsmcore.create_key_manager(chaos.config()), hsmcore.create_key_manager(chaos.config())
    await other.initialize()  # it keeps the module initialized, so that the calls can be counted
    await manager.initialize()
    staying = workers()
    chaos.fault(point, "hang", forever=True)
    chaos.fault("C_SignInit", "kill-all-sessions")
    signing = start(manager.sign(b"on the ladder", 0.2))
    await until(lambda: chaos.stats()["hung"] == 1)
    await asyncio.gather(signing, return_exceptions=True)
    await manager.close()
    before = chaos.calls("C_Login")
    chaos.release()
    await until(lambda: workers() <= staying - 2)  # one key manager's
    json.dump([before, chaos.calls("C_Login")], sys.stdout)
    await other.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
