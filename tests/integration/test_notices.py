"""Notices: delivered to a webhook, kept while it is away, never in the way of a signature."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import structlog
from tests.integration.test_rotation import rules
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, until

from hsmcore.cli.app import run
from hsmcore.config import Notices, load
from hsmcore.doctor.common import check_notices
from hsmcore.errors import ConfigurationError
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
    monkeypatch.setenv("TARGET", "nonsense://x")
    store = await Store.open(tmp_path / "state.db")
    secret = "json://user:hunter2@127.0.0.1:1/"
    told = NoticeService(store, notices(secret, {"env": "TARGET"}))
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
        "the target did not take it", "is no address that apprise understands",
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


WRONG = "slak://hunter2@a/b"
TARGETS = "$.sequencer.keyManager.notices.targets"


def with_targets(*targets):
    token = {"tokenLabel": "a", "pin": {"env": "HSM_PIN"}, "keyLabel": "k"}
    rules = {"type": "softhsm", "config": token, "notices": {"targets": list(targets)}}
    return {"sequencer": {"keyManager": rules}}


def test_an_address_that_apprise_does_not_understand_is_a_fault_of_the_configuration(monkeypatch, caplog):
    with pytest.raises(ConfigurationError) as caught:
        load(with_targets("json://127.0.0.1:9/", WRONG))
    [fault] = caught.value.faults
    assert fault.path == f"{TARGETS}[1]"
    assert fault.problem.startswith("is no address that apprise understands")
    assert "hunter2" not in str(caught.value) + caplog.text
    assert load(with_targets("<address>")).placeholders == (f"{TARGETS}[0]",)
    monkeypatch.setitem(sys.modules, "apprise", None)  # it is not installed: the key manager signs without
    load(with_targets(WRONG))


@pytest.mark.parametrize(
    ("target", "wrong", "said"),
    [
        (WRONG, True, "is no address that apprise understands"),
        (None, True, "environment variable TARGET is not set"),
        ("json://127.0.0.1:9/", False, ""),
    ],
)
def test_doctor_looks_at_the_targets_behind_references(target, wrong, said, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.delenv("TARGET", raising=False)
    if target is not None:
        monkeypatch.setenv("TARGET", target)
    [step] = check_notices(load(with_targets({"env": "TARGET"})))
    assert (step.outcome, step.configuration) == ("fail" if wrong else "ok", wrong)
    assert step.data == {"targets": [{"path": f"{TARGETS}[0]", "problem": said}]}
    assert "hunter2" not in repr(step) + caplog.text
    monkeypatch.setitem(sys.modules, "apprise", None)
    [step] = check_notices(load(with_targets({"env": "TARGET"})))
    assert (step.outcome, step.configuration) == ("fail", target is None)


@one_loop
async def test_the_start_logs_a_target_that_cannot_be_told(fresh_token, tmp_path, monkeypatch):
    monkeypatch.setenv("TARGET", WRONG)
    config = fresh_token().config(notices={"targets": [{"env": "TARGET"}]}, stateFile=str(tmp_path / "state.db"))
    with structlog.testing.capture_logs() as lines:
        async with opened(config) as manager:
            await until(lambda: any(line.get("path", "").endswith("targets[0]") for line in lines))
            assert await manager.sign(b"a target that is wrong does not keep the key from signing")
    assert "hunter2" not in repr(lines)


def test_the_command_sends_to_each_target_and_says_which_took_it(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TARGET", raising=False)
    path = tmp_path / "hsm.json"

    def tried(*targets):
        path.write_text(json.dumps(with_targets(*targets)))
        code = run(["notices", "test", "--json", "--config", str(path)])
        out, err = capsys.readouterr()
        assert "hunter2" not in out + err
        return code, json.loads(out) if out else json.loads(err.splitlines()[-1])["error"]["faults"]

    with Hook() as hook, Hook() as other:
        one, two = (each.url.replace("//", "//u:hunter2@") for each in (hook, other))
        taken = [{"path": f"{TARGETS}[{number}]", "taken": True, "problem": ""} for number in range(2)]
        assert tried(one, two) == (0, taken)
        assert hook.titles == other.titles == ["hsmcore: a test"]
        other.status = 503
        code, found = tried(one, two, {"env": "TARGET"})
        assert (code, [each["taken"] for each in found]) == (1, [True, False, False])
        assert found[2]["problem"] == "environment variable TARGET is not set"
    code, [fault] = tried(WRONG)
    assert (code, fault["path"]) == (2, f"{TARGETS}[0]")
    document = with_targets()
    del document["sequencer"]["keyManager"]["notices"]
    path.write_text(json.dumps(document))
    assert run(["notices", "test", "--config", str(path)]) == 2
