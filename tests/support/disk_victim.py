"""Signs at full speed with an audit log on a disk that hangs for a while, and says what became of that.

LD_PRELOAD=disk.so python -m tests.support.disk_victim CONFIG.json; see disk.c. CONFIG.json: `config` of the key
manager, `calls` that hang, `seconds` for which they do, `most_pending` in place of the audit log's own bound.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hsmcore
from hsmcore.audit import journal

CALLERS = 64
BATCH = 128


async def main(given: dict[str, Any]) -> dict[str, Any]:
    """Hang and come back once."""
    disk = ctypes.CDLL(None)
    journal.MAX_PENDING = given["most_pending"]  # type: ignore[misc]  # a smaller bound is reached sooner
    numbers = itertools.count()
    done: Counter[str] = Counter()
    refusals: set[str] = set()
    async with hsmcore.create_key_manager(given["config"]) as manager:
        stop = asyncio.Event()

        async def caller(number: int) -> None:
            while not stop.is_set():
                batch = [b"%d " % next(numbers) * 8 for _ in range(BATCH if number else 1)]
                try:
                    await (manager.sign_many(batch) if number else manager.sign(batch[0]))
                    done["signed"] += len(batch)
                except hsmcore.AuditUnavailable as error:
                    done["refused"] += 1
                    refusals.add(str(error))
                    await asyncio.sleep(0.001)
                except hsmcore.HsmError as error:  # its time was over
                    done[type(error).__name__] += 1

        def pending() -> int:
            status = manager.audit.status
            return 0 if status is None else status.pending_bytes

        callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
        while done["signed"] < 10 * BATCH:  # noqa: ASYNC110  # counted by the callers
            await asyncio.sleep(0.01)
        disk.disk_hold(given["calls"])
        most, until = 0, time.monotonic() + given["seconds"]
        while time.monotonic() < until:
            most = max(most, pending())
            await asyncio.sleep(0.01)
        hung = dict(done)
        before = done["signed"]
        await asyncio.sleep(0.25)  # refusals only: nothing is handed out by now
        late = done["signed"] - before
        disk.disk_hold(0)
        before = done["signed"]
        while done["signed"] < before + 10 * BATCH:  # noqa: ASYNC110  # counted by the callers
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*callers)
    return {"most": most, "hung": hung, "late": late, "signed": done["signed"], "refusals": sorted(refusals)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(json.loads(Path(sys.argv[1]).read_text())))))
