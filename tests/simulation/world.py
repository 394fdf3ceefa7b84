"""One host: a real KeyManager over simulated members, its callers, and what happened."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import orjson
from tests.simulation import clock, emergency, engine, requests, threads
from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND, Clock
from tests.simulation.device import Device, Fault, Key, Ledger, Signed
from tests.simulation.law import RULES, Answer, Facts, Rule, SignedRule, broken, broken_by, one_digest_at_once
from tests.simulation.loop import Loop, Stuck
from tests.simulation.script import Intent, Script, Try

from hsmcore.base.receipt import Receipt
from hsmcore.config import load
from hsmcore.errors import HsmError
from hsmcore.manager.key_manager import KeyManager


class Broke(Exception):
    """The law is broken: the story ends here."""


@dataclass(slots=True)
class Outcome:
    """How a world ended. The story is the same for the same script, in each process."""

    story: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.story).encode()).hexdigest()


@cache
def folder() -> Path:
    """Where worlds keep their files, one world after the other."""
    place = Path(tempfile.mkdtemp(prefix="hsmcore-worlds-", dir="/dev/shm"))
    os.environ["XDG_STATE_HOME"] = str(place / "state")  # of the register of stores
    (place / "module.so").touch()
    return place


def remove_folder() -> None:
    if folder.cache_info().currsize:
        shutil.rmtree(folder(), ignore_errors=True)
        folder.cache_clear()


def prepare(chance: Chance, ledger: Ledger, devices: Mapping[str, Device]) -> None:
    """Begin a world with its own devices, and with nothing of the one before."""
    shutil.rmtree(folder() / "state", ignore_errors=True)
    (folder() / "state").mkdir(mode=0o700)
    chance.begin()
    engine.devices.clear()
    engine.devices.update(devices)
    requests.made.clear()
    emergency.ledgers[:] = [ledger]


class Watched(Ledger):
    """Judges each signature as it is made."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def note(self, one: Signed) -> None:
        super().note(one)
        for rule in self.world.AT_ONCE:
            for what in rule(self.world.facts, one):
                self.world.breaks(f"{rule.__name__.removesuffix('_at_once')}: {what}")


