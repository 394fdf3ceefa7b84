"""One host of a fleet in a process of its own, told what to do line by line.

python -m tests.support.fleet_member CONFIG.json
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import uvloop
from tests.support.paths import ROOT
from tests.support.zygote import Forked

import hsmcore
from hsmcore.errors import HsmError, NotHolder


class FleetMember:
    """The process, from outside. `host`: its name in the fleet."""

    def __init__(self, folder: Path, config: Mapping[str, Any], host: str) -> None:
        whole: dict[str, Any] = json.loads(json.dumps(config))
        whole["sequencer"]["keyManager"]["fleet"].setdefault("host", host)
        path = folder / f"{host}.json"
        path.touch(0o600)
        path.write_text(json.dumps(whole))
        self.host, self.log = host, folder / f"{host}.stderr"
        with self.log.open("ab") as log:
            self._process = Forked(
                ["tests.support.fleet_member", str(path)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def begun(self) -> Self:
        """Wait until it is open."""
        self._answer()
        return self

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something. Returns the answer; `error`: the name of what was raised."""
        self.tell(do, **arguments)
        return self._answer()

    def tell(self, do: str, **arguments: Any) -> None:
        """As `ask`; the answer is taken by `answer`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.host} ended: {self.log.read_text()[-3000:]}"
        found: dict[str, Any] = json.loads(line)
        return found

    answer = _answer

    def sign(self, message: bytes, **arguments: Any) -> dict[str, Any]:
        """Have it sign."""
        return self.ask("sign", message=message.hex(), **arguments)

    def until_signed(self, message: bytes, **arguments: Any) -> bytes:
        """Have it sign, again and again while it is not the holder."""
        while "error" in (found := self.sign(message, **arguments)):
            passing = ("NotHolder", "StoreError", "StoreUnknown", "FleetBehind", "DeadlineExceeded")
            assert found["error"] in passing, found
            time.sleep(0.005)
        return bytes.fromhex(found["signature"])

    def until(self, state: str) -> dict[str, Any]:
        """Wait until it is in a state."""
        while (found := self.ask("state"))["state"] != state:
            time.sleep(0.01)
        return found

    def signal(self, number: int) -> None:
        """Send it a signal; SIGSTOP: wait until it has stopped."""
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            while Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
                time.sleep(0.001)

    def kill(self) -> None:
        """As a crash."""
        self._process.kill()
        self._wait()

    def close(self) -> None:
        """End it in order, if it is still there."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._wait()

    def _wait(self) -> None:
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            for end in (self._process.stdin, self._process.stdout):
                if end is not None:
                    end.close()


async def main(config: dict[str, Any]) -> None:
    """Do what the lines say, one after another, until they end."""
    loop = asyncio.get_running_loop()
    async with hsmcore.create_key_manager(config) as manager:
        _say(key=manager.public_key.hex())
        while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
            asked = json.loads(line)
            try:
                _say(**await _do(manager, asked.pop("do"), **asked))
            except HsmError as error:
                more = {name: getattr(error, name) for name in ("holder", "epoch", "position") if hasattr(error, name)}
                _say(error=type(error).__name__, text=str(error), **more)


async def _do(manager: hsmcore.KeyManager, do: str, **arguments: Any) -> dict[str, Any]:
    fleet = manager.fleet
    assert fleet is not None
    if do == "sign":
        message = bytes.fromhex(arguments.pop("message"))
        return {"signature": (await manager.sign(message, **arguments)).hex()}
    if do == "many":
        messages = [bytes.fromhex(message) for message in arguments["messages"]]
        answers = await manager.sign_many(messages, return_exceptions=True)
        return {"answers": [one.hex() if isinstance(one, bytes) else type(one).__name__ for one in answers]}
    if do == "batch":
        signed = await asyncio.gather(*(manager.sign_batched(one.encode()) for one in arguments["messages"]))
        return {"proofs": [one.proof.decode() for one in signed], "numbers": [one.index for one in signed]}
    if do == "load":
        return {"rate": await _load(manager, **arguments)}
    if do in ("claim", "release"):
        await getattr(fleet, do)(**arguments)
    elif do == "caught_up":
        fleet.caught_up(**arguments)
    elif do == "unfinished":
        found = await fleet.unfinished(arguments["domain"])
        shown = [one.hex() if isinstance(one, bytes) else one for one in found] if found is not None else None
        return {"unfinished": shown}
    elif do == "records":
        return {"records": [record async for record in manager.audit.query(match=arguments)]}
    return fleet.describe()


async def _load(manager: hsmcore.KeyManager, seconds: float, callers: int, stream: int) -> float:
    """Have messages that are in no other stream signed for so long. Returns how many were, a second."""
    begun, numbers, done = time.monotonic(), itertools.count(), 0

    async def caller() -> None:
        nonlocal done
        while time.monotonic() < begun + seconds:
            try:
                await manager.sign(b"hsmcore %08d %032d" % (stream, next(numbers)))
                done += 1
            except NotHolder:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.monotonic() - begun)


def _say(**answer: Any) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    uvloop.run(main(json.loads(Path(sys.argv[1]).read_text())))
