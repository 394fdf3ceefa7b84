"""The store of many positions under the commands that read or remove all of them: nothing is refused meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from tests.fleet.measure_store import measure
from tests.support.postgres import cluster

pytestmark = [pytest.mark.chaos, pytest.mark.deep]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_holder_signs_while_its_store_is_backed_up_and_pruned(world, tmp_path, sealed):
    with cluster() as server:
        assert asyncio.run(measure(server, tmp_path, world, 300_000, sealed=sealed)) == 0
