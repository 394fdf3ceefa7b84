"""A look at the state store beside a running signer costs the signer nothing that it commits afterwards.

`python -m tests.chaos.looks --seeds 0-199`. Each seed chooses looks (commands of the real command line, each in a
process of its own, and requests and actions of the console), some of them killed, and acts in between: a rotation,
emergency signatures, a drain, a forced level. Then the signer is killed with SIGKILL. All that it had committed by then
must be in the store, and the next signer goes on from there.

The process of a chunk has everything loaded and forks a child for each signer and each command.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from tests.support.chaos import send_signal
from tests.support.seeds import added, parse, run_seeds
from tests.support.softhsm import Folder, Token, find_module, make_token
from tests.support.web import ask

import hsmcore
from hsmcore.cli import main as command_line
from hsmcore.failover import health
from hsmcore.failover.history import History
from hsmcore.manager.rotation import service
from hsmcore.manager.rotation.store import Rotations
from hsmcore.serve import attached
from hsmcore.state import Desired, Keys, Store

OPERATOR = "o" * 40
SECONDS = 60.0
MOST = 400
"""The emergency budget."""
LOOKS = (
    *(("failover", "status"), ("failover", "history"), ("emergency", "status"), ("rotate", "status")),
    *(("rotate", "history"), ("rotate", "plan"), ("keys", "list"), ("backup", "list"), ("audit", "verify")),
    *(("sign", "--text", "beside"), ("doctor",)),
)
PAGES = ("/", "/readyz", "/metrics", "/api/state", "/api/audit", "/api/session")


async def committed(store: Store) -> dict[str, Any]:
    """What must not be lost, as the store has it. Wishes for rotations are taken out when they are followed."""
    episodes = await store.run(
        lambda connection: [
            tuple(row) for row in connection.exec_driver_sql("SELECT id, reserved FROM emergency_episode")
        ]
    )
    return {
        "keys": {str(key.version): key.key_id for key in await Keys(store).all()},
        "signs": next((key.key_id for key in await Keys(store).all() if key.state == "active"), None),
        "rotations": [rotation.id for rotation in await Rotations(store).last(99)],
        "wishes": {name: wish.value for name, wish in (await Desired(store).all()).items() if "rotate" not in name},
        "events": [row["id"] for row in await History(store).query()],
        "reserved": {str(number): units for number, units in episodes},
    }


def lost(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What was there before and is not any more."""
    found = [name for name in ("signs", "wishes") if before[name] != after[name]]
    found += [name for name in ("rotations", "events") if not set(before[name]) <= set(after[name])]
    found += ["keys"] if not before["keys"].items() <= after["keys"].items() else []
    spent = after["reserved"]
    return found + ["budget" for number, units in before["reserved"].items() if spent.get(number, -1) < units]


# ---- the signer ------------------------------------------------------------------------------------------------------


async def _signer(config: dict[str, Any], orders: int, answers: int) -> None:
    """Obey: each line of `orders` is a command, each line of `answers` its answer as JSON."""
    async with hsmcore.create_key_manager(config) as manager, attached(manager) as site:
        store = await Store.open(config["sequencer"]["keyManager"]["stateFile"])

        async def answer(verb: str, argument: str) -> Any:
            if verb == "rotate":
                return await manager.rotate_key()
            if verb == "level":
                return (await manager.sign_with_receipt(argument.encode(), 20.0)).level
            if verb == "many":
                return len(await manager.sign_many([f"{argument} {n}".encode() for n in range(int(argument))], 20.0))
            return await committed(store) | {"current": await manager.get_current_key_id()}

        os.write(answers, json.dumps(site.address).encode() + b"\n")
        with os.fdopen(orders) as lines:
            while line := await asyncio.to_thread(lines.readline):
                verb, _, argument = line.strip().partition(" ")
                os.write(answers, json.dumps(await answer(verb, argument)).encode() + b"\n")


