"""One host in several lives: between two of them it is closed, killed, or its machine loses power."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
from tests.simulation import disk, emergency, engine, journal, requests, threads
from tests.simulation.clock import rest as rest_clock
from tests.simulation.clock import run as run_clock
from tests.simulation.device import Call
from tests.simulation.disk import Disk, Image
from tests.simulation.disk_script import LASTS_NS, Command, DiskFault, DiskScript, End, Lie, Life
from tests.simulation.law import Answer, broken
from tests.simulation.law_disk import DISK_RULES, Ended, LivesFacts
from tests.simulation.loop import Loop, Stuck
from tests.simulation.upgrades import STORE, left_by, older_version
from tests.simulation.world import Broke, Outcome, World, config_of, folder

from hsmcore.audit import record
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import segments
from hsmcore.audit.spool import OPERATION, Intention
from hsmcore.base import steady
from hsmcore.base.receipt import Receipt
from hsmcore.config import Secret
from hsmcore.errors import HsmError
from hsmcore.manager.key_manager import KeyManager
from hsmcore.recovery.reconcile import reconcile
from hsmcore.recovery.restore import back_up, check, restore
from hsmcore.state import StoreError, database
from hsmcore.tlog.checkpoint import Checkpoint

disk.install()
journal.install()
_ORIGIN = {"user": "signer", "source": {"hostname": "host", "pid": disk.PID, "ip": "127.0.0.1"}}
record.this_process = lambda: _ORIGIN
_boots = [""]
SECRET = "HSMCORE_SIMULATED_SECRET"
os.environ[SECRET] = "a secret of the simulation, of 32 bytes and more"
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
        if "audit" in script.options:
            self.facts.records = {}
        for device in self.devices.values():
            device.touched = self.facts.touched
        self.disk = Disk(folder() / "state", self.chance._stream("disk"))
        self.disk.tell = lambda what: self.tell("disk", what)
        self.layout = Layout(folder() / "state" / "audit.jsonl")
        self.image: Image = {}
        self.ended = self.cut = False
        self.life = 0
        self.backup = b""

    def run(self) -> Outcome:
        self.chance.begin()
        emergency.ledgers[:] = [self.ledger]
        engine.devices.clear()
        engine.devices.update(self.devices)
        steady._boot = lambda: _boots[0]
        boots = 1
        for life in self.lives.lives:
            before = self.image
            _boots[0] = f"boot {boots}"
            self._live(life)
            boots += self.cut
            if self.outcome.broken:
                break
            self.clock.ns += life.pause_ns
            if life.goes_back and self.started and life.number in self.facts.audited:
                self._go_back(life, before)
            if life.backs_up:
                self._live(Life(life.number, "close", 0), self._back_up)
            if life.restores is not None and self.backup:
                self._restore(life, *life.restores)
        if not self.outcome.broken:
            self.outcome.broken = broken(self.facts, DISK_RULES)
        return self.outcome

    def _go_back(self, life: Life, before: Image) -> None:
        """Start on an older state store; then put the newest one in its place again."""
        newest = self.image
        self.image = _with_store(newest, before)
        self.tell("host", "has its older store")
        refused = len(self.facts.refused)
        self._live(Life(life.number, "close", 0, tries_only=True))
        self.facts.behind.append(
            (life.number, self.facts.refused[refused][1] if self.facts.refused[refused:] else None)
        )
        del self.facts.refused[refused:]
        self.image = _with_store(self.image, newest)
        self.clock.ns += life.pause_ns

    def _restore(self, life: Life, end: End, end_op: int) -> None:
        """An operator puts the backup in the store's place: until it is reconciled, no start signs on it."""
        self._live(Life(life.number, end, LASTS_NS, end_op), self._put_back)
        if self.ended:  # in the middle of it
            self._live(Life(life.number, "close", 0), self._put_back)
        refused = len(self.facts.refused)
        self._live(Life(life.number, "close", 0, tries_only=True))
        self.facts.behind.append((life.number, self.facts.refused[-1][1] if self.facts.refused[refused:] else None))
        del self.facts.refused[refused:]
        self._live(Life(life.number, "close", 0), self._reconcile)

    def _live(self, life: Life, work: Callable[[Life], Awaitable[None]] | None = None) -> None:
        """Run a process. `work`: of a command; None: it is the key manager's."""
        self.loop = Loop(self.chance, self.clock)
        requests.made.clear()
        self.ended = self.cut = self.started = False
        self.life = life.number
        journal.slow[0] = 0
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
            with older_version() if life.schema else nullcontext():
                self.loop.run_until_complete((work or self._life_of)(life))
        except (LifeEnds, Broke):
            pass
        except (Stuck, HsmError) as error:
            self.outcome.broken.append(f"alive: {type(error).__name__}: {error.args[0]}")
        else:
            self._count_what_is_left()
        finally:
            threads.worlds.clear()
            rest_clock()
            if not self.ended:
                self.facts.ends.append(Ended(self.clock.ns, "close", life.number))
                self.image = self.disk.left_by_kill()
            self.disk.unmount()
            self._bury()
        if life.schema:
            secret = Secret.env(SECRET) if self.lives.is_sealed else None
            self.image = left_by(self.image, life.schema, secret, folder() / "older")
        self._look(life)

    def _look(self, life: Life) -> None:
        """Look at the log that a life has left."""
        self.disk.mount(self.image)
        layout = self.layout
        if layout.keys.exists() or (
            layout.checkpoint.exists() and Checkpoint.parse(layout.checkpoint.read_bytes()).size
        ):
            report = verify(layout)
            self.facts.unsound += [(life.number, found.text) for found in report.findings if not found.derived]
        if self.facts.records is not None:
            self.facts.records, self.facts.spooled = _records(layout)
        self.disk.unmount()

    def _end(self, life: Life) -> None:
        """The process ends here and now: nothing that it does after this counts."""
        if self.ended:
            return
        self.ended, self.cut = True, life.end == "cut"
        self.tell("host", "LOSES POWER" if self.cut else "IS KILLED")
        self.image = self.disk.left_by_cut() if self.cut else self.disk.left_by_kill()
        self.facts.ends.append(Ended(self.clock.ns, life.end, life.number))
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
        self.disk.close()

    def _finish_calls(self, one: Any) -> None:
        """A device that was called signs, whether or not its caller lives."""
        for worker in getattr(one, "workers", ()):
            if worker.ask is not None and one.device is not None and self.chance.time.random() < 0.5:
                key, message = one.found[worker.ask.key], worker.ask.message
                signature = key.pair.sign(message)
                one.device.note(worker.since, key, message, Call(0, signature, True, signature))

    # ---- commands --------------------------------------------------------------------------------------------------

    async def _back_up(self, life: Life) -> None:
        with suppress(StoreError):  # there is none yet
            async with back_up(self._config_of(life)) as (statement, head, body):
                self.backup = head + bytes(body)
            self.tell("operator", f"backs up {statement.highest}")

    async def _put_back(self, life: Life) -> None:
        config = self._config_of(life)
        if life.end != "close":
            self.loop.happens(life.end_ns, lambda: self._end(life))
        found = await check(config, self.backup)
        self.tell("operator", f"restores {found.statement.highest}, which lacks {found.missing} positions")
        await restore(config, self.backup, replace=True)
        self.facts.restored.append(self.clock.ns)

    async def _reconcile(self, life: Life) -> None:
        done = await reconcile(self._config_of(life), ring_compared=True)
        self.tell("operator", f"has put {done['added']} positions back")
        self.facts.conflicts += done["conflicts"]

    # ---- life ------------------------------------------------------------------------------------------------------

    async def _life_of(self, life: Life) -> None:
        manager = KeyManager(self._config_of(life))
        self.tell("host", f"begins life {life.number}; turns are {self.chance.order.kind}")
        if life.end != "close":
            self.loop.happens(life.end_ns, lambda: self._end(life))
        began = False
        try:
            await manager.initialize()
            began = True
            await self._serve(life, manager)
        except HsmError as error:
            if began:
                raise
            self.tell("host", f"does not start: {type(error).__name__}")
            self.facts.refused.append((life.number, error))
        finally:
            manager._life.state = "closed"

    async def _try(
        self, manager: Any, who: str, attempt: Any, wanted: list[bytes], answers: list[Answer]
    ) -> list[bytes]:
        left = await super()._try(manager, who, attempt, wanted, answers)
        kept = self.ended or self.life not in self.facts.audited or self.facts.lied.get(self.life) == "segment"
        for one in () if kept else answers:
            signature = one.result.signature if isinstance(one.result, Receipt) else one.result
            if isinstance(signature, bytes) and not self.disk.keeps(signature.hex().encode()):
                self.breaks(f"recorded: call {one.intent}.{one.number} got a signature whose record is not on the disk")
        return left

    def _config_of(self, life: Life) -> Any:
        script = self.lives
        if life.edit == "swapped":
            first, second = script.members
            script = replace(script, members=(replace(second, level="primary"), replace(first, level="secondary")))
        elif life.edit == "unaudited":
            script = replace(script, options={k: v for k, v in script.options.items() if k != "audit"})
        if life.edit != "unaudited" and "audit" in script.options:
            self.facts.audited.add(life.number)
        return config_of(script, **({"stateSecret": {"env": SECRET}} if script.is_sealed else {}))

    def _lie(self, one: Lie) -> None:
        self.tell("disk", f"LIES about {one.file}")
        self.facts.lied[one.life] = one.file
        self.disk.lie(partial(_is_of, one.file))

    def _fill(self, one: DiskFault, *, begins: bool) -> None:
        self.tell("disk", f"FAULT {one.kind}" if begins else f"{one.kind} is over")
        if one.kind == "full":
            self.disk.is_full = begins
        else:
            journal.slow[0] = one.lasts_ns if begins else 0

    def _command(self, command: Command) -> None:
        """Another process runs a command. What it may do it does once its record is on the disk."""
        try:
            intention = Intention(self.layout, "keys deactivate", {"reason": "a simulated command"})
        except OSError as error:
            self.tell("command", f"does nothing: {error.strerror}")
            return
        if not self.ended:
            self.tell("command", "acts")
            self.facts.commands.append(intention.path.stem)
        if command.lasts_ns is None:
            os.close(intention._file)
        else:
            self.loop.happens(command.lasts_ns, partial(self._complete, intention))

    def _complete(self, intention: Intention) -> None:
        with suppress(OSError):
            intention.complete({"result": "ok"})
        self.tell("command", "has ended")

    async def _serve(self, life: Life, manager: KeyManager) -> None:
        begin = self.clock.ns
        self.started = True
        self.tell("host", "has started")
        if life.tries_only:
            await manager.close()
            return
        for fault in self.lives.disk_faults:
            if fault.life == life.number:
                ends = fault.at_ns + fault.lasts_ns
                self.loop.happens(fault.at_ns, partial(self._fill, fault, begins=True))
                self.loop.happens(ends, partial(self._fill, fault, begins=False))
                if fault.kind == "full":
                    self.facts.full.append((begin + fault.at_ns, begin + ends))
                else:  # a group may wait for another one
                    self.facts.slow.append((begin + fault.at_ns, begin + ends + 2 * fault.lasts_ns))
        for lie in self.lives.lies:
            if lie.life == life.number:
                self.loop.happens(lie.at_ns, partial(self._lie, lie))
        for one in self.lives.faults:
            if one.life == life.number:
                self._strike(replace(one.fault, at_ns=begin + one.fault.at_ns))
        for command in self.lives.commands:
            if command.life == life.number and self.facts.records is not None:
                self.loop.happens(command.at_ns, partial(self._command, command))
        callers = [
            asyncio.ensure_future(self._call(manager, begin, one.intent, _TRIES * life.number))
            for one in self.lives.asked
            if one.life == life.number and not self.facts.has(one.intent.number)
        ]
        await asyncio.gather(*callers)
        self.tell("host", "closes")
        await manager.close()
        self.tell("host", "is closed")


