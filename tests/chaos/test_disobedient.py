"""A module that does what no module may: the application goes on, and so do the signatures."""

from __future__ import annotations

from asyncio import gather
from functools import partial
from typing import Any

import pytest
from tests.support.chaos import wrap_noop
from tests.support.disobedient import ACTIONS, SURVIVED, Disobedient
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.paths import NOOP

import hsmcore
from hsmcore.errors import HsmError, MemberDown

pytestmark = [
    pytest.mark.integration,
]
LONG = 60.0
"""Seconds that no test waits for."""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Disobedient:
    return Disobedient(str(NOOP), tmp_path_factory.mktemp("disobedient"))


async def signs(manager: hsmcore.KeyManager, seconds: float) -> bool:
    try:
        await manager.sign(b"hsmcore again", seconds)
    except HsmError:
        return False
    return True


def config(module: Disobedient, mode: str) -> dict[str, Any]:
    own = {**wrap_noop().settings, "modulePath": module.path, "isolation": mode, "sessions": 2}
    rules = {"verifySignatures": "always"}
    return {"sequencer": {"keyManager": {"type": "pkcs11", "config": {**own, **rules}, "maxCacheSize": 0}}}


@pytest.mark.parametrize("mode", ["thread", "process"])
@one_loop
async def test_a_module_that_ends_every_worker_s_thread_stops_nothing(module: Disobedient, mode: str):
    module.write(1, [], 0, 0)
    async with opened(config(module, mode)) as manager:
        module.write(1, ["end-thread"], 1_000_000, 2)
        for number in range(2):
            with pytest.raises(MemberDown):
                await manager.sign(b"hsmcore end %d" % number, LONG)
        await manager.sign(b"hsmcore after", LONG)


@pytest.mark.parametrize(
    ("mode", "action"), [*(("thread", each) for each in SURVIVED), *(("process", each) for each in ACTIONS)]
)
@one_loop
async def test_it_signs_again_whatever_the_module_did(module: Disobedient, mode: str, action: str):
    """From the start on, and at each call until it has disobeyed often enough."""
    most = 2 if mode == "thread" or action in SURVIVED else 1
    module.write(7, [action], 200_000, most)
    while len(module.struck()) < most:
        try:
            async with opened(config(module, mode)) as manager:
                await gather(*(signs(manager, 0.2) for _ in range(20)))
                await becomes(partial(signs, manager, 1.0))
        except HsmError:
            continue  # it was not opened
    assert {what for _, what in module.struck()} == {action}
