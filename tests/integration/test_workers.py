"""Several processes of one service, each with its own engine: docs/EMBEDDING.md."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from nacl.signing import VerifyKey
from tests.support.paths import ROOT
from tests.support.web import ask

from hsmcore.cli.app import run as run_command

pytestmark = pytest.mark.integration
WORKERS = 2


@contextmanager
def service(config):
    """The service's address while it runs. Ends it as its supervisor would."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        number = listening.fileno()
        command = [sys.executable, "-m", "uvicorn", "tests.support.worker_app:app", "--workers", str(WORKERS)]
        child = subprocess.Popen(
            [*command, "--fd", str(number), "--log-level", "warning"],
            cwd=ROOT,
            env={**os.environ, "WORKER_CONFIG": str(config)},
            pass_fds=(number,),
        )
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            child.send_signal(signal.SIGTERM)
            assert child.wait() == 0
        finally:
            child.kill()
            child.wait()


def test_each_worker_has_its_log_and_its_console_and_all_share_the_store(world, tmp_path, capsys):
    config = tmp_path / "config.json"
    monitoring = {"listen": f"unix:{tmp_path}/console-{{pid}}.sock"}
    failover = {"enabled": True}
    rules = {"auditLogFile": "audit-{pid}.log", "monitoring": monitoring, "failover": failover}
    config.write_text(json.dumps(world.config(maxCacheSize=0, **rules)))
    consoles = {}
    with service(config) as address:
        while len(consoles) < WORKERS:
            message = os.urandom(16)
            found = ask(address, "/sign", "POST", body=message).json()
            VerifyKey(world.keys["ed25519"].public_key).verify(message, bytes.fromhex(found["signature"]))
            consoles[found["pid"]] = found["console"]
        for pid, console in consoles.items():
            assert console == f"unix:{tmp_path}/console-{pid}.sock"
            assert ask(console, "/healthz").status == 200
            assert "hsmcore_key_manager_open 1" in ask(console, "/metrics").body.decode()
    for pid in consoles:
        assert run_command(["audit", "verify", str(tmp_path / f"audit-{pid}.log")]) == 0
        assert '"operation":"sign"' in (tmp_path / f"audit-{pid}.log").read_text()
    capsys.readouterr()
    assert len(list(tmp_path.glob("hsmcore-state*.db"))) == 1
    assert not list(tmp_path.glob("console-*"))
