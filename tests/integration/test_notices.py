"""Notices: delivered to a webhook, kept while it is away, never in the way of a signature."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.integration.test_rotation import rules
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, until

from hsmcore.config import Notices
from hsmcore.manager import notices as service
from hsmcore.manager.notices import NoticeService
from hsmcore.state import Outbox, Store

pytestmark = pytest.mark.integration


class Hook:
    """A webhook on the loopback that can be told to refuse."""

    def __init__(self):
        self.taken, self.status = [], 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if hook.status == 200:
                    hook.taken.append(body)
                self.send_response(hook.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def titles(self):
        return [body["title"] for body in self.taken]


def notices(*targets, **more):
    return Notices.model_validate({"targets": list(targets), **more})


async def test_notices_come_before_at_and_after_a_rotation(fresh_token, tmp_path):
    with Hook() as hook:
        block = {"targets": [hook.url], "beforeHours": 24 * 31}
        config = fresh_token().config(notices=block, **rules(tmp_path, overlapDays=2))
        async with opened(config) as manager:
            await until(lambda: len(hook.taken) == 1)
            await manager.rotate_key()
            await until(lambda: len(hook.taken) == 4)
        assert hook.titles[0] == "hsmcore: a rotation is coming"
        assert hook.titles[1:3] == ["hsmcore: rotation 1: about to switch", "hsmcore: rotation 1: the new key signs"]


@one_loop
async def test_an_unreachable_target_holds_nothing_up_and_gets_it_later(fresh_token, tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_FIRST_RETRY_NS", 1_000_000)
    monkeypatch.setattr(service, "_LOOK_SECONDS", 0.05)
    with Hook() as hook:
        hook.status = 503
        config = fresh_token().config(
            notices={"targets": [hook.url], "kinds": ["rotation"]}, **rules(tmp_path, overlapDays=2)
        )
        async with opened(config) as manager:
            await manager.rotate_key()
        hook.status = 200
        async with opened(config):
            await until(lambda: len(hook.taken) == 2)


@one_loop
async def test_a_notice_that_no_attempt_delivers_is_dropped(tmp_path, monkeypatch):
    store = await Store.open(tmp_path / "state.db")
    secret = "json://user:hunter2@127.0.0.1:1/"
    told = NoticeService(store, notices(secret, "nonsense://x"))
    assert await told.announce("failure", "title", "body", "once")
    assert not await told.announce("failure", "title", "body", "once")
    assert not await NoticeService(store, notices(secret, kinds=["before"])).announce("failure", "t", "b", "other")
    told.begin()

    async def tried():
        return all(row["attempts"] == 1 for row in await told.outbox.all())

    await becomes(tried)
    await told.close()
    rows = await told.outbox.all()
    assert {row["error"] for row in rows} == {
        "the target did not take it", "apprise does not understand the target's URL",
    }  # fmt: skip
    assert "hunter2" not in json.dumps(rows)
    late = NoticeService(store, notices(secret))
    monkeypatch.setattr(service, "GIVE_UP", 2)
    monkeypatch.setattr(late, "clock", lambda: rows[0]["time_ns"] + 10**13)
    late.begin()

    async def given_up():
        return all(row["given_up_ns"] for row in await Outbox(store).all())

    await becomes(given_up)
    await late.close()
    await store.close()


@one_loop
async def test_failover_sends_a_notice(fresh_token, tmp_path):
    with Hook() as hook:
        config = fresh_token().config(
            notices={"targets": [hook.url]}, stateFile=str(tmp_path / "state.db"), maxCacheSize=0
        )
        async with opened(config) as manager:
            manager._events.emit("failover", from_level="primary", to_level="secondary", reason="test")
            await until(lambda: bool(hook.taken))
            await asyncio.sleep(0)
        assert hook.taken[0]["title"] == "hsmcore: failover"
        assert "secondary" in hook.taken[0]["message"]