def _is_of(file: str, path: Path) -> bool:
    """Whether a lie about a file is about this one."""
    if file in ("store", "wal"):
        return path.name == (STORE if file == "store" else f"{STORE}-wal")
    return "tile" in path.parts if file == "tiles" else path.name == "audit.jsonl"


def _with_store(image: Image, other: Image) -> Image:
    """Return an image with the state store of another one."""
    rest = {name: content for name, content in image.items() if not name.startswith(STORE)}
    return rest | {name: content for name, content in other.items() if name.startswith(STORE)}


def _records(layout: Layout) -> tuple[dict[tuple[bytes, bytes], int], set[str]]:
    """Return the signatures that a log has, and the files of the commands that it has or that wait in its spool."""
    signatures, commands = dict[tuple[bytes, bytes], int](), set[str]()
    if layout.spool.exists():
        commands |= {path.stem for path in layout.spool.iterdir()}
    for segment in segments(layout):
        for line in b"".join(segment.chunks()).splitlines():
            record = orjson.loads(line) if line.endswith(b"}") else {}
            if "signature" in record:
                signed = bytes.fromhex(record["message_sha256"]), bytes.fromhex(record["signature"])
                signatures[signed] = record["seq"]
            elif record.get("operation") == OPERATION:
                commands.add(Path(record["file"]).stem)
    return signatures, commands