def _forked(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  # the child ends here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Signer:
    """A key manager with a console in a process of its own, which is killed at the end."""

    def __init__(self, config: dict[str, Any]) -> None:
        (theirs, self._orders), (self._answers, answers) = os.pipe(), os.pipe()

        def live() -> None:
            os.close(self._orders)
            os.close(self._answers)
            health.FOLLOW_S, service.LOOK_SECONDS = 0.05, 0.05
            asyncio.run(_signer(config, theirs, answers))

        self.pid = _forked(live)
        os.close(theirs)
        os.close(answers)
        self._rest = b""
        self.address = str(self._read())

    def ask(self, command: str) -> Any:
        os.write(self._orders, command.encode() + b"\n")
        return self._read()

    def _read(self) -> Any:
        until = time.monotonic() + SECONDS
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            ready = select.select([self._answers], [], [], max(left, 0))[0]
            text = os.read(self._answers, 1 << 20) if ready else b""
            if not text:
                raise AssertionError("the signer ended" if ready else "the signer does not answer")
            self._rest += text
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def deleted(self) -> list[str]:
        """Its open files of the store that have no name any more."""
        found = []
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed just now
                found.append(os.readlink(link))  # noqa: PTH115
        return [name for name in found if "state.db" in name and name.endswith("(deleted)")]

    def kill(self) -> None:
        send_signal(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._orders)
        os.close(self._answers)


# ---- what looks and acts ---------------------------------------------------------------------------------------------


class Seed:
    """One run."""

    def __init__(self, number: int, folder: Path, token: Token) -> None:
        self.chance, self.folder, self.member = random.Random(number), folder, f"softhsm:{token.label}"
        self.config = token.config(
            settings={"sessions": 1},
            maxCacheSize=0,
            requestTimeoutMs=200,
            stateFile=str(folder / "state.db"),
            auditLogFile=str(folder / "audit.log"),
            failover={
                "emergencyModeEnabled": True,
                "primaryRetryIntervalMs": 50,
                "emergencyModeRestrictions": {"maxTransactions": MOST},
            },
            keyRotation={"overlapDays": 1, "backupPolicy": "warn"},
            monitoring={"listen": "127.0.0.1:0", "operatorToken": OPERATOR},
        )
        (folder / "config.json").write_text(json.dumps(self.config))
        self.did: list[str] = []
        self.drained = False

    def command(self, *words: str, dies: bool = False) -> int:
        """A command of the command line. Returns its exit code."""
        self.did.append(" ".join(words) + (" (killed)" if dies else ""))

        def run() -> None:
            with (self.folder / "said").open("ab") as said:
                for number in (1, 2):
                    os.dup2(said.fileno(), number)
            sys.argv = ["hsmcore", *words, "--config", str(self.folder / "config.json"), "--json"]
            command_line()

        pid = _forked(run)
        if dies:
            time.sleep(self.chance.uniform(0, 0.4))
            os.kill(pid, signal.SIGKILL)  # not waited for yet: the number is still its own
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def look(self, signer: Signer) -> None:
        """A command, or something at the console."""
        if self.chance.random() < 0.6:
            self.command(*self.chance.choice(LOOKS), dies=self.chance.random() < 0.2)
            return
        if self.chance.random() < 0.5:
            path, method, body = self.chance.choice(PAGES), "GET", None
        else:
            name, needs = self.chance.choice(
                [("readmit", {"member": self.member}), ("release", {}), ("rotate-abort", {})]
            )
            path, method, body = f"/api/actions/{name}", "POST", json.dumps({**needs, "reason": "a look"}).encode()
        self.did.append(f"{method} {path}")
        assert ask(signer.address, path, method, token=OPERATOR, body=body).status < 500

    def act(self, signer: Signer) -> None:
        """Something that the signer commits."""
        kind = self.chance.choice(["rotate", "emergency", "drain", "force"])
        if self.drained:
            self.drain(signer, back=True)
        self.did.append(f"act {kind}")
        if kind == "rotate":
            new = signer.ask("rotate")
            assert signer.ask("facts")["current"] == new
        elif kind == "force":
            assert self.command("failover", "force", "primary", "--reason", "an act") == 0
        else:
            self.drain(signer)
        if kind == "emergency":
            count = self.chance.randint(1, 60)
            assert signer.ask(f"many {count}") == count
            self.drain(signer, back=True)

    def drain(self, signer: Signer, *, back: bool = False) -> None:
        """Drain the member, or put it back, and wait until the signer has followed."""
        more = ("--undo",) if back else ("--reason", "an act", "--yes")
        assert self.command("failover", "drain", self.member, *more) == 0
        self.drained = not back
        level = "primary" if back else "emergency"
        self.wait(lambda: signer.ask(f"level {self.chance.random()}") == level, f"{level} signs")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < until, f"never: {what}"
            time.sleep(0.02)

    def run(self) -> None:
        signer = Signer(self.config)
        try:
            for _ in range(self.chance.randint(1, 2)):
                self.look(signer)
                self.act(signer)
            if self.chance.random() < 0.3:
                self.look(signer)
            assert signer.deleted() == []
            before = signer.ask("facts")
        finally:
            signer.kill()
        self.did.append("kill")
        signer = Signer(self.config)
        try:
            after = signer.ask("facts")
            gone = lost(before, after)
            assert gone == [], (gone, before, after)
            assert signer.ask("level z") == ("emergency" if self.drained else "primary")
            if not self.drained:
                assert after["current"] == after["signs"] == before["current"]
        finally:
            signer.kill()


def run_chunk(seeds: list[int]) -> NoReturn:
    """Print the verdict."""
    module = find_module()
    assert module is not None, "SoftHSM is not installed"
    total: dict[str, Any] = {"schedules": 0, "faults": {}, "notes": []}
    tokens = Folder()
    try:
        for number in seeds:
            # Of its own: every rotation makes a key.
            token = make_token(tokens, module, ({"name": "ed25519", "kind": "ed25519"},))
            folder = Path(tempfile.mkdtemp(prefix="hsmcore-looks-"))
            os.environ["XDG_STATE_HOME"] = str(folder / "state-home")
            seed = Seed(number, folder, token)
            verdict: dict[str, Any] = {"schedules": 1, "faults": Counter()}
            try:
                seed.run()
            except Exception as error:  # noqa: BLE001  # the verdict has it
                verdict["faults"]["failed"] += 1
                text = f"seed {number}: {', '.join(seed.did)}: {type(error).__name__}: {error}"
                verdict["notes"] = [text[:2000]]
            total = added([total, verdict])
            token.remove()
            shutil.rmtree(folder)
    finally:
        tokens.remove()
    total["faults"] = {name: count for name, count in total["faults"].items() if count}
    json.dump(total, sys.stdout)
    sys.stdout.flush()
    sys.exit(0)


def main() -> int:
    asked = parse("Look at the state store beside a signer that is killed.")
    if asked.chunk:
        run_chunk(json.load(sys.stdin)[0])
    return run_seeds(asked, "tests.chaos.looks", 4)


if __name__ == "__main__":
    sys.exit(main())
