"""An Engine that was stopped: a call that waited beyond the stop, in a thread or a task, starts and reaches nothing."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.paths import CHAOS

from hsmcore._native import Engine
from hsmcore.errors import BadArgument, EngineClosed, ModuleMissing, NotInitialized


def engine() -> Engine:
    return Engine(
        member="test",
        slots=4,
        max_message=100,
        max_workers=1,
        coalesce_seconds=0.0,
        default_timeout=1.0,
        cache_size=0,
        single_flight=True,
        cache_nondeterministic=False,
    )


@pytest.mark.parametrize("released", [False, True])
async def test_a_start_that_comes_after_the_stop_is_refused(released, tmp_path):
    """The member's thread may wait for a lock on a loaded machine until `stop` has left it."""
    closed = engine()
    with pytest.raises(ModuleMissing):
        closed.start(module_path=str(tmp_path / "none.so"))
    assert closed.stop(1.0) == 0
    if released:
        closed.release()
    with pytest.raises(EngineClosed):
        closed.start(module_path=str(CHAOS))


async def test_calls_after_the_release_reach_nothing():
    closed = engine()
    closed.attach(asyncio.get_running_loop())
    assert closed.stop(1.0) == 0
    with pytest.raises(BadArgument):
        closed.retire_key(0)
    closed.detach()
    closed.release()
    closed.retire_key(0)
    assert not closed.signs_with(0)
    assert closed.recover() == 0
    assert closed.supervise() == (0, 0)
    closed.move()
    closed._drain()
    closed._sweep()
    for call in (lambda: closed.add_key(label="x"), closed.token, closed.restart_host):
        with pytest.raises(NotInitialized):
            call()
    for call in (lambda: closed.submit(b"x"), closed.stats, lambda: closed.attach(asyncio.get_running_loop())):
        with pytest.raises(EngineClosed):
            call()
