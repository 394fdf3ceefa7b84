"""The public log of a fleet goes on over a takeover; one of a process that is killed is a beginning of itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.integration.test_audit_witnesses import sigsum, started
from tests.integration.test_fleet import hosts  # noqa: F401  # a fixture
from tests.integration.test_public_log import DOMAIN, ORIGIN, digest, leaves, opened, policy, publishing, verify
from tests.support.loops import one_loop
from tests.support.policed import ordered
from tests.support.witness_server import WitnessServer, vkey

from hsmcore.audit.layout import TreeLayout
from hsmcore.audit.public import proof_of
from hsmcore.tlog.checkpoint import Checkpoint

pytestmark = pytest.mark.integration


def published(folder: Path) -> int:
    """How many leaves a host hands out."""
    try:
        return Checkpoint.parse((folder / "checkpoint").read_bytes()).size
    except FileNotFoundError:
        return 0


def waited(folder: Path, size: int) -> None:
    while published(folder) < size:
        time.sleep(0.01)


def proven(folder: Path, position: int, *witnesses: WitnessServer) -> bool:
    layout = TreeLayout(folder)
    proof = proof_of(layout, Checkpoint.parse(layout.checkpoint.read_bytes()), position)
    return verify(policy(*witnesses), digest(ordered(position)), position, proof) == len(witnesses)


def test_a_takeover_goes_on_with_the_same_tree(hosts, tmp_path):  # noqa: F811
    """The follower writes the same files all the while, and hands them out."""
    with WitnessServer() as one, WitnessServer(name="witness.example/w2") as two:
        one.logs[ORIGIN] = two.logs[ORIGIN] = hosts.token.keys["ed25519"].public_key

        def host(name):
            listed = [{"url": each.url, "key": each.key} for each in (one, two)]
            said = {"folder": str(tmp_path / name), "chains": {"block": {"origin": ORIGIN}}, "everyMillis": 10}
            rules = {"auditLogFile": str(tmp_path / f"{name}.log"), "publish": {**said, "witnesses": listed}}
            whole = hosts.config(rules=rules, claim="auto", ttlMs=1000)
            return tmp_path / name / "block", whole

        a, b = (host(name) for name in ("a", "b"))
        first = hosts.begin(a[1], "a")
        first.until("holder")
        second = hosts.begin(b[1], "b")
        for position in range(20):
            first.until_signed(ordered(position))
        waited(a[0], 20)
        waited(b[0], 20)
        assert proven(b[0], 7, one, two)
        first.kill()
        for position in range(20, 30):
            second.until_signed(ordered(position))
        waited(b[0], 30)
        assert all(proven(b[0], position, one, two) for position in (0, 19, 20, 29))
        assert leaves(b[0], 30) == [b"\1" + digest(ordered(n)) for n in range(30)]
        assert leaves(a[0], 20) == leaves(b[0], 30)[:20]
        assert one.seen[ORIGIN] == two.seen[ORIGIN]


SIGNS = """
import asyncio, json, sys, hsmcore
from tests.support.policed import ordered
async def main():
    async with hsmcore.create_key_manager(json.load(open(sys.argv[1]))) as manager:
        position = int(sys.argv[2])
        while True:
            await manager.sign(ordered(position))
            print(position, flush=True)
            position += 1
