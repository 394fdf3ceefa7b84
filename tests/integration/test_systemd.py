"""The units of packaging/systemd: judged by systemd-analyze, and run by a real systemd."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
from nacl.signing import VerifyKey
from tests.support.loops import one_loop
from tests.support.systemd import UNITS, booted, problem
from tests.support.wire_site import Peer, sign

pytestmark = pytest.mark.integration
MOST_EXPOSURE = 2.0
GATEWAY = "hsmcore-gateway.service"
PROBLEM = problem()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.service")))
def test_a_unit_is_hardened(unit):
    command = ["systemd-analyze", "security", "--offline=true", str(UNITS / unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(re.search(r"Overall exposure level for .*: ([0-9.]+)", said)[1]) <= MOST_EXPOSURE


def files(world, isolation, drop_in=b""):
    """What an operator puts into place."""
    settings = {"isolation": isolation, "pin": {"file": "/run/credentials/hsmcore-gateway.service/pin"}}
    config = world.config(maxCacheSize=0, auditLogFile="/var/lib/hsmcore/audit.log", settings=settings)["sequencer"]
    config["gateway"] = {
        "listen": ["unix:/run/hsmcore/sign.sock"],
        "clients": {"me": {"uid": [0], "keys": ["default"]}},
    }
    return {
        "/srv/units/hsmcore-gateway.service.d/more.conf": b"[Service]\n" + drop_in,
        "/etc/hsmcore/gateway.json": json.dumps(config).encode(),
        "/etc/hsmcore/pin": world.pin.encode(),
        "/etc/softhsm/softhsm2.conf": b"directories.tokendir = /var/lib/hsmcore/tokens\nobjectstore.backend = file\n",
        "/var/lib/hsmcore/tokens/token": world.folder,
    }


async def started(system):
    done = await asyncio.to_thread(system.run, "systemctl", "start", GATEWAY)
    assert done.returncode == 0, done.stderr + system.log()


async def signs(system):
    """Sign by the socket that systemd holds."""
    peer = Peer(*await asyncio.open_unix_connection(system.path("/run/hsmcore/sign.sock")))
    try:
        welcome = await peer.hello()
        found = await peer.signed(sign(1, b"m"))
        VerifyKey(welcome.keys[0].public_key).verify(b"m", found.signature)
    finally:
        await peer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_the_lines_for_softhsm_make_a_token_that_the_services_user_owns(tmp_path, terminal):
    """As they are printed, but for the places and the user."""
    text = (UNITS.parents[1] / "docs" / "DEPLOY.md").read_text()
    [block] = re.findall(r"```console\n(# hsmcore init --state .*?)```", text, re.DOTALL)
    lines = block.replace("\n# ", "\n").removeprefix("# ").replace("hsmcore: ", "nobody: ")
    lines = lines.replace("/var/lib/hsmcore", str(tmp_path / "var")).replace("/etc/hsmcore", str(tmp_path))
    environment = {**os.environ, "PATH": f"{terminal.folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euc", lines], env=environment, check=True, capture_output=True, timeout=120)
    assert {path.owner() for path in ((tmp_path / "var"), *(tmp_path / "var").rglob("*"))} == {"nobody"}
    pin = tmp_path / "pin"
    assert (pin.owner(), pin.stat().st_mode & 0o777) == ("root", 0o600)
    assert pin.read_bytes() == (tmp_path / "var" / "pin").read_bytes()


@pytest.mark.skipif(PROBLEM != "", reason=PROBLEM)
@one_loop
async def test_the_gateway_signs_under_its_unit(world, tmp_path):
    """The module in a process of its own, which confines itself; the PIN a credential of systemd's."""
    with booted(tmp_path, files(world, "process")) as system:
        await started(system)
        await signs(system)
        assert system.show(GATEWAY, "ActiveState") == "active"
        assert int(system.show(GATEWAY, "WatchdogTimestampMonotonic")) > 0  # the first sign of life has come
        assert system.run("systemctl", "stop", GATEWAY).returncode == 0
        assert system.show(GATEWAY, "Result") == "success"
        assert system.show(GATEWAY, "ExecMainStatus") == "0"
        assert "less isolated" not in system.log()
        assert "open to its group" not in system.log()
        assert world.pin not in system.log()
        assert system.run("test", "-S", "/run/hsmcore/sign.sock").returncode == 0  # the next one takes it over


