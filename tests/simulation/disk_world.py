"""One host in several lives: between two of them it is closed, killed, or its machine loses power."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.simulation import disk, emergency, engine, journal, requests, threads
from tests.simulation.clock import rest as rest_clock
from tests.simulation.clock import run as run_clock
from tests.simulation.disk import Disk, Image
from tests.simulation.disk_script import DiskScript, Life
from tests.simulation.law import LivesFacts, broken_over_lives
from tests.simulation.loop import Loop, Stuck
from tests.simulation.world import Outcome, World, config_of, folder

from hsmcore.audit import record
from hsmcore.base import steady
from hsmcore.errors import HsmError
from hsmcore.manager.key_manager import KeyManager
from hsmcore.state import database

disk.install()
journal.install()
_ORIGIN = {"user": "signer", "source": {"hostname": "host", "pid": disk.PID, "ip": "127.0.0.1"}}
record.this_process = lambda: _ORIGIN
_boots = [""]
_TRIES = 100
"""More than a caller makes in one life: numbers of its calls go on in the next one."""

_MOST_AWAITS = 100


class LifeEnds(BaseException):
    """The process is gone."""


def _close(coroutine: Any) -> None:
    """Have a coroutine end that nothing will run any more, however it cleans up: that must not happen later."""
    for _ in range(_MOST_AWAITS):
        try:
            coroutine.throw(LifeEnds())
        except BaseException:  # noqa: BLE001  # it has ended
            return


class DiskWorld(World):
    """Runs a script once."""

    def __init__(self, script: DiskScript) -> None:
        super().__init__(script)  # type: ignore[arg-type]  # it has members and a seed
        self.lives = script
        self.facts: LivesFacts = LivesFacts(script, self.ledger, self.facts.keys)
        for device in self.devices.values():
            device.touched = self.facts.touched
        self.disk = Disk(folder() / "state", self.chance._stream("disk"))
        self.disk.tell = lambda what: self.tell("disk", what)
        self.image: Image = {}
        self.ended = False
        self.cut = False

    def run(self) -> Outcome:
        self.chance.begin()
        emergency.ledgers[:] = [self.ledger]
        engine.devices.clear()
        engine.devices.update(self.devices)
        steady._boot = lambda: _boots[0]
        boots = 1
        for life in self.lives.lives:
            _boots[0] = f"boot {boots}"
            self._live(life)
            boots += self.cut
            if self.outcome.broken:
                break
            self.clock.ns += life.pause_ns
        if not self.outcome.broken:
            self.outcome.broken = broken_over_lives(self.facts)
        return self.outcome

    def _live(self, life: Life) -> None:
        self.loop = Loop(self.chance, self.clock)
        requests.made.clear()
        self.ended = self.cut = False
        for device in self.devices.values():
            device.faults = []
        self.disk.mount(self.image)
        self.disk.ends_at, self.disk.kills = life.end_op, life.end == "kill"
        self.disk.end = lambda: self._end(life)
        if life.end == "close":
            self.disk.ends_at = None
        run_clock(self.clock)
        threads.worlds[:] = [self.loop]
        try:
            self.loop.run_until_complete(self._life_of(life))
        except LifeEnds:
            pass
        except Stuck as error:
            self.outcome.broken.append(f"alive: {type(error).__name__}: {error.args[0]}")
        else:
            self._count_what_is_left()
        finally:
            threads.worlds.clear()
            rest_clock()
            if not self.ended:
                self.image = self.disk.left_by_kill()
            self.disk.unmount()
            self._bury()

    def _end(self, life: Life) -> None:
        """The process ends here and now: nothing that it does after this counts."""
        if self.ended:
            return
        self.ended, self.cut = True, life.end == "cut"
        self.tell("host", "LOSES POWER" if self.cut else "IS KILLED")
        self.image = self.disk.left_by_cut() if self.cut else self.disk.left_by_kill()
        self.facts.ends.append((self.clock.ns, life.end))
        self.loop.happens(0, self._stop)

    def _stop(self) -> None:
        raise LifeEnds

    def _bury(self) -> None:
        """Let go of what a process has that is gone."""
        self._abandon()
        for one in requests.made:
            self._finish_calls(one)
        waiting = [one for one in self.facts.answers if not one.ends]
        for task in sorted(asyncio.all_tasks(self.loop), key=lambda task: task.number):
            _close(task.get_coro())
        for one in waiting:  # whatever their tasks have made of that
            one.result, one.ends, one.ended_ns = None, 0, 0
        self.loop.close()
        for known in [*database._DATABASES.values()]:
            with suppress(BaseException):
                known.disconnect()
        database._DATABASES.clear()
        root = folder() / "state"
        for one in [*Path("/proc/self/fd").iterdir()]:
            with suppress(OSError):
                if root in one.readlink().parents:
                    os.close(int(one.name))

    def _finish_calls(self, one: Any) -> None:
        """A device that was called signs, whether or not its caller lives."""
        for worker in getattr(one, "workers", ()):
            if worker.ask is not None and one.device is not None and self.chance.time.random() < 0.5:
                one.device.note(worker.since, one.found[worker.ask.key], worker.ask.message)

    # ---- life ------------------------------------------------------------------------------------------------------

    async def _life_of(self, life: Life) -> None:
        manager = KeyManager(config_of(self.lives))
        self.tell("host", f"begins life {life.number}; turns are {self.chance.order.kind}")
        if life.end != "close":
            self.loop.happens(life.end_ns, lambda: self._end(life))
        began = False
        try:
            await manager.initialize()
            began = True
            await self._serve(life, manager)
        except HsmError as error:
            self.tell("host", f"does not start: {type(error).__name__}" if not began else f"{error!r}")
            self.facts.refused.append((life.number, error))
        finally:
            manager._life.state = "closed"

    async def _serve(self, life: Life, manager: KeyManager) -> None:
        begin = self.clock.ns
        self.tell("host", "has started")
        for one in self.lives.faults:
            if one.life == life.number:
                self._strike(replace(one.fault, at_ns=begin + one.fault.at_ns))
        callers = [
            asyncio.ensure_future(self._call(manager, begin, one.intent, _TRIES * life.number))
            for one in self.lives.asked
            if one.life == life.number and not self.facts.has(one.intent.number)
        ]
        await asyncio.gather(*callers)
        self.tell("host", "closes")
        await manager.close()
        self.tell("host", "is closed")
        self.facts.ends.append((self.clock.ns, "close"))
