"""The whole stack as a contender: what its configuration has, and that /metrics is really read while it signs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from hsmcore_bench.harness.locate import NOOP_MODULE, native
from hsmcore_bench.suite.child.ours import configuration
from hsmcore_bench.suite.child.protocol import Job
from hsmcore_bench.suite.child.scrapes import Scraping, read
from hsmcore_bench.suite.commands import Commands
from hsmcore_bench.suite.contenders import contenders
from hsmcore_bench.suite.model import Options


@contextmanager
def answering(status: int, body: bytes) -> Iterator[SimpleNamespace]:
    """A server whose every answer is this; `asked` are the paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}", asked=asked)
        finally:
            server.shutdown()
            thread.join()


async def scraped(site: SimpleNamespace, seconds: float) -> None:
    async with Scraping(site, seconds):
        await asyncio.sleep(seconds)


def test_even_a_short_slice_has_a_scrape():
    with answering(200, b"hsmcore_requests_total 1\n") as site:
        asyncio.run(scraped(site, 0.3))
        assert site.asked == ["/metrics"]
        assert read(site.address) == b"hsmcore_requests_total 1\n"


@pytest.mark.parametrize(("status", "body"), [(503, b"hsmcore_requests_total 1\n"), (200, b"hello\n")])
def test_an_answer_that_is_not_the_metrics_breaks_the_contender(status, body):
    with answering(status, body) as site, pytest.raises(AssertionError, match="/metrics answered"):
        asyncio.run(scraped(site, 0.3))


def test_a_slice_is_not_over_before_its_scrape_is_answered():
    async def at_once(site: SimpleNamespace) -> None:
        async with Scraping(site, 0.3):
            pass

    with answering(200, b"hsmcore_\n") as site:
        asyncio.run(at_once(site))
        assert site.asked == ["/metrics"]


def test_it_has_every_safety_at_once():
    contender = next(c for c in contenders(2) if c.name == "stack-noop-256")
    with ExitStack() as stack:
        command, _ = Commands(Options(), stack)._command(contender)
        job = Job.from_json(command[-1])
        modules = [place["module"] for place in job.places]
        assert modules[0] == str(native(NOOP_MODULE)), "one member alone has the module that was named"
        assert len({Path(module).stat().st_ino for module in modules}) == 2, "each member has a file of its own"
    manager = configuration(job)["sequencer"]["keyManager"]
    members = [manager, *manager["failover"]["primary"]]
    assert [member["config"]["modulePath"] for member in members] == modules
    assert {member["config"]["isolation"] for member in members} == {"process"}
    assert len({member["config"]["keyLabel"] for member in members}) == 1
    assert manager["failover"]["enabled"]
    assert (manager["audit"], manager["maxCacheSize"], job.scrape) == ({"durability": "fsync"}, 0, True)


@pytest.mark.parametrize(("name", "per_second"), [("open-80-5ms", 10_240.0), ("open-80-5ms-16", 2_560.0)])
def test_a_share_of_a_device_is_one_of_its_ceiling(name, per_second):
    contender = next(c for c in contenders(2) if c.name == name)
    with ExitStack() as stack:
        command, _ = Commands(Options(), stack)._command(contender)
    assert Job.from_json(command[-1]).per_second == per_second
    assert f"{per_second:,.0f} a second" in contender.title


def test_every_stack_has_the_same_safeties_and_a_bare_member_beside_it():
    everyone = {c.name: c for c in contenders(2)}
    for name, bare in (
        ("stack-64", "stack-64-bare"),
        ("stack-256", "stack-256-bare"),
        ("stack-noop-256", "stack-noop-bare"),
    ):
        ours, theirs = everyone[name], everyone[bare]
        assert (ours.members, ours.isolation, ours.audit, ours.scrape) == (2, "process", "fsync", True)
        assert (theirs.members, theirs.isolation, theirs.audit, theirs.scrape) == (0, "thread", None, False)
        assert (ours.in_flight, ours.token, ours.slices) == (theirs.in_flight, theirs.token, theirs.slices)
