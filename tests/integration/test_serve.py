"""`hsmcore serve` and `hsmcore.serve.attached`: health, roles, actions, and the command."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys

import pytest
from tests.support.certificates import self_signed
from tests.support.console import Scene, served_here
from tests.support.levels import SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, until
from tests.support.web import ask, asked, happenings

import hsmcore
from hsmcore.audit.layout import Layout
from hsmcore.audit.lock import FolderLock
from hsmcore.audit.open_log import OpenLog
from hsmcore.cli.app import run as run_command
from hsmcore.config import load
from hsmcore.errors import ConfigurationError
from hsmcore.serve import attached
from hsmcore.serve.attach import watching
from hsmcore.state import Desired, Store

pytestmark = pytest.mark.integration
VIEWER, OPERATOR = "v" * 40, "o" * 40
TOKENS = {"viewerToken": VIEWER, "operatorToken": OPERATOR}
HERE = {"listen": "127.0.0.1:0"}


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_the_console_shows_a_lone_member_and_ends_without_a_trace(world):
    async with opened(world.config(maxCacheSize=10)) as manager, attached(manager, "127.0.0.1:0") as site:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", site.address)
        await asyncio.gather(*(manager.sign(b"%d" % number) for number in range(50)))
        hurried = (manager.sign(b"hurried %d" % number, timeout=1e-9) for number in range(20))
        ended = await asyncio.gather(*hurried, return_exceptions=True)
        late = sum(isinstance(one, hsmcore.DeadlineExceeded) for one in ended)
        assert late  # a session that has just ended takes one in time
        assert (await asked(site.address, "/healthz")).json() == {"status": "alive"}
        answer = await asked(site.address, "/readyz")
        assert answer.status == 200
        assert {check["outcome"] for check in answer.json()["checks"]} == {"ok"}
        state = (await asked(site.address, "/api/state")).json()
        assert state["failover"] is None
        assert state["keys"][0]["publicKey"] == manager.public_key.hex()
        await becomes(lambda: _signed(site, 70 - late, late))
        for accept, kind in (("", "text/plain"), ("application/openmetrics-text", "application/openmetrics-text")):
            scraped = await asked(site.address, "/metrics", headers={"Accept": accept})
            assert (scraped.status, scraped.headers["content-type"].partition(";")[0]) == (200, kind)
            assert b"\nhsmcore_key_manager_open 1\n" in scraped.body
        for path in ("/", "/main.js", "/console.css"):
            page = await asked(site.address, path)
            assert page.status == 200
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert "unsafe" not in page.headers["content-security-policy"]


async def _signed(site, count, late):
    [member] = (await asked(site.address, "/api/state")).json()["members"]
    # What the deadline ended is counted as it is drawn.
    return (member["counters"]["signatures"], member["counters"]["failures"]) == (count, late)


@one_loop
async def test_before_and_after_the_key_manager_is_open_it_is_alive_but_not_ready(world):
    manager = hsmcore.create_key_manager(world.config())
    async with attached(manager, "127.0.0.1:0") as site:
        for state in ("new", "open", "closed"):
            if state == "open":
                await manager.initialize()
            elif state == "closed":
                await manager.close()
            await becomes(lambda state=state: _life(site, state))
            assert (await asked(site.address, "/healthz")).status == 200
            answer = await asked(site.address, "/readyz")
            assert answer.status == (200 if state == "open" else 503)
        assert {"name": "open", "outcome": "fail", "detail": "the key manager is closed"} in answer.json()["checks"]
        assert (await asked(site.address, "/readyz?exclude=open")).status == 200


async def _life(site, life):
    return (await asked(site.address, "/api/state")).json()["life"] == life


@one_loop
async def test_a_blocked_event_loop_is_not_alive(world, monkeypatch):
    served_here(monkeypatch)
    monkeypatch.setattr("hsmcore.serve.monitor.ALIVE_SECONDS", 0.5)
    monkeypatch.setattr("hsmcore.serve.source.ANSWER_SECONDS", 0.2)
    async with opened(world.config()) as manager, attached(manager, "127.0.0.1:0") as site:
        await becomes(lambda: _status(site, 200))
        statuses = []
        while 503 not in statuses:  # this very call holds the loop up
            statuses.append(ask(site.address, "/healthz").status)
        assert ask(site.address, "/readyz").json()["status"] == "not ready"
        await becomes(lambda: _status(site, 200))


async def _status(site, status):
    return (await asked(site.address, "/healthz")).status == status


def described_here(monkeypatch):
    """Serve from this process. Returns a list that has an entry for each time a key manager was described."""
    described, describe = [], hsmcore.KeyManager.describe
    served_here(monkeypatch)
    monkeypatch.setattr(hsmcore.KeyManager, "describe", lambda each: described.append(each) or describe(each))
    return described


@one_loop
async def test_while_nobody_watches_little_is_asked_and_the_first_watcher_sees_all_at_once(world, monkeypatch):
    described = described_here(monkeypatch)
    monkeypatch.setattr("hsmcore.serve.monitor.LOOK_SECONDS", 0.01)
    async with opened(world.config()) as manager, attached(manager, "127.0.0.1:0") as site:

        async def rests():
            before = len(described)
            assert (await asked(site.address, "/")).status == 200
            return len(described) == before

        for path in ("/", "/main.js", "/metrics"):
            assert (await asked(site.address, path)).status == 200
        assert len(described) <= 1  # at the start
        await manager.sign(b"one")

        def watch():
            with contextlib.closing(happenings(site.address)) as stream:
                first = dict(itertools.islice(stream, 2))
                states = (state for kind, state in stream if kind == "state")  # it goes on
                assert any(state["members"][0]["counters"]["signatures"] == 1 for state in states)
            return first

        first = await asyncio.to_thread(watch)
        assert (first["state"]["problem"], first["state"]["watchers"]) == ("", 1)
        assert len(first["series"]["series"]) == 1
        await becomes(rests)


@one_loop
async def test_charts_show_what_was_before_a_page_was_opened(world, monkeypatch):
    described = described_here(monkeypatch)
    monkeypatch.setattr("hsmcore.serve.monitor.REST_SECONDS", 0.01)
    async with opened(world.config()) as manager, attached(manager, "127.0.0.1:0") as site:

        async def looks():
            before = len(described)
            await until(lambda: len(described) > before + 1)

        def watch():
            with contextlib.closing(happenings(site.address)) as stream:
                return dict(itertools.islice(stream, 2))["series"]["series"]

        await looks()
        await manager.sign_many([b"%d" % number for number in range(100)])
        await looks()
        [points] = (await asyncio.to_thread(watch)).values()
        assert any(point["rate"] for point in points)


@one_loop
async def test_roles_see_and_do_what_they_may(world, tmp_path):
    log = tmp_path / "audit.log"
    config = world.config(auditLogFile=str(log), monitoring={**HERE, **TOKENS})
    async with opened(config) as manager, attached(manager) as site:

        async def status(path, token=None, method="GET", body=None):
            return (await asked(site.address, path, method, token=token, body=body)).status

        assert await status("/readyz", "w" * 40) == 200
        for path in ("9" * 5000, "-1", "9" * 19 + "/proof"):
            assert await status(f"/api/audit/{path}") == await status(f"/api/audit/{path}", VIEWER) == 404
        looking = ("/metrics", "/api/state", "/api/events", "/api/audit", "/api/audit/1", "/api/audit/1/proof")
        for path in looking:
            assert await status(path) == 401
        assert await status("/api/state", VIEWER) == await status("/api/state", OPERATOR) == 200
        assert await status("/") == 200  # the page asks for the token
        bare = await asked(site.address, "/readyz")
        assert (bare.status, bare.json()) == (200, {"status": "ready"})  # a supervisor has none; it learns no more
        body = b'{"member": "x", "reason": "y"}'
        assert await status("/api/actions/drain", VIEWER, "POST", body) == 403
        assert await status("/api/actions/drain", None, "POST", body) == 401
        assert await status("/api/actions/drain", "w" * 40, "POST", body) == 401
        assert await status("/api/actions/drain", OPERATOR, "POST", body) == 400  # there is no failover
        assert await status("/api/actions/drain", OPERATOR) == 405
        session = (await asked(site.address, "/api/session", token=OPERATOR)).json()
        assert session == {"role": "operator", "canOperate": True, "open": False}
        await manager.audit.flush()
        said = [
            (one["result"], one["error"], one["ip"]) for one in records(log) if one["operation"] == "operator-action"
        ]
        refusals = ("wrong", "forbidden", "missing", "wrong", "bad request")  # the first one at /readyz
        assert said == [("refused", error, "127.0.0.1") for error in refusals]
    assert VIEWER not in log.read_text()
    assert OPERATOR not in log.read_text()


@one_loop
async def test_an_operator_action_is_recorded_emitted_and_obeyed(tmp_path, fresh_token):
    site = Site(tmp_path, fresh_token, SAME, SAME)
    log = tmp_path / "audit.log"
    config = site.config(
        auditLogFile=str(log), monitoring={**HERE, **TOKENS}, keyRotation={"intervalDays": 30},
        failover={"emergencyModeEnabled": True},
    )  # fmt: skip
    async with opened(config) as manager, attached(manager) as served:
        told = []
        manager.on("operator-action", told.append)

        async def act(name, **body):
            text = json.dumps({"reason": "a game day", **body}).encode()
            return await asked(served.address, f"/api/actions/{name}", "POST", token=OPERATOR, body=text)

        async def conditions():
            state = (await asked(served.address, "/api/state", token=VIEWER)).json()
            return state["failover"], {one["member"]: one["condition"] for one in state["members"]}

        done = await act("drain", member=site.name(0))
        assert done.status == 202
        assert records(log)[done.json()["auditSeq"] - 1]["command"] == "failover drain"
        assert (await act("force", level="secondary")).status == 202
        await becomes(lambda: _holds(conditions, lambda levels, each: each[site.name(0)] == "drained"
                                     and levels["forced"] == "secondary"))  # fmt: skip
        assert (await manager.sign_with_receipt(b"m")).member == site.name(1)
        assert await wishes(config) == {f"drain:{site.name(0)}": "yes", "force": "secondary"}
        for name, body in (
            ("resume", {"member": site.name(0)}), ("release", {}), ("emergency-disable", {}),
            ("readmit", {"member": site.name(1)}), ("rotate", {}), ("rotate-abort", {}),
        ):  # fmt: skip
            assert (await act(name, **body)).status == 202
        left = await wishes(config)
        assert left.keys() >= {"emergency", f"readmit:{site.name(1)}"}
        assert left.keys().isdisjoint({"force", f"drain:{site.name(0)}"})
        await becomes(lambda: _holds(conditions, lambda levels, _: not levels["emergency"]["permitted"]))
        assert (await act("emergency-enable")).status == 202
        commands = [one["action"] for one in told]
        assert commands == [
            "failover drain", "failover force", "failover drain --undo", "failover force none", "emergency disable",
            "failover readmit", "rotate now", "rotate abort", "emergency enable",
        ]  # fmt: skip
        for name, body in (
            ("drain", {"member": "nobody"}), ("force", {"level": "third"}), ("drain", {}), ("nonsense", {}),
            ("drain", {"member": site.name(0), "reason": ""}), ("drain", {"member": site.name(0), "reason": "a\nb"}),
            ("force", {"level": "primary", "more": 1}), ("release", {"": 1}), ("drain", {"member": [site.name(0)]}),
        ):  # fmt: skip
            refused = await act(name, **body)
            assert refused.status == 400, (name, body)
            assert refused.json()["message"]
        assert len([one for one in told if one["result"] == "ok"]) == len(commands)


async def wishes(config):
    """The desired state in the state store."""
    store = await Store.open_to_read(load(config).key_manager.state_path)
    try:
        return {name: wish.value for name, wish in (await Desired(store).all()).items()}
    finally:
        await store.close()


async def _holds(look, condition):
    found = await look()
    return condition(*found) if isinstance(found, tuple) else condition(found)


@one_loop
async def test_what_cannot_be_recorded_is_not_done(tmp_path, fresh_token, monkeypatch):
    site = Site(tmp_path, fresh_token, SAME, SAME)
    config = site.config(auditLogFile=str(tmp_path / "audit.log"), monitoring={**HERE, **TOKENS})
    async with opened(config) as manager, attached(manager) as served:
        monkeypatch.setattr(OpenLog, "failure", "no space left on device")
        body = json.dumps({"reason": "x", "member": site.name(0)}).encode()
        answer = await asked(served.address, "/api/actions/drain", "POST", token=OPERATOR, body=body)
        assert answer.status == 503
        assert "no space left" in answer.json()["message"]
        assert await wishes(config) == {}
        await becomes(lambda: _unready(served))
        monkeypatch.undo()


async def _unready(site):
    return (await asked(site.address, "/readyz")).status == 503


def test_a_rotation_is_asked_for_and_events_come_with_their_history(tmp_path, fresh_token):
    with Scene(tmp_path, fresh_token) as scene:
        text = b'{"reason": "an operator has left"}'
        assert ask(scene.address, "/api/actions/rotate", "POST", token=scene.operator, body=text).status == 202
        found = {}
        for kind, value in happenings(scene.address):
            found[value.get("kind", kind)] = value
            if "rotation-begun" in found and found.keys() >= {"series", "state", "records", "operator-action"}:
                break
        assert found["rotation-begun"]["reason"] == "an operator has left"
        assert found["state"]["rotation"]["next"] is not None
        assert len(found["state"]["members"]) == 3
        # A later watcher gets it, too.
        kinds = [value["kind"] for kind, value in itertools.islice(happenings(scene.address), 6) if kind == "happened"]
        assert "rotation-begun" in kinds


@one_loop
async def test_a_signer_of_another_process_is_watched_and_operated(tmp_path, fresh_token):
    site = Site(tmp_path, fresh_token, SAME, SAME)
    log = tmp_path / "audit.log"
    rules = {"auditLogFile": str(log), "monitoring": {**HERE, **TOKENS}, "keyRotation": {"intervalDays": 30}}
    config = load(site.config(**rules))
    async with watching(config) as watched:

        async def state():
            return (await asked(watched.address, "/api/state", token=VIEWER)).json()

        assert (await asked(watched.address, "/healthz")).status == 200
        assert (await asked(watched.address, "/readyz")).status == 503  # no member signs yet
        async with opened(config) as manager:
            await manager.sign(b"m")
            await manager.audit.checkpoint()
            await becomes(lambda: _holds(state, lambda found: found["problem"] == "" and found["members"]))
            found = await state()
            assert {one["member"]: one["condition"] for one in found["members"]} == {
                site.name(0): "ready", site.name(1): "ready",
            }  # fmt: skip
            assert found["audit"]["sealed"] > 0
            await becomes(lambda: _holds(state, lambda found: found.get("rotation", {}).get("next")))
            assert (await asked(watched.address, "/readyz")).status == 200
            assert (await asked(watched.address, "/api/audit/1/proof", token=VIEWER)).status == 200
            assert (await asked(watched.address, "/metrics", token=VIEWER)).status == 404
            body = json.dumps({"reason": "r", "member": site.name(0)}).encode()
            done = await asked(watched.address, "/api/actions/drain", "POST", token=OPERATOR, body=body)
            assert done.status == 202
            await becomes(lambda: _holds(state, lambda found: found["members"][0]["condition"] == "drained"))
            await becomes(lambda: _recorded(log, "failover drain"))


async def _recorded(log, command):
    return any(one.get("command") == command and one["result"] == "ok" for one in records(log))


# ---- where it listens ----


@one_loop
async def test_a_unix_socket_is_its_owners_and_a_stale_one_is_replaced(world, tmp_path):
    path = tmp_path / "console.sock"
    for _ in range(2):
        async with opened(world.config()) as manager, attached(manager, f"unix:{path}") as site:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert (await asked(site.address, "/readyz")).status == 200
            with pytest.raises(ConfigurationError, match="cannot listen at"):
                async with attached(manager, f"unix:{path}"):
                    pass
        assert not path.exists()
        with socket.socket(socket.AF_UNIX) as left:  # as a process leaves it that was killed
            left.bind(str(path))
    path.unlink()
    path.write_text("precious")
    async with opened(world.config()) as manager:
        with pytest.raises(ConfigurationError, match="cannot listen at") as failure:
            async with attached(manager, f"unix:{tmp_path}/absent/console.sock"):
                pass
        assert failure.value.hint.startswith("Make the socket's folder")
        with pytest.raises(ConfigurationError, match="cannot listen at"):
            async with attached(manager, f"unix:{path}"):
                pass
    assert path.read_text() == "precious"


@one_loop
async def test_tls(world, tmp_path):
    files = self_signed(tmp_path)
    config = world.config(monitoring={**HERE, **TOKENS, "tls": files})
    trusting = ssl.create_default_context(cafile=files["certificateFile"])
    async with opened(config) as manager, attached(manager) as site:
        assert site.address.startswith("https://")
        answer = await asked(site.address, "/api/state", token=VIEWER, tls=trusting)
        assert answer.status == 200
        for origin, status in ((site.address, 400), (site.address.replace("https:", "http:"), 403)):
            order = {"token": OPERATOR, "body": b"{}", "headers": {"Origin": origin}, "tls": trusting}
            answer = await asked(site.address, "/api/actions/nonsense", "POST", **order)
            assert answer.status == status, origin
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asked(site.address, "/healthz", tls=old)


@pytest.mark.parametrize("missing", ["certificateFile", "keyFile"])
@one_loop
async def test_an_unusable_certificate_fails_the_start(world, tmp_path, missing):
    files = {**self_signed(tmp_path), missing: str(tmp_path / "nothing.pem")}
    manager = hsmcore.create_key_manager(world.config(monitoring={**HERE, **TOKENS, "tls": files}))
    with pytest.raises(ConfigurationError, match=r"cannot be used: .*/nothing\.pem: No such file"):
        async with attached(manager):
            pass


@one_loop
async def test_tokens_come_from_files_and_an_unreadable_one_stops_the_start(world, tmp_path):
    manager = hsmcore.create_key_manager(
        world.config(monitoring={**HERE, "viewerToken": {"file": str(tmp_path / "none")}})
    )
    with pytest.raises(ConfigurationError, match=r"monitoring\.viewerToken"):
        async with attached(manager):
            pass


# ---- the command ----


def command(config, tmp_path, *arguments):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    line = [sys.executable, "-c", "import sys; from hsmcore.cli import main; sys.exit(main())", "serve"]
    return [*line, "--config", str(path), *arguments]


def test_the_command_prints_where_it_listens_and_ends_with_sigterm(world, tmp_path):
    line = command(world.config(), tmp_path, "--listen", "127.0.0.1:0", "--json")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as running:
        said = json.loads(running.stdout.readline())
        assert ask(said["address"], "/readyz").status == 200
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (0, "", "")


def test_the_command_refuses_to_show_itself_to_other_machines(world, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(world.config()))
    assert run_command(["serve", "--config", str(path), "--listen", "0.0.0.0:0"]) == 2
    assert "without tls and viewerToken" in capsys.readouterr().err


def test_the_command_refuses_to_run_beside_a_running_signer_with_a_hint(world, tmp_path, capsys):
    path, config = tmp_path / "config.json", world.config(auditLogFile=str(tmp_path / "audit.log"))
    path.write_text(json.dumps(config))
    layout = Layout(tmp_path / "audit.log")
    layout.folder.mkdir()
    held = FolderLock(layout.lock)
    try:
        assert run_command(["serve", "--config", str(path), "--listen", "127.0.0.1:0"]) == 1
    finally:
        held.release()
    assert "hsmcore serve --watch" in capsys.readouterr().err


def test_the_help_has_examples(capsys):
    assert run_command(["serve", "--help"]) == 0
    assert "hsmcore serve --listen unix:/run/hsmcore/console.sock" in capsys.readouterr().out
