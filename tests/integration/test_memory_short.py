"""Memory that runs out while a request is taken: it is refused, and all others have their answers."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.chaos import Chaos, wrap
from tests.support.loops import one_loop
from tests.support.managers import opened

_testcapi = pytest.importorskip("_testcapi", reason="this Python has no module that lets allocations fail")
pytestmark = pytest.mark.integration
FIRST_ROOM = 256
"""Requests for which the tables have places at first."""


@one_loop
async def test_a_request_that_finds_no_memory_is_not_taken(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(queueSize=64)) as manager:
        chaos.fault("C_Sign", "hang", every=1, forever=True)  # so that no answer gives its place back meanwhile
        [engine] = [endpoint.member.engine for endpoint in manager._path.endpoints]
        futures = [engine.submit(b"%d" % n, 30.0) for n in range(FIRST_ROOM)]
        refused = 0
        for failing in range(1, 1000):
            _testcapi.set_nomemory(failing, failing + 1)
            try:
                future = engine.submit(b"more", 30.0)
            except MemoryError:
                refused += 1
            else:
                _testcapi.remove_mem_hooks()
                futures.append(future)
                break
            finally:
                _testcapi.remove_mem_hooks()
        assert refused > 4, "each growth was to fail once"
        futures.append(engine.submit(b"last", 30.0))
        chaos.clear()
        chaos.release()
        assert all(len(signature) == 64 for signature in await asyncio.gather(*futures))
