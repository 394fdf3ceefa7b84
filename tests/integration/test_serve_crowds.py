"""Crowds at the console, beside a signer that may open few files: they cost it no descriptor and no signature."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from tests.support.certificates import self_signed
from tests.support.web import ask

from hsmcore.audit.layout import Layout

pytestmark = pytest.mark.integration
VIEWER = "v" * 40
SECONDS = 2.0
"""How long the crowd stays."""
NEEDED = 64
"""Descriptors that must stay free: half of the reserve."""
HELLO = "16030100c8010000c40303"
"""Half a ClientHello."""
REQUEST = b"GET /readyz HTTP/1.1\r\n".hex()


def run(stack, folder, *command):
    complaints = stack.enter_context((folder / f"{command[0]}.stderr").open("w"))
    child = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
    )
    stack.enter_context(child)
    stack.callback(child.kill)
    return child


def end(child):
    """What it said until it ended."""
    return child.communicate(timeout=60)[0]


@pytest.mark.parametrize(
    ("loop", "scheme", "count", "said", "left"),
    [
        pytest.param("asyncio", "https", 1500, "", 900, id="silent", marks=pytest.mark.deep),
        pytest.param("uvloop", "https", 1500, "", 900, id="silent, uvloop"),
        pytest.param("uvloop", "https", 1500, HELLO, 900, id="half a handshake", marks=pytest.mark.deep),
        pytest.param("asyncio", "http", 1500, "", 900, id="silent, no TLS", marks=pytest.mark.deep),
        pytest.param("asyncio", "http", 1500, REQUEST, 900, id="half a request"),
        pytest.param("asyncio", "https", 500, "", 100, id="less than the reserve is left"),
    ],
)
def test_many_connections_cost_no_signature_and_no_descriptor_and_lock_no_client_out(
    world, tmp_path, loop, scheme, count, said, left
):
    monitoring = {"listen": "127.0.0.1:0", "viewerToken": VIEWER}
    trusting = None
    if scheme == "https":
        monitoring["tls"] = self_signed(tmp_path)
        trusting = ssl.create_default_context(cafile=monitoring["tls"]["certificateFile"])
    # A new file of the log for each few hundred records: the signer opens files all the time. Few tiles at a
    # checkpoint: the log holds those of 10,000 records, some 40 files, open until they are on the disk.
    log = Layout(tmp_path / "audit.log")
    config = world.config(
        maxCacheSize=0,
        auditLogFile=str(log.log),
        audit={"rotateBytes": 1 << 16, "checkpointEveryRecords": 1000},
        monitoring=monitoring,
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))

    def full_files():
        return len(list(log.segments.glob("*.jsonl*")))

    with ExitStack() as stack:
        signer = run(stack, tmp_path, "tests.support.console_victim", path, left, loop)
        address = signer.stdout.readline().strip()
        assert ask(address, "/readyz", tls=trusting).status == 200
        where = urlsplit(address)
        crowd = run(stack, tmp_path, "tests.support.console_crowd", where.hostname, where.port, count, said)
        assert crowd.stdout.readline() == "connected\n"
        begun, answers = full_files(), []
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            answers.append(ask(address, "/readyz", tls=trusting).status)
            answers.append(ask(address, "/metrics", tls=trusting, token=VIEWER).status)
            time.sleep(0.02)
        begun = full_files() - begun
        account = json.loads(end(signer))
        end(crowd)
    assert account["failed"] == {}
    assert account["refused"] == 0
    assert account["fewest"] >= NEEDED
    assert begun >= 1
    signed = {int(second): count for second, count in account["seconds"].items()}
    assert list(signed) == list(range(len(signed))), signed
    assert len(signed) > SECONDS
    assert set(answers) == {200}