class World:
    """Runs a script once."""

    LOOP: ClassVar[type[Loop]] = Loop
    RULES: ClassVar[tuple[Rule, ...]] = RULES
    AT_ONCE: ClassVar[tuple[SignedRule, ...]] = (one_digest_at_once,)
    """Rules of a signature, judged as it is made."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.chance = Chance(script.seed)
        self.clock = Clock()
        self.loop = self.LOOP(self.chance, self.clock)
        self.ledger = Watched(self)
        self.begin_ns = self.clock.ns
        keys = {one.key: Key.of(one.key) for one in script.members}
        self.facts = Facts(script, self.ledger, {name: key.public_key for name, key in keys.items()})
        self.outcome = Outcome()
        self.devices = {
            one.name: Device(one.name, [keys[one.key]], one.usual_ns, self.chance, self.clock, self.ledger)
            for one in script.members
        }
        for device in self.devices.values():
            device.tell, device.touched = self.tell, self.facts.touched

    def run(self) -> Outcome:
        """Run it, and judge it."""
        prepare(self.chance, self.ledger, self.devices)
        with self._running():
            try:
                self.loop.run_until_complete(self._life())
            except Broke:
                pass
            except (Stuck, HsmError) as error:
                self.outcome.broken.append(f"alive: {type(error).__name__}: {error.args[0]}")
            else:
                self._count_what_is_left()
        if not self.outcome.broken:
            self.outcome.broken = broken(self.facts, self.RULES)
        return self.outcome

    @contextmanager
    def _running(self) -> Iterator[None]:
        clock.run(self.clock)
        threads.worlds[:] = [self.loop]
        try:
            yield
        finally:
            threads.worlds.clear()
            clock.rest()
            self._abandon()
            self.loop.close()

    def _abandon(self) -> None:
        """Let nothing of a world that failed speak when it is collected."""
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False

    def breaks(self, what: str) -> None:
        """The law is broken now."""
        if not self.outcome.broken:
            self.outcome.broken.append(what)
            self.tell("law", what)
            self.loop.happens(0, self._break_off)

    def _break_off(self) -> None:
        raise Broke

    def tell(self, who: str, what: str) -> None:
        self.outcome.story.append(f"{self.clock.shown:11.6f} {who:>8} {what}")

    # ---- life ------------------------------------------------------------------------------------------------------

    async def _life(self) -> None:
        manager = KeyManager(config_of(self.script))
        self.tell("host", f"starts; turns are {self.chance.order.kind}")
        await manager.initialize()
        begin = self.clock.ns
        for fault in self.script.faults:
            self._strike(replace(fault, at_ns=begin + fault.at_ns))
        for at, lasts in self.script.stalls:
            self.loop.call_later(at / SECOND, self._stall, lasts)
        callers = [asyncio.ensure_future(self._call(manager, begin, intent)) for intent in self.script.intents]
        if self.script.closes_ns is None:
            await asyncio.gather(*callers)
        else:
            await asyncio.sleep(self.script.closes_ns / SECOND)
        self.tell("host", "closes")
        self.facts.closed_ns = self.clock.ns
        await manager.close()
        self.facts.shut_ns = self.clock.ns
        self.tell("host", "is closed")
        await asyncio.gather(*callers)

    def _strike(self, fault: Fault) -> None:
        self.facts.faults.append(fault)
        device = self.devices[fault.member]
        device.faults.append(fault)
        self.loop.happens(fault.at_ns - self.clock.ns, lambda: self.tell(fault.member, f"FAULT {fault}"))
        after = fault.at_ns + fault.lasts_ns - self.clock.ns
        self.loop.happens(after, lambda: self.tell(fault.member, f"{fault.kind} is over"))

    def _stall(self, lasts: int) -> None:
        self.tell("host", f"STANDS STILL for {lasts / SECOND:.3f} s")
        self.facts.stalls.append((self.clock.ns, self.clock.ns + lasts))
        self.loop.stall(lasts)

    def _count_what_is_left(self) -> None:
        now = asyncio.all_tasks(self.loop)
        self.facts.left["tasks"] = len(now)
        self.facts.left["errors that no one took"] = len(self.loop.failures)
        for one in requests.made:
            waiting = sum(ask.claimed for ask in one.all)  # a slot may be left: a call that hangs in the module
            self.facts.left[f"callers of {one.member}"] = waiting + len(one.asks) + one.waiting

    # ---- callers ---------------------------------------------------------------------------------------------------

    async def _call(self, manager: KeyManager, begin: int, intent: Intent, first: int = 0) -> None:
        await asyncio.sleep((begin + intent.at_ns - self.clock.ns) / SECOND)
        wanted = list(intent.messages)
        for number, attempt in enumerate(intent.tries, first):
            now, limit = self.clock.ns, int(attempt.timeout * SECOND)
            answers = [Answer(intent.number, number, one, now, limit, attempt.any_key, intent.shared) for one in wanted]
            self.facts.answers += answers
            self.facts.calls.setdefault(intent.number, []).extend(answers)
            wanted = await self._try(manager, f"call {intent.number}.{number}", attempt, wanted, answers)
            if not wanted:
                return
            await asyncio.sleep(intent.pause_ns / SECOND)

    async def _try(
        self, manager: KeyManager, who: str, attempt: Try, wanted: list[bytes], answers: list[Answer]
    ) -> list[bytes]:
        """Make one call. Returns the messages that have no signature."""
        self.tell(who, f"{attempt.kind} {len(wanted)}, timeout {attempt.timeout} s, any key: {attempt.any_key}")
        task = asyncio.ensure_future(self._ask(manager, attempt, wanted, answers))
        if attempt.leaves_ns is not None:
            leaving = self.loop.call_later(attempt.leaves_ns / SECOND, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            for one in answers:
                _end(one, None, self.clock.ns)
        if attempt.leaves_ns is not None:
            leaving.cancel()
        self.tell(who, ", ".join(sorted({_shown(one) for one in answers})))
        for what in broken_by(self.facts, answers):
            self.breaks(what)
        return [one.message for one in answers if not isinstance(one.result, (bytes, Receipt))]

    async def _ask(self, manager: KeyManager, attempt: Any, wanted: list[bytes], answers: list[Answer]) -> None:
        asks: dict[str, Callable[[], Any]] = {
            "sign": lambda: manager.sign(wanted[0], attempt.timeout, allow_other_key=attempt.any_key),
            "receipt": lambda: manager.sign_with_receipt(wanted[0], attempt.timeout, allow_other_key=attempt.any_key),
            "many": lambda: manager.sign_many(wanted, attempt.timeout, return_exceptions=True),
        }
        kind = "many" if len(wanted) > 1 else attempt.kind
        try:
            result = await asks[kind]()
        except Exception as error:  # noqa: BLE001  # the law says which may come
            for one in answers:
                _end(one, error, self.clock.ns)
            return
        for one, found in zip(answers, result if kind == "many" else [result], strict=True):
            _end(one, found, self.clock.ns)


def _end(answer: Answer, result: Any, now: int) -> None:
    answer.result, answer.ended_ns, answer.ends = result, now, answer.ends + 1


def _shown(answer: Answer) -> str:
    result = answer.result
    if isinstance(result, Exception):
        return f"{type(result).__name__}{' (maybe signed)' if getattr(result, 'maybe_signed', False) else ''}"
    if isinstance(result, Receipt):
        return f"signed by {result.member}"
    return "left" if result is None else "signed"


def config_of(script: Any, **beside: Any) -> Any:
    """The configuration of a host. `beside`: what stands beside its key manager."""
    return loaded(document_of(script, **beside))


def document_of(script: Any, **beside: Any) -> bytes:
    """As `config_of`, as it stands in a file."""

    def provider(member: Any) -> dict[str, Any]:
        place = {"modulePath": str(folder() / "module.so"), "tokenLabel": member.name, "keyLabel": member.key}
        return {"type": "pkcs11", "config": {**place, "sessions": 2, "verifySignatures": "always"}}

    first, *rest = script.members
    failover = dict(script.failover)
    for level in ("primary", "secondary"):
        if members := [provider(one) for one in rest if one.level == level]:
            failover[level] = members
    state: dict[str, Any] = {"stateFile": str(folder() / "state" / "state.db")}
    if "audit" in script.options:
        state["auditLogFile"] = str(folder() / "state" / "audit.jsonl")
    if rotation := getattr(script, "rotation", None):
        state["keyRotation"] = rotation
    key_manager = {**provider(first), **script.options, **state, "failover": failover}
    return orjson.dumps({"keyManager": key_manager, **beside})


@lru_cache(64)
def loaded(config: bytes) -> Any:
    return load(orjson.loads(config))
