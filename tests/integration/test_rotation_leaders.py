"""A process leads a rotation if it can end it. After a handover was called, only a process with a handover can."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.integration.test_rotation import Handover, M, rules, stored
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start
from tests.support.rotation import Lives
from tests.support.terminal import PROGRAM
from tests.support.zygote import CLI, Forked

import hsmcore
from hsmcore.cli.app import run as run_command
from hsmcore.manager.rotation import service
from hsmcore.state import StoreBusy

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]
ROOT = Path(__file__).parents[2]


def environment(token):
    path = f"{ROOT / 'core'}{os.pathsep}{ROOT}"
    return {**token.environment, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}


@contextmanager
def serving(token, path, log):
    """`hsmcore serve` while the body runs; what it logs is in the file `log`."""
    line = [CLI, "serve", "--config", str(path), "--listen", "127.0.0.1:0", "--json"]
    with log.open("w") as errors:
        process = Forked(line, stdout=subprocess.PIPE, stderr=errors, env=environment(token), text=True)
    try:
        assert "address" in process.stdout.readline(), log.read_text()
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def read(tmp_path, query):
    with closing(sqlite3.connect(tmp_path / "state.db", timeout=10)) as connection:
        return connection.execute(query).fetchall()


def command(token, *arguments):
    """One command in a process of its own: exit code, output and error."""
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, env=token.environment, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("required", "fails"), [(True, False), pytest.param(False, False, marks=pytest.mark.deep), (False, True)]
)
@pytest.mark.timeout(120)
@pytest.mark.slow("processes that rotate, one killed in each")
def test_a_process_without_the_handover_does_not_resume_a_rotation_killed_in_it(
    fresh_token, tmp_path, capsys, required, fails
):
    """kill -9 after the chain has accepted the new key, or after a failure while the new key is given back."""
    token = fresh_token({"name": "p256", "kind": "ecdsa-p256"})
    block = {"overlapDays": 0, "destroyAfterDays": 0, "requireHandover": required}
    config = token.config("p256", settings={"sessions": 1}, **rules(tmp_path, **block) | {"requestTimeoutMs": 1000})
    path, chain, log = tmp_path / "hsm.json", tmp_path / "authority", tmp_path / "serve.log"
    path.write_text(json.dumps(config))
    common = {"config": config, "chain": str(chain)}
    with Lives(environment(token)) as application:
        # The chain accepts the new key; the store does not know that yet.
        kill = "undo:handover:begun" if fails else "do:handover:effect"
        assert application.live(kill=kill, fails=fails, **common)
        obeyed = chain.read_text()
        [(new,)] = read(tmp_path, "SELECT key_id FROM key_version WHERE state = 'pending'")
        assert obeyed == new
        with serving(token, path, log):
            until = time.monotonic() + 30
            while "waits for the process that has its handover" not in log.read_text() and time.monotonic() < until:
                assert read(tmp_path, "SELECT status, step FROM rotation") == [
                    ("undoing" if fails else "running", "handover")
                ], "another process went on with it, or undid it"
                time.sleep(0.02)
            assert run_command(["rotate", "now", "--timeout", "3", "--config", str(path)]) == 1
            assert "waits for the application" in capsys.readouterr().err
            if not fails:
                assert run_command(["rotate", "abort", "--config", str(path)]) == 0
                assert run_command(["rotate", "status", "--config", str(path)]) == 0
                assert "only the application goes on with it" in capsys.readouterr().out
                with closing(sqlite3.connect(tmp_path / "state.db", timeout=10)) as connection, connection:
                    connection.execute("DELETE FROM desired_state")  # below it is to end, not to be undone
            assert command(token, "sign", "--text", "m", "--config", str(path))[0] == 0
        assert "destroyed" not in log.read_text()
        assert obeyed in command(token, "keys", "--config", str(path), "--json")[1], "the key that the chain obeys"
        [(status, step)] = read(tmp_path, "SELECT status, step FROM rotation")
        assert (status, step) == ("undoing" if fails else "running", "handover")
        # The application comes back: `live` checks that the key which the chain obeys signs, and which keys there are.
        assert not application.live(kill=None, fails=False, **common)
    assert chain.read_text() == (obeyed if not fails else token.keys["p256"].id)


class Hangs(Handover):
    """A handover that does not end."""

    def __init__(self):
        super().__init__()
        self.begun = asyncio.Event()

    async def handover(self, old, new, km):
        self.begun.set()
        await asyncio.Event().wait()


@one_loop
async def test_a_key_manager_without_the_handover_gives_the_role_up_to_one_that_has_it(
    fresh_token, tmp_path, monkeypatch
):
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.02)
    config = fresh_token().config(**rules(tmp_path, overlapDays=1))
    hangs = Hangs()
    first = hsmcore.create_key_manager(config)
    first.on_rotation(hangs)
    async with first:
        rotating = start(first.rotate_key())
        await hangs.begun.wait()
    await asyncio.wait({rotating})
    assert rotating.exception() is not None
    async with opened(config) as other:
        with pytest.raises(StoreBusy, match="waits for the application"):
            await other.rotate_key()
        async with opened(config) as second:
            handover = Handover()
            second.on_rotation(handover)  # late, and heard all the same

            async def over():
                return [r.run.status for r in (await stored(tmp_path))[1]] == ["overlap"]

            await becomes(over)
            assert [call[0] for call in handover.calls] == ["handover"]
            new = await second.get_current_key_id()

            async def follows():
                return await other.get_current_key_id() == new

            await becomes(follows)
            assert await other.verify(M, await other.sign(M), key_id=new)


@pytest.mark.parametrize("point", ["begun", "do:generate:effect", "do:handover:effect", "do:activate:recorded"])
def test_a_wish_that_a_kill_cut_off_is_fulfilled_once(fresh_token, tmp_path, point):
    token = fresh_token({"name": "p256", "kind": "ecdsa-p256"})
    config = token.config("p256", settings={"sessions": 1}, **rules(tmp_path, destroyAfterDays=0))
    common = {"config": config, "chain": str(tmp_path / "authority"), "fails": False}
    with Lives(environment(token)) as application:
        assert application.live(kill=point, wish=True, **common)
        assert not application.live(kill=None, **common)
    assert read(tmp_path, "SELECT reason, status FROM rotation") == [("asked for", "done")]
    assert read(tmp_path, "SELECT name FROM desired_state") == []