@pytest.mark.skipif(PROBLEM != "", reason=PROBLEM)
@pytest.mark.slow("a systemd that boots")
def test_a_wrong_pin_is_sent_once_and_the_unit_stays_down(world, tmp_path):
    """Neither systemd nor whoever starts the unit again by hand costs the token a second attempt."""
    chaos = {
        "module": world.module,
        "log": "/var/lib/hsmcore/chaos.log",
        "faults": [{"function": "C_Login", "every": 1, "action": "hang", "milliseconds": 1}],
    }
    made = files(world, "process")
    document = json.loads(made["/etc/hsmcore/gateway.json"])
    document["keyManager"]["config"] |= {"modulePath": "/srv/core/hsmcore/_bin/libhsmcore_chaos.so"}
    document["keyManager"]["config"] |= {"moduleArgs": "config=/etc/hsmcore/chaos.json"}
    made |= {
        "/etc/hsmcore/gateway.json": json.dumps(document).encode(),
        "/etc/hsmcore/chaos.json": json.dumps(chaos).encode(),
        "/etc/hsmcore/pin": b"wrong-pin",
    }
    with booted(tmp_path, made) as system:
        for _ in range(3):
            assert system.run("systemctl", "start", GATEWAY).returncode != 0
            assert system.show(GATEWAY, "ActiveState") == "failed", system.log()
            assert system.show(GATEWAY, "ExecMainStatus") == "78"
            assert system.show(GATEWAY, "NRestarts") == "0"
        assert "not sent again" in system.log()
        assert Path(system.path("/var/lib/hsmcore/chaos.log")).read_text().count("C_Login") == 1


@pytest.mark.deep
@pytest.mark.skipif(PROBLEM != "", reason=PROBLEM)
@one_loop
async def test_a_gateway_that_hangs_is_started_again_and_its_clients_wait_at_the_socket(world, tmp_path):
    drop_in = b"WatchdogSec=1s\nTimeoutAbortSec=1s\n"
    with booted(tmp_path, files(world, "thread", drop_in)) as system:
        await started(system)
        await signs(system)
        before = system.show(GATEWAY, "MainPID")
        system.run("kill", "-STOP", before)
        await signs(system)  # the connection waits for the next gateway
        assert system.show(GATEWAY, "NRestarts") == "1"
        assert system.show(GATEWAY, "MainPID") != before


@pytest.mark.deep
@pytest.mark.skipif(PROBLEM != "", reason=PROBLEM)
def test_the_console_runs_under_its_unit(world, tmp_path):
    config = json.loads(json.dumps(world.config()))
    config["sequencer"]["keyManager"]["stateFile"] = "/var/lib/hsmcore/state.db"
    config["sequencer"]["keyManager"]["failover"] = {"enabled": True}
    config["sequencer"]["keyManager"]["monitoring"] = {"listen": "127.0.0.1:0"}
    with booted(
        tmp_path, {**files(world, "thread"), "/etc/hsmcore/hsmcore.json": json.dumps(config).encode()}
    ) as system:
        done = system.run("systemctl", "start", "hsmcore-serve.service")
        assert done.returncode == 0, done.stderr + system.log()
        address = re.search(r"http://127\.0\.0\.1:\d+", system.log())[0]
        with urllib.request.urlopen(f"{address}/healthz") as answer:  # noqa: S310  # its scheme is http
            assert answer.status == 200
