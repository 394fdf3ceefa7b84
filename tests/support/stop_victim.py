"""A program whose key manager is closed while a call of the recovery ladder hangs; then the call comes back. Prints how
often C_Login was called by the time of the close, and in the end. A process of its own: the module stays initialized.

    python -m tests.support.stop_victim FUNCTION < {"folder", "wrapped"}
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.support.chaos import Chaos, Wrapped
from tests.support.managers import start, until

import hsmcore


def has_workers() -> bool:
    """Whether this process has threads of an engine."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            if (thread / "comm").read_text().startswith("hsm-worker"):
                return True
        except OSError:  # it has ended
            continue
    return False


async def main(point: str) -> None:
    """Close in the middle of the ladder."""
    asked = json.load(sys.stdin)
    chaos = Chaos(Path(asked["folder"]), Wrapped(**asked["wrapped"]))
    manager = hsmcore.create_key_manager(chaos.config())
    await manager.initialize()
    chaos.fault(point, "hang", forever=True)
    chaos.fault("C_SignInit", "kill-all-sessions")
    signing = start(manager.sign(b"on the ladder", 0.2))
    await until(lambda: chaos.stats()["hung"] == 1)
    await asyncio.gather(signing, return_exceptions=True)
    await manager.close()
    before = chaos.calls("C_Login")
    chaos.release()
    await until(lambda: not has_workers())
    json.dump([before, chaos.calls("C_Login")], sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
