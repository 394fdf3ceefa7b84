"""`hsmcore metrics`."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
import structlog
import yaml
from prometheus_client import CollectorRegistry, start_http_server
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.scrapes import Scrape

from hsmcore.cli.app import run as cli
from hsmcore.metrics import collector
from hsmcore.metrics.catalog import METRICS

pytestmark = pytest.mark.integration


@pytest.fixture
def command(capsys):
    """Run it in this process: exit code and what it printed."""

    def command(*arguments):
        code = cli(["metrics", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    yield command
    structlog.reset_defaults()
    logging.getLogger("hsmcore").handlers.clear()


def test_it_lists_every_metric(command):
    code, out, _ = command("--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == [metric.name for metric in METRICS]
    code, out, _ = command()
    assert (code, len(out.splitlines())) == (0, len(METRICS) + 1)


def test_it_prints_rules_and_dashboard(command):
    code, out, _ = command("--rules")
    assert (code, yaml.safe_load(out)["groups"][0]["name"]) == (0, "hsmcore")
    for more in ((), ("--json",)):
        code, out, _ = command("--dashboard", *more)
        assert (code, json.loads(out)["title"]) == (0, "hsmcore")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--rules", "--dashboard"), "one of"),
        (("--rules", "--json"), "YAML"),
        (("--token-file", "x"), "--scrape"),
        (("--scrape", "file:///etc/passwd"), "http://"),
    ],
)
def test_bad_usage_says_what_is_wrong(command, arguments, says):
    code, _, error = command(*arguments)
    assert code == 2
    assert says in error


@one_loop
async def test_it_scrapes_a_running_process(world, command):
    registry = CollectorRegistry()
    async with opened(world.config(maxCacheSize=0)) as manager:
        registry.register(collector(manager))
        await manager.sign(b"m")
        server, thread = start_http_server(0, "127.0.0.1", registry)
        try:
            url = f"http://127.0.0.1:{server.server_port}/metrics"
            code, out, _ = await asyncio.to_thread(command, "--scrape", url)
            assert code == 0
            assert Scrape(out.encode())("hsmcore_signatures_total") == 1
            code, out, _ = await asyncio.to_thread(command, "--scrape", url, "--json")
            [found] = [row for row in json.loads(out) if row["name"] == "hsmcore_signatures_total"]
            assert (code, found["value"], found["labels"]["level"]) == (0, 1, "primary")
        finally:
            server.shutdown()
            server.server_close()
            await asyncio.to_thread(thread.join)
        code, _, error = await asyncio.to_thread(command, "--scrape", url)
        assert code == 1
        assert "refused" in error
