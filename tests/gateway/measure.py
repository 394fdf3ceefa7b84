"""What a client of the gateway has left beside others: a key manager that is slow or hangs, a client that floods,
workers of one user, strangers. Each case is in turn with the same beside a process that only takes a processor.

    python -m tests.gateway.measure --rounds 7 [--only CASE]

As root, since clients are users, and on an idle machine. Prints medians and spreads. The signer is SoftHSM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from tests.support.authority import Authority
from tests.support.chaos import Chaos, wrap_noop
from tests.support.flood import KINDS as FLOODS
from tests.support.softhsm import Folder, find_module, make_token
from tests.support.strangers import KINDS as STRANGERS

from hsmcore.errors import HsmError
from hsmcore.gateway import Client

OTHER_UID = 65_534
"""Of the other client; the one that is measured is root."""
OPEN, SLICE, SETTLE = 8, 2.0, 0.4
"""Requests of the one that is measured; seconds."""
WORKERS, OF_A_WORKER, WORK_SECONDS = 4, 150, 30.0
SLOW_MS = 115
LIMIT = 3.0
"""The p99 beside a flood, at most, over that beside a burner."""
_BURN = "import sys\nwhile True: sum(range(10000))"
_HUNG = {"action": "hang", "forever": True}


def say(line: str) -> None:
    """Write a line of the result."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@dataclass
class Case:
    """What runs beside the client. `least`: of its rate, the target."""

    name: str
    least: float
    command: list[str]
    nice: int = 0
    alone: bool = False
    """Whether the reference is nothing, instead of a burner."""
    fault: dict[str, Any] = field(default_factory=dict)
    """Of the other key manager's device, while it runs."""