asyncio.run(main())
"""


@pytest.mark.slow("five processes, four of which are killed")
def test_a_process_that_is_killed_leaves_a_beginning(world, tmp_path):
    """Killed at any instant: the next one goes on, and the witness never sees another history."""
    chance, done = random.Random(5), 0
    with WitnessServer() as one:
        one.logs[ORIGIN] = world.keys["ed25519"].public_key
        config = publishing(world, tmp_path, one)
        path = tmp_path / "config.json"
        path.touch(0o600)
        path.write_text(json.dumps(config))
        for _ in range(4):
            line = [sys.executable, "-c", SIGNS, str(path), str(done)]
            with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
                for _ in range(chance.randrange(1, 120)):
                    done = int(process.stdout.readline()) + 1
                process.send_signal(signal.SIGKILL)
                for more in process.stdout:
                    done = int(more) + 1
        assert verify(policy(one), digest(ordered(done)), done, asyncio.run(signed(config, done))) == 1
        found = leaves(tmp_path / "public" / "block", done + 1)
        assert found == [b"\1" + digest(ordered(position)) for position in range(done + 1)]


async def signed(config, position):
    """Sign a position, which the one before may have bound. Returns its proof."""
    async with opened(config) as manager:
        await manager.sign(ordered(position))
        return await manager.position_proof(DOMAIN, position)


class Sigsum:
    """An independent witness, Debian's sigsum-witness, for the log of one key. It knows that key alone."""

    def __init__(self, folder: Path, public_key: bytes) -> None:
        self._folder = folder
        self.origin = f"sigsum.org/v1/tree/{hashlib.sha256(public_key).hexdigest()}"
        (folder / "log.pub").write_text(sigsum("from-hex", given=public_key.hex()))
        sigsum("generate", "-o", str(folder / "w"))
        own = bytes.fromhex(sigsum("to-hex", "-k", str(folder / "w.pub")).strip())
        self.key = vkey(f"sigsum.org/v1/witness/{hashlib.sha256(own).hexdigest()}", 4, own)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.publish = {
            "chains": {"block": {"origin": self.origin}},
            "witnesses": [{"url": f"http://127.0.0.1:{self._port}", "key": self.key}],
            "cosignEverySeconds": 1,
            "everyMillis": 10,
        }

    def runs(self):
        return started(self._folder, self._port)

    def takes(self, position: int, proof: bytes, content: bytes = b"") -> bool:
        known = f"origin {self.origin}\nfirst 0\nquorum 1\nwitness {self.key}\n".encode()
        return verify(known, digest(ordered(position, content)), position, proof) == 1


@one_loop
async def test_the_witness_of_sigsum_cosigns_positions(fresh_token, tmp_path):
    """Over a restart of each side, and a rotation: as long as both keys verify, both sign the checkpoints. This witness
    knows the first key, and takes no note with two signatures of one name."""
    token = fresh_token()
    witness = Sigsum(tmp_path, token.keys["ed25519"].public_key)
    rotating = {"maxCacheSize": 0, "keyRotation": {"intervalDays": 30, "overlapDays": 2}}
    config = publishing(token, tmp_path, more=rotating, **witness.publish)
    for begin in (0, 300):
        with witness.runs():
            async with opened(config) as manager:
                for position in range(begin, begin + 300):
                    await manager.sign(ordered(position))
                    if position % 300 == 150:
                        await manager.rotate_key("test")
                proof = await manager.position_proof(DOMAIN, begin + 299, timeout=30)
                assert witness.takes(begin + 299, proof)
                assert not witness.takes(begin + 299, proof, b"x")
                shown = manager.describe()["publish"][DOMAIN]
                assert shown["published"] == shown["signed"] == begin + 300, "the last one, too, is cosigned"


def test_the_witness_of_sigsum_cosigns_over_a_takeover(hosts, tmp_path):  # noqa: F811
    witness = Sigsum(tmp_path, hosts.token.keys["ed25519"].public_key)

    def host(name):
        publish = {"folder": str(tmp_path / name), **witness.publish}
        rules = {"auditLogFile": str(tmp_path / f"{name}.log"), "publish": publish}
        return hosts.begin(hosts.config(rules=rules, claim="auto", ttlMs=1000), name)

    with witness.runs():
        first = host("a")
        first.until("holder")
        second = host("b")
        for position in range(40):
            first.until_signed(ordered(position))
        waited(tmp_path / "a" / "block", 40)
        first.kill()
        for position in range(40, 60):
            second.until_signed(ordered(position))
        waited(tmp_path / "b" / "block", 60)
    layout = TreeLayout(tmp_path / "b" / "block")
    checkpoint = Checkpoint.parse(layout.checkpoint.read_bytes())
    assert all(witness.takes(position, proof_of(layout, checkpoint, position)) for position in (0, 39, 40, 59))
