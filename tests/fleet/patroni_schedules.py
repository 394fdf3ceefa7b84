"""Schedules of a fleet whose database is under Patroni: 30 seconds each, since Patroni waits 20 before it gives the
role of a primary that is gone to another node.

    python -m tests.fleet.patroni_schedules --seeds 0-9 --jobs 1

As schedules.py, but what happens to the database is left to Patroni: it crashes, its machine dies, it is cut off from
etcd and from its standbys while clients still reach it. One cluster serves all schedules of a process, each with a
database of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fleet.nemeses import DOINGS, Nemeses
from tests.fleet.patroni import PatroniCluster, PatroniNode, patroni
from tests.fleet.schedules import Schedule, plan
from tests.fleet.site import Signer
from tests.support.run_folder import fast_folder
from tests.support.seeds import added, parse, run_seeds

CHUNK = 10
SECONDS = 30.0
_OURS = ("bounce", "restart", "standby")
WEIGHTS = {name: weight for name, weight in DOINGS.items() if name not in _OURS} | {"crash": 2}
CHANGES = {"machine": 2, "isolate": 3, "": 1}
_ISOLATED = 24.0
"""Seconds: until after Patroni has given the role to another node."""


class PatroniNemeses(Nemeses):
    """What goes wrong, where Patroni decides what follows."""

    @property
    def _patroni(self) -> PatroniCluster:
        found: Any = self.site.database
        assert isinstance(found, PatroniCluster)
        return found

    def _join(self) -> None:
        for node in self._patroni.nodes:
            self._patroni.join(node)
            node.start()

    async def mend(self) -> None:
        """As for any database; and wait until Patroni has a primary with its standbys, which takes as long as it waits
        for the former one."""
        await super().mend()
        await self._patroni.ready()

    async def _cancel(self, _host: Signer, dice: random.Random) -> None:
        self._patroni.hold_standbys(held=True)
        for _ in range(dice.randint(1, 4)):
            await asyncio.sleep(dice.uniform(0.05, 0.3))
            await self._patroni.cancel_waiting_commit()
        self._patroni.hold_standbys(held=False)

    async def _crash(self, _host: Signer, _dice: random.Random) -> None:
        await self._patroni.crash()

    async def _machine(self, _host: Signer, _dice: random.Random) -> None:
        dead = await self._patroni.kill()
        await asyncio.sleep(_ISOLATED)
        if isinstance(dead, PatroniNode):
            dead.start()

    async def _isolate(self, _host: Signer, dice: random.Random) -> None:
        node = self._patroni.isolate()
        for _ in range(6):
            await asyncio.sleep(_ISOLATED / 6)
            if dice.random() < 0.7:
                await self._patroni.cancel_waiting_commit()
        if node is not None:
            self._patroni.join(node)


class PatroniSchedule(Schedule):
    """One plan, run."""

    Nemeses = PatroniNemeses


async def _run_chunk(seeds: Iterable[int], keep: str | None) -> list[dict[str, Any]]:
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="hsmcore-fleet-", dir=fast_folder()) as folder:
        await asyncio.to_thread(os.chmod, folder, 0o755)
        async with patroni(Path(folder) / "nodes") as database:
            for seed in seeds:
                await database.ready()
                name, place = f"d{seed}", Path(folder) / f"hosts-{seed}"
                place.mkdir()
                await database.use(name)
                made = plan(seed, SECONDS, WEIGHTS, CHANGES, late=0.0, emptied=0.0, dense=SECONDS)
                verdict = await PatroniSchedule(made, database, place, name=name).run()
                verdicts.append(verdict.as_dict())
                if keep is not None and verdict.faults:
                    shutil.copytree(place, Path(keep) / f"p{seed}", ignore=shutil.ignore_patterns("*.sock"))
                shutil.rmtree(place)
    return verdicts


def main(arguments: list[str] | None = None) -> int:
    """Run the schedules of a range of seeds."""
    asked = parse("Seeded schedules of a fleet whose database is under Patroni.", arguments)
    if asked.chunk:
        seeds, keep = json.load(sys.stdin)
        json.dump(added(asyncio.run(_run_chunk(seeds, keep))), sys.stdout)
        return 0
    return run_seeds(asked, "tests.fleet.patroni_schedules", CHUNK, os.environ.get("HSMCORE_KEEP"))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