class Beside:
    """A process that runs when it is told to."""

    def __init__(self, command: list[str], nice: int) -> None:
        self._process = subprocess.Popen(["nice", "-n", str(nice), *command], stdin=subprocess.PIPE)
        time.sleep(2 * SETTLE)  # it may have to connect
        self._process.send_signal(signal.SIGSTOP)

    @contextmanager
    def running(self) -> Iterator[None]:
        """It runs in the block."""
        assert self._process.poll() is None, "what should run beside has ended"
        self._process.send_signal(signal.SIGCONT)
        yield
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@dataclass
class Site:
    """A gateway that runs, with two key managers: that of SoftHSM, and one whose device can be slow or hang."""

    process: subprocess.Popen[bytes]
    path: str
    tls: str
    https: str
    chaos: Chaos
    document: Path

    @property
    def processor(self) -> float:
        """Seconds of processor time of the gateway so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cases(self) -> list[Case]:
        """What is measured."""
        worker = [sys.executable, "-m", "tests.gateway.measure", "--worker", self.path, "64", "other"]
        flood = [sys.executable, "-m", "tests.support.flood", self.path.removeprefix("unix:")]
        strange = [sys.executable, "-m", "tests.support.strangers"]
        slow = Case("other key: slow", 0.95, worker, alone=True, fault={"action": "hang", "milliseconds": SLOW_MS})
        return [
            slow,
            Case("other key: hangs", 0.95, worker, alone=True, fault=_HUNG),
            *(Case(f"flood: {kind}", 0.45, [*flood, kind, "2", str(OTHER_UID)]) for kind in FLOODS),
            *(
                Case(f"strangers: {kind}", 0.9, [*strange, kind, self.tls if kind == "handshakes" else self.https], 10)
                for kind in STRANGERS
            ),
        ]


class Slice(NamedTuple):
    """Of one client. `rate`: signatures a second. `cheap`: signatures in a second of the gateway's processor time,
    which other programs of the machine change least. `tail`: p99 in milliseconds."""

    rate: float
    cheap: float
    tail: float


async def slice_of(client: Client, site: Site) -> Slice:
    """Keep requests open for so long."""
    took: list[float] = []
    begun, used = time.perf_counter(), site.processor

    async def caller() -> None:
        while (at := time.perf_counter()) < begun + SLICE:
            await client.sign(b"hsmcore " + os.urandom(24))
            took.append((time.perf_counter() - at) * 1e3)

    await asyncio.gather(*(caller() for _ in range(OPEN)))
    seconds, processor = time.perf_counter() - begun, site.processor - used
    return Slice(len(took) / seconds, len(took) / processor, sorted(took)[len(took) * 99 // 100])


async def measured(client: Client, beside: Beside | None, site: Site, fault: dict[str, Any]) -> Slice:
    """One slice."""
    if beside is None:
        await asyncio.sleep(SETTLE)
        return await slice_of(client, site)
    if fault:
        site.chaos.fault("C_Sign", every=1, **fault)
    with beside.running():
        await asyncio.sleep(SETTLE)
        found = await slice_of(client, site)
    if fault:
        site.chaos.clear()
        site.chaos.release()
        with beside.running():
            await asyncio.sleep(SETTLE)
    return found


async def compare(case: Case, site: Site, client: Client, rounds: int) -> None:
    """Slices in turn."""
    burner = None if case.alone else Beside([sys.executable, "-c", _BURN], case.nice)
    other = Beside(case.command, case.nice)
    pairs: list[tuple[Slice, Slice]] = []
    try:
        for number in range(rounds):
            found = {}
            for one in (burner, other) if number % 2 else (other, burner):
                found[one] = await measured(client, one, site, case.fault if one is other else {})
            pairs.append((found[other], found[burner]))
    finally:
        other.close()
        if burner is not None:
            burner.close()
    ratios = [sorted(own[at] / base[at] for own, base in pairs) for at in range(len(Slice._fields))]
    rate, cheap, tail = (f"{statistics.median(one):.2f} ({one[0]:.2f} to {one[-1]:.2f})" for one in ratios)
    good = statistics.median(ratios[0]) >= case.least and (case.alone or statistics.median(ratios[2]) <= LIMIT)
    base = statistics.median(base.rate for _, base in pairs)
    say(f"| {case.name} | {base:,.0f}/s | {rate} | {cheap} | {tail} | {case.least} | {'met' if good else 'missed'} |")


def workers(site: Site) -> None:
    """Processes of one user that have more open than it may."""
    command = [sys.executable, "-m", "tests.gateway.measure", "--worker", site.path, str(OF_A_WORKER), "default"]
    made = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(WORKERS)]
    time.sleep(WORK_SECONDS)
    told = [json.loads(one.communicate()[0]) for one in made]
    signed, refused = (sum(one[at] for one in told) for at in (0, 1))
    say(f"{WORKERS} workers, {OF_A_WORKER} open each: {signed:,} signed, {refused} refused; wanted 0 refused")


async def revoke(site: Site, client: Client) -> None:
    """A client that floods is removed while another one signs."""
    flood = await asyncio.create_subprocess_exec(*site.cases()[2].command, stdin=subprocess.PIPE)
    signing = [asyncio.ensure_future(slice_of(client, site)) for _ in range(3)]
    await asyncio.sleep(SLICE / 2)
    document = json.loads(site.document.read_text())
    del document["gateway"]["clients"]["other"]
    site.document.write_text(json.dumps(document))
    begun = time.monotonic()
    site.process.send_signal(signal.SIGHUP)
    await flood.wait()
    took = time.monotonic() - begun
    await asyncio.gather(*signing)  # raises for a request that was refused
    say(f"a client that floods is removed: its connections end {took:.2f} s after SIGHUP, no other request is refused")


async def work(path: str, count: int, key: str) -> None:
    """A worker: keep so many requests open until standard input ends, and say how many were signed and refused."""
    done = refused = 0
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)

    async def caller() -> None:
        nonlocal done, refused
        while not ended.is_set():
            try:
                await client.sign(b"hsmcore " + os.urandom(24))
                done += 1
            except HsmError:
                refused += 1

    os.seteuid(OTHER_UID)
    async with Client(path, key_manager=key, timeout=60) as client:
        os.seteuid(0)
        await asyncio.gather(*(caller() for _ in range(count)))
    say(json.dumps([done, refused]))


@contextmanager
def running(folder: Path, signer: dict[str, Any]) -> Iterator[Site]:
    """A gateway in a process of its own."""
    authority = Authority(folder)
    own = authority.issue("gateway", ips=["127.0.0.1"])
    chaos = Chaos(folder, wrap_noop())
    sock = f"unix:{folder}/sign.sock"
    keys = ["default", "other"]
    document = {
        "keyManagers": {
            "default": {**signer, "maxCacheSize": 0},
            "other": chaos.config()["sequencer"]["keyManager"],
        },
        "gateway": {
            "listen": [sock, "tls:127.0.0.1:0", "https:127.0.0.1:0"],
            "tls": {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file},
            "clients": {"measured": {"uid": [0], "keys": keys}, "other": {"uid": [OTHER_UID], "keys": keys}},
            "socketMode": "0666",
        },
    }
    file = folder / "gateway.json"
    file.write_text(json.dumps(document))
    folder.chmod(0o755)  # another user connects
    program = [str(Path(sys.executable).with_name("hsmcore")), "gateway", "--config", str(file), "--json"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        told = json.loads(process.stdout.readline())["addresses"]
        tls, https = (one.partition(":")[2] for one in told[1:])
        yield Site(process, sock, tls, https, chaos, file)
    finally:
        process.terminate()
        process.wait()


async def measure(site: Site, rounds: int, only: str) -> None:
    """Measure everything, or the cases whose names begin so."""
    async with Client(site.path, timeout=60) as client:
        await slice_of(client, site)
        say("| beside | rate beside a burner | rate | signatures a processor second | p99 | wanted | |")
        for case in site.cases():
            if case.name.startswith(only):
                await compare(case, site, client, rounds)
        if "workers".startswith(only):
            await asyncio.to_thread(workers, site)
        if "revoke".startswith(only):
            await revoke(site, client)


def main() -> None:
    """Measure, or be a worker."""
    parser = argparse.ArgumentParser(description="What a client has left beside others.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="")
    parser.add_argument("--worker", nargs=3, metavar=("SOCKET", "COUNT", "KEY"))
    asked = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("must run as root: two clients are two users")
    if asked.worker:
        path, count, key = asked.worker
        uvloop.run(work(path, int(count), key))
        return
    logging.disable(logging.CRITICAL)
    module, tokens = find_module(), Folder()
    assert module is not None
    with tempfile.TemporaryDirectory() as made:
        os.environ["XDG_STATE_HOME"] = made
        try:
            token = make_token(tokens, module, ({"name": "ed25519", "kind": "ed25519"},))
            signer = token.config()["sequencer"]["keyManager"]
            with running(Path(made), signer) as site:
                uvloop.run(measure(site, asked.rounds, asked.only))
        finally:
            tokens.remove()


if __name__ == "__main__":
    main()
