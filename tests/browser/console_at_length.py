"""A day of the console: as many events as a day has seconds. Not collected by itself: `make check-deep` names it."""

from __future__ import annotations

import pytest
from tests.browser.test_console import flood
from tests.support.console import served_here

pytestmark = [pytest.mark.browser]


@pytest.mark.timeout(600)
def test_a_day_of_events_leaves_page_and_server_as_they_were(scene, page, monkeypatch):
    servers = served_here(monkeypatch)
    grown = flood(scene(callers=0), servers, page, 86_400)
    assert grown["rows"] <= 200
    assert grown["heap_bytes"] < 3 << 20
    assert grown["nodes"] < 2000
    assert grown["rss_bytes"] < 16 << 20
