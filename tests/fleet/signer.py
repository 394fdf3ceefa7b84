"""A host of a fleet: it signs blocks one after the other, sometimes other blocks for positions that are taken, and
messages without a position, until SIGTERM. What it knows of the chain is what was published (chain.py). On SIGUSR1 it
claims the epoch by force, on SIGUSR2 it writes down what it has in memory (clone.py). Everything that was handed out
stands in its history.

    python -m tests.fleet.signer SPEC        # a file of JSON: host, config, history, seed, broken, memory, clone
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
import uvloop
from tests.fleet import clone
from tests.fleet.breakages import BREAKAGES
from tests.fleet.chain import BUILDS, KNOWN, TRAVELS, Chain
from tests.fleet.history import Writer, true_boottime
from tests.support.policed import ordered

import hsmcore
from hsmcore import _native
from hsmcore.errors import DoubleSign, HsmError, NotHolder

DOMAIN = "default"
CHAIN = f"{DOMAIN}/block"
TIMEOUTS = (1.0, 2.0, 5.0)
"""Seconds that requests have."""
LATE = 6.0
"""A request that takes so much longer than its timeout hangs."""
ORDERED, UNORDERED = 2, 3
"""Callers that sign with a position, and without."""
STALL = 0.25
"""Seconds without a turn of the event loop that are worth a line."""
AHEAD = 40
"""Positions that may be left out."""


class Signer:
    """One process's life."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.host, self.config = spec["host"], spec["config"]
        self.history = Writer(Path(spec["history"]))
        self.memory = Path(spec["memory"])
        fleet = spec["config"]["sequencer"]["keyManager"]["fleet"]
        self.anywhere = fleet["unordered"] == "any"
        """Whether what has no position is signed without an epoch."""
        self.dice = random.Random(f"{spec['seed']} {self.host} {time.time_ns()}")
        self.chain = Chain(Path(spec["history"]).parent.parent, Path(spec["history"]), self.dice)
        self.over = asyncio.Event()
        self.asked = self.answered = 0
        self.own: dict[int, bytes] = {}
        self.signed = -1
        """The highest block that it has signed, or left to others."""
        self.taken = 0
        """The epoch under which it has looked for what another host had bound."""
        self.tasks: set[asyncio.Future[None]] = set()
        self.stalled = 0
        """Nanoseconds for which the machine had no time for this process, up to its last turn."""
        self.turn = true_boottime()

    async def run(self) -> None:
        """From opening to closing."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.over.set)
        self.history.write("begin", processor=time.process_time())
        while not self.over.is_set():
            try:
                async with hsmcore.create_key_manager(self.config) as manager:
                    self.history.write("open", processor=time.process_time())
                    await self._work(manager)
                    self.history.write("end", asked=self.asked, answered=self.answered)
            except HsmError as error:  # the database cannot be reached, or has no primary
                self.history.write("not opened", status=error.status, why=str(error)[:300])
                await asyncio.sleep(0.2)
        self.history.close()

    async def _work(self, manager: hsmcore.KeyManager) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: self._soon(self._claim(manager)))
        loop.add_signal_handler(signal.SIGUSR2, clone.write, manager, self.memory)
        manager.on("fleet", self._note)
        self.asked = self.answered = 0
        beside = [asyncio.ensure_future(work) for work in (self._stalls(), self._shows(manager))]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.chain.follow(self.over, lambda: self._tell(manager)))
                for _ in range(ORDERED):
                    group.create_task(self._blocks(manager))
                for number in range(UNORDERED):
                    group.create_task(self._messages(manager, number))
        finally:
            for task in beside:
                task.cancel()

    async def _stalls(self) -> None:
        """Note when the machine had no time for this process: as if it had been stopped."""
        self.turn = true_boottime()
        while True:
            await asyncio.sleep(STALL / 10)
            before, self.turn = self.turn, true_boottime()
            if self.turn > before + STALL * 1e9:
                self.history.write("stall", since=before)
                self.stalled += self.turn - before

    async def _shows(self, manager: hsmcore.KeyManager) -> None:
        """Note what the host knows of its fleet, and what the thread of its store does for long: for timeline.py."""
        before: tuple[Any, str] = (None, "")
        works = ""
        while manager.fleet is not None:
            said = manager.fleet.describe()
            shown = {name: said[name] for name in ("state", "epoch", "holder", "incident", "reason")}
            works, last = stack_of("hsmcore-state"), works
            if before != (shown, stuck := works if works == last else ""):
                before = shown, stuck
                self.history.write("state", **shown, works=stuck)
            await asyncio.sleep(STALL)

    def _note(self, details: Any) -> None:
        forced = details["epoch"] if details.get("forced") else 0
        self.history.write("event", details=repr(details)[:300], forced=forced)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _claim(self, manager: hsmcore.KeyManager) -> None:
        assert manager.fleet is not None
        with suppress(HsmError):
            await manager.fleet.claim(force=True, reason="the schedule says so")

    # ---- what it asks for ----

    def _tell(self, manager: hsmcore.KeyManager) -> None:
        """Say how far this host follows the chain, as a node does that receives blocks: a block that was bound by a
        host that died is none of them."""
        if manager.fleet is not None and self.chain.high >= 0:
            manager.fleet.caught_up(CHAIN, self.chain.high)

    @property
    def next(self) -> int:
        """The next block: behind what was published, and what this host itself has signed and not published yet."""
        return max(self.chain.high, self.signed) + 1

    async def _blocks(self, manager: hsmcore.KeyManager) -> None:
        count = 0
        while not self.over.is_set():
            count += 1
            held = _epoch_of(manager)
            if held not in (0, self.taken) and await self._take_over(manager):
                self.taken = held
            position, content = self.next, f"{self.host} {time.time_ns()} {count}".encode()
            luck = self.dice.random()
            if luck < 0.25 and position > 0:  # one that is taken, with other content
                position -= self.dice.randint(1, min(position, 4))
            elif luck < 0.45 and position - 1 in self.own:  # one that it has signed, as it was
                position, content = position - 1, self.own[position - 1]
            elif luck < 0.65:  # one ahead of all, which nothing but the epoch forbids to a host that lost it
                position += self.dice.randint(1, AHEAD)
            try:
                await self._block(manager, position, content)
            except DoubleSign:
                await self._finish(manager, position)
            except NotHolder:
                await asyncio.sleep(0.05)
            except HsmError:
                if self.dice.random() < 0.5:  # it may be bound: ask again with the same, or come with another
                    with suppress(HsmError):
                        await self._block(manager, position, content)
                await asyncio.sleep(0.05)
            await asyncio.sleep(self.dice.uniform(0.0, 0.03))

    async def _block(self, manager: hsmcore.KeyManager, position: int, content: bytes) -> None:
        await self._sign(manager, ordered(position, content, domain=DOMAIN), position)
        self.own[position] = content
        self._handed_out(position)

    def _handed_out(self, position: int) -> None:
        self.signed = max(self.signed, position)
        self._soon(self._publish(position))

    async def _publish(self, position: int) -> None:
        await asyncio.sleep(self.dice.uniform(0.0, BUILDS))
        self.history.write("published", position=position)

    async def _take_over(self, manager: hsmcore.KeyManager) -> bool:
        """Sign first what the holder before has bound and not published, as far as that is known here. False: that is
        to be tried again, such as after an incident."""
        with suppress(HsmError):
            found = await manager.unfinished(CHAIN)
            if found is None or found.message is None or found.position < self.next:
                return True
            try:
                await self._sign(manager, found.message, found.position)
            except DoubleSign:
                self.history.write("wrong message", position=found.position, message=found.message.hex())
            else:
                self._handed_out(found.position)
                self.history.write("finished", position=found.position)
            return True
        return False

    async def _finish(self, manager: hsmcore.KeyManager, position: int) -> None:
        """Sign what the next block is bound to, if it was not published: its holder died. Where that is not known, go
        on behind it."""
        if await self._until_heard(position, TRAVELS[1] + BUILDS):
            return
        await self._take_over(manager)
        if not await self._until_heard(position, KNOWN):
            self.history.write("left", position=position)
            self.signed = max(self.signed, position)

    async def _until_heard(self, position: int, seconds: float) -> bool:
        """Whether the block is known in that time, or it is over."""
        end = time.monotonic() + seconds
        while position >= self.next and not self.over.is_set():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.02)
        return True

    async def _messages(self, manager: hsmcore.KeyManager, number: int) -> None:
        count = 0
        while not self.over.is_set():
            count += 1
            try:
                await self._sign(manager, f"hsmcore {self.host} {number} {time.time_ns()} {count}".encode(), None)
            except HsmError:
                await asyncio.sleep(0.05)
            await asyncio.sleep(self.dice.uniform(0.0, 0.02))

    async def _sign(self, manager: hsmcore.KeyManager, payload: bytes, position: int | None) -> None:
        self.asked += 1
        timeout = self.dice.choice(TIMEOUTS)
        free = self.anywhere and position is None
        begun, stalled, held = true_boottime(), self.stalled, _epoch_of(manager)
        try:
            signature = await manager.sign(payload, timeout)
            epoch = 0 if free else _epoch_of(manager) or held
        except HsmError as error:
            said = {"status": error.status, "why": str(error)[:200]}
            self.history.write("answer", position=position, asked=begun, until=begun + int(timeout * 1e9), **said)
            raise
        else:
            digest = hashlib.sha256(payload).hexdigest()
            self.history.write(
                "release",
                kind="raw" if position is None else "block",
                domain=CHAIN,
                position=position,
                digest=digest,
                epoch=epoch,
                asked=begun,
                shown=[time.clock_gettime_ns(clock) for clock in (time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC)],
                signature=signature.hex(),
                verifies=_native.verify("ed25519", manager.public_key, payload, signature),
            )
        finally:
            self.answered += 1
            had = self.turn - begun - (self.stalled - stalled)  # what came after that turn may be a stall
            if had > int((timeout + LATE) * 1e9):
                self.history.write("late", position=position, asked=begun)


def stack_of(thread: str) -> str:
    """The functions of hsmcore in which a thread is, the innermost last; "": it is idle, or there is none."""
    number = next((one.ident for one in threading.enumerate() if one.name.startswith(thread)), None)
    frame, names = sys._current_frames().get(number or 0), list[str]()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "hsmcore" in path.parts[:-1]:
            names.append(f"{path.stem}.{frame.f_code.co_name}")
        frame = frame.f_back
    return " ".join(reversed(names))


def _epoch_of(manager: hsmcore.KeyManager) -> int:
    """The epoch that this process holds itself, or 0."""
    return 0 if manager.fleet is None else manager.fleet._machine.epoch


def main() -> None:
    """Run the process."""
    spec = json.loads(Path(sys.argv[1]).read_bytes())
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if spec["broken"]:
        BREAKAGES[spec["broken"]]()
    if spec["clone"]:
        clone.awake(Path(spec["memory"]), Path(spec["history"]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Signer(spec).run())


if __name__ == "__main__":
    main()
