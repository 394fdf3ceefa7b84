"""Promotions of an asynchronous standby with lost positions: a few here, a hundred by the command line of
promotions.py."""

from __future__ import annotations

import asyncio

import pytest
from tests.fleet.breakages import unwitnessed
from tests.fleet.nodes import needs_postgres
from tests.fleet.promotions import promote

from hsmcore.fleet.membership import Membership

pytestmark = [pytest.mark.chaos, pytest.mark.slow("standbys that are promoted"), needs_postgres]


@pytest.mark.timeout(300)
def test_each_promotion_stops_the_fleet_until_what_was_lost_is_back():
    done = asyncio.run(promote(2))
    assert (done["stopped with FleetBehind"], done["faults"]) == (2, {})


@pytest.mark.timeout(300)
def test_without_a_witness_positions_take_a_second_payload(monkeypatch):
    monkeypatch.setattr(Membership, "watch_over", Membership.watch_over)  # put back at the end
    unwitnessed()
    faults = asyncio.run(promote(1))["faults"]
    assert {"not stopped", "two payloads", "signed before the incident was answered"} <= set(faults)
