"""Key managers that rotate one key at the same time, each in a process of its own, as a fleet's hosts do.

As a program: the first line of standard input is the configuration, each later one opens a key manager, or closes it;
each line of standard output is an answer. So the database's password is in no argument.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

from tests.support.told import Told

import hsmcore
from hsmcore.errors import HsmError, TokenNotFound
from hsmcore.state import StoreBusy, StoreError


class Racer(Told):
    """Such a process."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__("tests.support.rotation_racer")
        self._config = config

    def __enter__(self) -> Self:
        super().__enter__()
        self._tell(self._config)
        return self

    def __exit__(self, *_exc: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # it closes its key manager, and ends
        try:
            self.process.wait(60)
        finally:
            super().__exit__()

    def tell_rotate(self, known: int, current: str) -> None:
        """Have it open a key manager and rotate at once, which `answer` answers: the new key's id, or an error.
        `known`: the number of keys that there are, of which `current` signs."""
        self._tell([known, current])

    def tell_close(self) -> None:
        """Have it close that, once another key signs: the answer is its id, and the number of keys on the token."""
        self._tell("close")

    def _tell(self, what: Any) -> None:
        self.write(json.dumps(what))


async def _main() -> None:
    config = json.loads(sys.stdin.readline())
    _say(True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        known, before = json.loads(line)
        manager = await _opened(config)
        try:
            _say(await _rotate(manager, known))
            await asyncio.to_thread(sys.stdin.readline)
            while (now := await manager.get_current_key_id()) == before:  # noqa: ASYNC110  # until it follows the winner
                await asyncio.sleep(0.02)
            found = len(await manager._path.member.control.list_keys())
        finally:
            await manager.close()
        _say([now, found])


async def _rotate(manager: hsmcore.KeyManager, known: int) -> str:
    """Rotate, and return the new key's id, or the name of the error's class. `known`: the keys of the ring before. A
    host for which the machine has no time loses its transaction, and asks again if it began nothing."""
    rotation: Any = manager._background.rotation
    while True:
        try:
            return await manager.rotate_key("a race")
        except StoreBusy as error:
            return type(error).__name__
        except HsmError as error:
            with suppress(StoreError):
                if len(await rotation.keys.all()) > known:
                    return type(error).__name__


async def _opened(config: dict[str, Any]) -> hsmcore.KeyManager:
    while True:
        manager = hsmcore.create_key_manager(config)
        try:
            await manager.initialize()
        except (StoreError, TokenNotFound):
            # As in _rotate; and SoftHSM writes its token's file at each login: who starts meanwhile may read it half.
            await manager.close()
            await asyncio.sleep(0.02)
        else:
            return manager


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main())
