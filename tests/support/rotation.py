"""Key managers that are killed while they rotate. A process that has everything loaded forks one child after the
other; each opens a key manager, has it finish what the one before left, checks all that must hold, and rotates until
its end.

As a program: `python -m tests.support.rotation`; it reads a JSON line for each child and answers with one:
{"config": …, "kill": point or null, "fails": bool, "delay": seconds, "wish": bool} → {"status": wait status, "error":
text}. `wish`: rotate on an operator's wish in the store instead of a call. With "ahead" it is a life of
rotation_speaking.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from typing import Any, Self

import pytest
from tests.support.zygote import Forked

import hsmcore
from hsmcore.errors import HsmError
from hsmcore.manager.rotation import service
from hsmcore.manager.rotation.machine import NAMES
from hsmcore.manager.rotation.service import RotationService
from hsmcore.members.tokens import sweep
from hsmcore.state import Backups, Desired, StoredKey

DONE = "everything was done"


def cancel_rotation_at(monkeypatch: pytest.MonkeyPatch, point: str) -> list[str]:
    """Cancel the rotation when it first reaches a point of `RotationService.trace`. The list that is returned then
    holds the point."""
    reached: list[str] = []

    def cancel(at: str) -> None:
        if at == point and not reached:
            reached.append(at)
            raise asyncio.CancelledError

    monkeypatch.setattr(RotationService, "trace", staticmethod(cancel))
    return reached


def is_rotating(manager: hsmcore.KeyManager) -> bool:
    """Whether the task that rotates runs: it ends when it is cancelled, and others of the service go on."""
    background = manager._background
    assert background is not None
    assert background.rotation is not None
    return any(task.get_name() == service._FAILED for task in background.rotation._scope._tasks)


class Chain:
    """A chain with one authority, in a file, so that it outlasts the processes that are killed."""

    def __init__(self, path: str, fails: bool) -> None:
        self.path, self.fails = path, fails

    def authority(self) -> str:
        with open(self.path) as file:  # noqa: PTH123  # on the way to a kill: as plain as it gets
            return file.read()

    def _set(self, key: str) -> None:
        with open(self.path + ".new", "w") as file:  # noqa: PTH123
            file.write(key)
        os.replace(self.path + ".new", self.path)  # noqa: PTH105

    async def handover(self, old: Any, new: Any, km: Any) -> None:
        assert self.authority() in (old.id, new.id)
        await new.sign(b"accepted")
        self._set(new.id)
        if self.fails:
            raise RuntimeError("the chain fails after it has switched")

    async def revert(self, old: Any, new: Any, km: Any) -> None:
        assert self.authority() in (old.id, new.id)
        self._set(old.id)

    async def settled(self, old: Any, new: Any) -> str:
        return {old.id: "old", new.id: "new"}[self.authority()]


async def check(manager: Any, rotation: RotationService, chain: Chain) -> None:
    """What holds whenever nothing is under way."""
    keys: list[StoredKey] = await rotation.keys.all()
    active = [key for key in keys if key.state == "active"]
    assert len(active) == 1, [key.state for key in keys]
    assert await manager.get_current_key_id() == active[0].key_id == chain.authority()
    signature = await manager.sign(b"m", timeout=30)
    assert await manager.verify(b"m", signature, key_id=active[0].key_id)
    there = {record.id for record in await manager._path.member.control.list_keys()}
    expected = {key.key_id for key in keys if key.state in ("active", "overlap", "deactivated")}
    assert there == expected, ("keys on the token that no record accounts for", there ^ expected)
    latest = keys[-6:]  # what was before them a life before this one has checked
    assert not any([await sweep(manager._path.member, key.key_id) for key in latest if key.key_id]), "a public half"
    assert await sweep(manager._path.member, "", nameless=True) == 0, "half a key"
    assert all(key.state != "pending" for key in keys)
    rotations = await rotation.rotations.last(8)
    for entry in rotations:
        steps = [step for step in await rotation.rotations.steps(entry.id) if step["outcome"] == "done"]
        assert entry.run.status in ("done", "failed")
        if entry.run.status == "done":
            assert [step["step"] for step in steps] == list(NAMES), "the history is not complete"
            assert all(key.state == "destroyed" for key in keys if key.version == entry.old)
        else:
            assert all(key.state == "destroyed" for key in keys if key.version == entry.new)
    for key in latest:
        if key.activated_ns is not None and manager.config.key_manager.key_rotation.backup_enabled:
            assert key.origin == "configured" or await Backups(rotation._store).of(key.public_key), "no backup"


async def life(request: dict[str, Any]) -> None:
    """Open, finish, check, rotate."""
    kill, delay = request["kill"], request.get("delay", 0.0)

    def trace(point: str) -> None:
        if armed and point == kill:
            if delay:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    armed = False
    service.LOOK_SECONDS = 0.02
    RotationService.trace = staticmethod(trace)
    manager = hsmcore.create_key_manager(request["config"])
    chain = Chain(request["chain"], request["fails"])
    manager.on_rotation(chain)
    async with manager:
        if not os.path.exists(chain.path):  # noqa: PTH110, ASYNC240
            chain._set(await manager.get_current_key_id())
        rotation = manager._background.rotation
        fails, chain.fails = chain.fails, False
        while await rotation.rotations.open():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await check(manager, rotation, chain)
        armed, chain.fails = True, fails
        if kill is not None:
            try:
                if request.get("wish"):
                    await Desired(rotation._store).set(service.ROTATE, "now", "asked for")
                    while service.ROTATE in await Desired(rotation._store).all():  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                else:
                    await manager.rotate_key()
            except HsmError:
                assert fails
            while await rotation.rotations.open():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await asyncio.sleep(delay)


def main() -> None:
    """Fork a child for each request."""
    from tests.support.rotation_speaking import speak  # which needs this module

    for line in sys.stdin:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reading)
                request = json.loads(line)
                asyncio.run(speak(request) if "ahead" in request else life(request))
                os.write(writing, DONE.encode())
            except BaseException:  # noqa: BLE001  # the parent is told, whatever it was
                os.write(writing, traceback.format_exc().encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            text = answer.read().decode()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(json.dumps({"status": status, "error": text}) + "\n")
        sys.stdout.flush()


class Lives:
    """Runs such children. Use as a context manager."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def __enter__(self) -> Self:
        self._process = Forked(
            ["tests.support.rotation"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment,
        )  # fmt: skip
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def live(self, **request: Any) -> bool:
        """Whether the child was killed where it was to be; False if it came to its end without. Raises AssertionError
        with what it found wrong."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        killed = os.WIFSIGNALED(answer["status"]) and os.WTERMSIG(answer["status"]) == signal.SIGKILL
        assert killed or answer["error"] == DONE, answer["error"]
        return killed


if __name__ == "__main__":
    main()
