"""A host over a week beside operators: their commands are the real ones, while the host signs, stops and starts."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, ClassVar, Final

from tests.simulation import commands, disk_world, journal
from tests.simulation.clock import SECOND
from tests.simulation.commands import Done, Shell
from tests.simulation.law_operator import AT_ONCE, OPERATOR_RULES, OperatorFacts, Ran
from tests.simulation.levels import LevelsWorld
from tests.simulation.levels_script import Moment
from tests.simulation.operator_script import APPROVERS, STRANGER, Shift, Typed, approver
from tests.simulation.world import document_of, folder, loaded

from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import segments

WHY: Final = ("--reason", "a simulated day")
_FORGED: Final = {
    "policy": "UPDATE watermark SET floor = 0 WHERE floor > 0",
    "budget": "UPDATE emergency_episode SET reserved = 0 WHERE reserved > 0",
    "orders": "DELETE FROM desired_state",
    "ring": "UPDATE key_version SET note = 'another word' WHERE note <> 'another word'",
}
"""What a writer of the file may do to the rows of a scope."""


class OperatorWorld(LevelsWorld):
    """Runs a script once."""

    RULES: ClassVar = OPERATOR_RULES
    AT_ONCE: ClassVar = AT_ONCE
    FACTS: ClassVar = OperatorFacts
    LOOK_S: ClassVar = 0.5
    script: Shift
    facts: OperatorFacts

    def __init__(self, script: Shift) -> None:
        super().__init__(script)
        self.shift = script
        self.starts = self.known = 0
        self.place = folder() / "operator"
        self.layout = Layout(folder() / "state" / "audit.jsonl")

    def run(self) -> Any:
        import shutil

        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        journal.made.clear()
        try:
            return super().run()
        finally:
            commands.bury()

    def _after_kill(self) -> None:
        for one in journal.made:
            one.kill()
        journal.made.clear()
        super()._after_kill()

    # ---- commands --------------------------------------------------------------------------------------------------

    async def _moment(self, moment: Moment) -> None:
        number = self.at - 1
        self.asked += [asyncio.ensure_future(self._type(one)) for at, one in self.shift.typed if at == number]
        await super()._moment(moment)

    async def _type(self, one: Typed) -> None:
        await asyncio.sleep(one.at_ns / SECOND)
        await COMMANDS[one.command](self, random.Random(one.chance))

    async def run_command(self, path: str, *words: str, what: Any = None) -> Ran:
        """Run a command, and note what becomes of it. `words`: those behind its name."""
        ran = Ran(path, words, self.clock.ns, what=what)
        self.facts.ran.append(ran)
        self.tell("operator", f"hsmcore {path} {' '.join(words)}".replace(str(folder()), ""))
        config = self.place / "config.json"
        config.write_bytes(self._document())
        done: Done = await Shell(config, (*path.split(), *words)).done()
        ran.ended_ns, ran.code, ran.result = self.clock.ns, done.code, done.result
        said = (done.said.strip().splitlines() or [""])[-1]
        self.tell("operator", f"{path}: {done.code} {said[:160]}".replace(str(folder()), ""))
        if "Traceback" in done.said:
            self.breaks(f"told: {path} ends with a traceback")
        return ran

    def _config(self) -> Any:
        return loaded(self._document())

    def _document(self) -> bytes:
        sealed = {"stateSecret": {"env": disk_world.SECRET}} if self.shift.is_sealed else {}
        rotation = self.script.rotation
        if self.shift.backs_up:
            rotation = {**rotation, "backupLocation": str(self.place / "backups")}
        return document_of(replace(self.script, rotation=rotation), **sealed)

    def _names(self) -> list[str]:
        """The members, as operators name them."""
        return [f"pkcs11:{one.name}" for one in self.script.members]

    async def _approve(self, rng: random.Random) -> None:
        asked = await self.run_command("rotate approve", what=(0, "", "is printed"))
        text = asked.result
        if asked.code or not text:
            return
        asked.code = -1  # it approves nothing
        number = int(text.split("rotation: ")[1].split()[0])
        name, key, wrong = rng.choice(APPROVERS), "", ""
        chance = rng.random()
        if chance < 0.15:
            key, wrong = STRANGER, "a stranger has signed"
        elif chance < 0.3:
            text, wrong = text.replace(f"rotation: {number}", f"rotation: {number + 1}"), "is of another rotation"
        await self._hand_in(number, name, text, key or name, wrong)

    async def _hand_in(self, number: int, name: str, text: str, key: str, wrong: str = "") -> Ran:
        file = self.place / f"{len(self.facts.ran)}.sig"
        file.write_bytes(approver(key).sign(text.encode()).signature)
        words = (str(number), "--as", name, "--signature", str(file))
        return await self.run_command("rotate approve", *words, what=(number, name, wrong))

    async def _approve_all(self) -> None:
        """Have each rotation that waits go on: an operator comes back to it after the last fault."""
        for name in APPROVERS:
            asked = await self.run_command("rotate approve", what=(0, "", "is printed"))
            if asked.code or not asked.result:
                return
            asked.code = -1
            number = int(asked.result.split("rotation: ")[1].split()[0])
            await self._hand_in(number, name, asked.result, name)

    def _key_ids(self) -> list[str]:
        return sorted({key.id.hex() for device in self.devices.values() for key in device.keys})

    async def _export(self, rng: random.Random) -> None:
        await self.run_command("keys export", rng.choice(self._key_ids()), "--output", str(self.place / "key.backup"))

    async def _import(self, _rng: random.Random) -> None:
        if (self.place / "key.backup").exists():
            await self.run_command("keys import", str(self.place / "key.backup"))

    async def _floor(self, rng: random.Random) -> None:
        position = max([0, *self.facts.positions]) - rng.randrange(-1, 4)
        await self.run_command("policy floor set", "block", str(max(position, 0)), *WHY, what=position)

    async def _drain(self, rng: random.Random) -> None:
        member, undo = rng.choice(self._names()), ["--undo"] if rng.random() < 0.5 else []
        await self.run_command("failover drain", member, *WHY, "--yes", *undo)

    async def _restore_key(self, _rng: random.Random) -> None:
        listed = await self.run_command("backup list")
        for one in (listed.result or [])[:1]:
            await self.run_command("backup restore", one["name"])

    async def _seal(self, rng: random.Random) -> None:
        """Look at what the store says, and adopt it: some time later, when it may say something else."""
        if not self.shift.is_sealed:
            return
        shown = await self.run_command("state seal")
        if isinstance(shown.result, dict):
            await asyncio.sleep(rng.choice((0.0, 0.0, 0.3)))
            await self._adopt(shown.result)
        shown.code = -1

    async def _adopt(self, shown: Any) -> None:
        problems = "budget" in shown["problems"]
        await self.run_command("state seal", "--adopt", shown["digest"], what=problems)

    async def _adopt_key(self, _rng: random.Random) -> None:
        """The operator has the chain obey the configured key again."""
        adopted = await self.run_command("rotate adopt")
        if adopted.code == 0:
            self.chain._execute(bytes.fromhex(adopted.result["publicKey"]))

    async def _backup_state(self, _rng: random.Random) -> None:
        self.known = len(self.facts.published)
        await self.run_command("state backup", "--to", str(self.place / "store.hsmstate"))

    async def _restore_state(self, _rng: random.Random) -> None:
        # After a rotation the operator would have to repair the ring by hand.
        if (self.place / "store.hsmstate").exists() and self.known == len(self.facts.published):
            await self.run_command("state verify", str(self.place / "store.hsmstate"))
            await self.run_command("state restore", str(self.place / "store.hsmstate"), "--replace", *WHY)
            await self.run_command("state reconcile", "--ring-compared", *WHY)

    async def _export_state(self, _rng: random.Random) -> None:
        await self.run_command("state export", "--output", str(self.place / "positions.json"))

    async def _import_state(self, _rng: random.Random) -> None:
        if (self.place / "positions.json").exists():
            await self.run_command("state import", str(self.place / "positions.json"))

    # ---- starts ----------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        for at, one in self.shift.offline:
            if at == self.starts:
                await COMMANDS[one.command](self, random.Random(one.chance))
        if self.starts in self.shift.forged:
            await self._forge(random.Random(f"forge/{self.shift.seed}/{self.starts}"))
        self.starts += 1
        await super()._start()

    async def _forge(self, rng: random.Random) -> None:
        """Another program changes rows; an operator finds that, and adopts the store as it is."""
        scope = rng.choice((*_FORGED,))
        path = folder() / "state" / "state.db"
        if not path.exists():
            return
        with closing(sqlite3.connect(path)) as connection:
            changed = connection.execute(_FORGED[scope]).rowcount
            connection.commit()
        self.tell("stranger", f"changes {changed} rows of {scope}")
        self.facts.forged.append((self.clock.ns, scope))
        shown = await self.run_command("state seal")
        if isinstance(shown.result, dict):
            if changed and not shown.code:
                self.breaks(f"adopted: {scope} was changed, and the seal holds")
            shown.code = -1
            await self._adopt(shown.result)
            again = await self.run_command("state seal")
            if again.code:
                self.facts.unsignable.append(f"after its adoption the store has {again.result}")
            again.code = -1

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        await self._callers()
        self._jump(self._calm_ns + 1)
        for name in self._names():
            await self.run_command("failover drain", name, "--undo", *WHY)
        await self.run_command("failover force", "none", *WHY)
        if self.script.failover["emergencyModeEnabled"]:
            await self.run_command("emergency enable", *WHY)
        await super()._settle()

    async def _attend(self) -> None:
        for _ in range(2):  # one that has waited for the night's own is begun after it
            await self._approve_all()
            await asyncio.sleep(8)

    async def _ask_the_ring(self) -> None:
        await super()._ask_the_ring()
        assert self.manager is not None
        rotation = self.manager._background.rotation
        assert rotation is not None
        known = {one.version: one for one in await rotation.keys.all()}
        for one in await rotation.rotations.last(1000):
            self.tell("ring", str([(m.name, m.condition, m.reason, m.key_id) for m in self.manager.members()]))
            self.tell("ring", f"rotation {one.id} ({one.cause}): {one.run.status} at {one.run.step}: {one.error}")
            new = known.get(one.new)
            if new is not None and new.activated_ns is not None:
                self.facts.rotations.append((one.id, one.cause, new.public_key))

    def _count_what_is_left(self) -> None:
        super()._count_what_is_left()
        self.facts.unrecorded = self._unrecorded()

    def _unrecorded(self) -> list[str]:
        """The commands that have changed something and are in no record."""
        known = b"".join(b"".join(segment.chunks()) for segment in segments(self.layout))
        known += (
            b"".join(path.read_bytes() for path in self.layout.spool.iterdir()) if self.layout.spool.exists() else b""
        )
        found = list[str]()
        for path in sorted({one.path for one in self.facts.ran}):
            done = [one for one in self.facts.ran if one.path == path and one.code == 0]
            if path not in READS and known.count(f'"command":"{path}"'.encode()) < len(done):
                found.append(f"{len(done)} times {path}")
        return found


def plain(path: str, *words: str) -> Callable[[OperatorWorld, random.Random], Any]:
    """A command whose words are always the same."""

    async def run(world: OperatorWorld, _rng: random.Random) -> None:
        await world.run_command(path, *words)

    return run


def chosen(path: str, words: Callable[[OperatorWorld, random.Random], tuple[str, ...]]) -> Any:
    """A command whose words are chosen."""

    async def run(world: OperatorWorld, rng: random.Random) -> None:
        await world.run_command(path, *words(world, rng))

    return run


READS: Final = frozenset({"audit checkpoint", "backup list", "backup verify", "state export", "state verify"})
"""Commands that leave no record: they change nothing."""
COMMANDS: Final[dict[str, Callable[[OperatorWorld, random.Random], Any]]] = {
    "rotate now": plain("rotate now", "--no-wait", "--yes", *WHY),
    "rotate approve": OperatorWorld._approve,
    "rotate abort": plain("rotate abort"),
    "rotate adopt": OperatorWorld._adopt_key,
    "rotate clock": plain("rotate clock", *WHY),
    "failover drain": OperatorWorld._drain,
    "failover readmit": chosen("failover readmit", lambda world, rng: (rng.choice(world._names()), *WHY)),
    "failover force": chosen(
        "failover force", lambda _, rng: (rng.choice(("primary", "secondary", "emergency", "none")), "--yes", *WHY)
    ),
    "emergency disable": plain("emergency disable", *WHY),
    "emergency enable": plain("emergency enable", *WHY),
    "emergency reset": plain("emergency reset", *WHY),
    "policy floor set": OperatorWorld._floor,
    "policy rebind": plain("policy rebind", *WHY),
    "keys generate": chosen("keys generate", lambda _, rng: ("--label", f"beside-{rng.randrange(3)}", "--extractable")),
    "keys deactivate": chosen("keys deactivate", lambda world, rng: (rng.choice(world._key_ids()),)),
    "keys export": OperatorWorld._export,
    "keys import": OperatorWorld._import,
    "keys replicate": chosen("keys replicate", lambda world, rng: ("--to", rng.choice(world._names()))),
    "audit checkpoint": plain("audit checkpoint"),
    "backup verify": plain("backup verify"),
    "backup restore": OperatorWorld._restore_key,
    "state backup": OperatorWorld._backup_state,
    "state restore": OperatorWorld._restore_state,
    "state export": OperatorWorld._export_state,
    "state import": OperatorWorld._import_state,
    "state seal": OperatorWorld._seal,
    "state reconcile": plain("state reconcile", *WHY),
    "state begin": chosen("state begin", lambda world, _: (world.facts.obeyed.hex(), *WHY)),
}
"""What an operator does with each command."""
