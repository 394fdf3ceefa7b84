"""AWS KMS goes wrong under load: what callers are refused while a member can sign."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.support.kms.keys import Key
from tests.support.kms.server import KmsServer
from tests.support.kms.settings import config
from tests.support.levels import QUICK
from tests.support.managers import becomes, opened
from tests.support.verifiers import is_good

import hsmcore

CALLERS: Final = 16
FOREVER: Final = 10**9


@dataclass(frozen=True)
class Fault:
    """`begin` and `end` change the service or the key. `hides`: no signature comes from it meanwhile."""

    begin: Callable[[KmsServer, Key], None]
    end: Callable[[KmsServer, Key], None]
    hides: bool


def _state(state: str) -> Callable[[KmsServer, Key], None]:
    return lambda _server, key: setattr(key, "state", state)


def _clock(ahead: float) -> Callable[[KmsServer, Key], None]:
    return lambda server, _key: setattr(server.faults, "clock_ahead", ahead)


def _refused(name: str, times: int) -> Callable[[KmsServer, Key], None]:
    return lambda server, _key: server.faults.error(name, times=times)


def _over(server: KmsServer, _key: Key) -> None:
    server.faults.queue.clear()


FAULTS: Final = {
    "disabled": Fault(_state("Disabled"), _state("Enabled"), True),
    "pending deletion": Fault(_state("PendingDeletion"), _state("Enabled"), True),
    "throttled": Fault(_refused("ThrottlingException", FOREVER), _over, True),
    "credentials refused once": Fault(_refused("ExpiredTokenException", 1), _over, False),
    "clock off by 10 min": Fault(_clock(600.0), _clock(0.0), False),
}
ARRANGEMENTS: Final = ("alone", "chain", "two of one key")


@dataclass
class Row:
    """What callers saw while the fault was on, and after it."""

    signed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    left: list[bytes] = field(default_factory=list)
    """Messages that were refused."""
    sent: int = 0
    """Signing requests that KMS counted."""

    def __str__(self) -> str:
        total = sum(self.refused.values())
        return f"{total} refused of {total + self.signed} {dict(self.refused) or ''}, {self.sent} requests to KMS"


def arranged(how: str, kms: KmsServer, elsewhere: KmsServer, folder: Path, token: dict[str, Any]) -> Any:
    """The configuration, and the key that the fault is about. `token`: a provider of another kind."""
    key = kms.store.make()
    block: dict[str, Any] = {**QUICK}
    rules: dict[str, Any] = {"maxCacheSize": 0, "stateFile": str(folder / "state.db")}
    if how == "chain":
        block |= {"secondary": [token], "acceptOtherKeys": ["secondary"]}
    if how == "two of one key":
        twin = replace(key)
        twin.private = key.private
        elsewhere.store.keys[twin.id] = twin
        block |= {"primary": [{**config(elsewhere, key.id)["keyManager"], "name": "the other region"}]}
    if how != "alone":
        rules["failover"] = block
    return config(kms, key, **rules), key


async def under(
    fault: Fault, how: str, given: Any, kms: KmsServer, key: Key, *, least: int, seconds: float, patience: float
) -> Row:
    """Sign with CALLERS at once, at least `least` messages each and for `seconds`, while the fault is on: it ends when
    the last of these requests has ended, so none of them outlasts it. `patience`: seconds to each deadline."""
    row, loop = Row(), asyncio.get_running_loop()
    async with opened(given) as manager:

        async def sign(message: bytes, seconds: float) -> bool:
            try:
                receipt = await manager.sign_with_receipt(message, seconds)
            except hsmcore.HsmError as error:
                row.refused[type(error).__name__] += 1
                row.left.append(message)
                return False
            assert is_good("ed25519", receipt.public_key, message, receipt.signature)
            row.signed += 1
            return True

        async def caller(name: int, until: float) -> None:
            number = 0
            while number < least or loop.time() < until:
                await sign(b"%d, %d" % (name, number), patience)
                number += 1

        assert await sign(b"before", 30)
        kms.calls.clear()
        fault.begin(kms, key)
        until = loop.time() + seconds
        await asyncio.gather(*(caller(name, until) for name in range(CALLERS)))
        row.signed -= 1
        row.sent = kms.calls["Sign"]
        fault.end(kms, key)
        seen = replace(row, refused=Counter(row.refused), left=list(row.left))
        for message in (*row.left[:CALLERS], b"after"):  # what it refused is bound to nothing
            await becomes(partial(sign, message, 5))
    return seen
