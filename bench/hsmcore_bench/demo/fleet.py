"""The act of the fleet: two sequencers, one key, one database. The one that holds the epoch is stopped, and killed, and
the other goes on. LiteSVM executes what they signed: no transaction and no block may come twice.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from solders.hash import Hash
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from hsmcore import _native
from hsmcore.errors import SystemFailure
from hsmcore.members.control.process import python
from hsmcore.members.control.provision import provision
from hsmcore.members.control.softhsm import KEY_LABEL, find_softhsm
from hsmcore_bench.demo.fleet_member import DOMAIN, LEAST, TRANSFERS, transfer_of
from hsmcore_bench.demo.ledger import Ledger
from hsmcore_bench.demo.postgres import private_postgres
from hsmcore_bench.demo.steady import Tell
from hsmcore_bench.harness.softhsm import TokenFolder, token_folder, variable, write_private

HOSTS: Final = ("north", "south")
TTL_MS: Final = 1000
BLOCKS: Final = 10
"""That the holder signs before something happens to it, and at the end."""
DEEDS: Final = ("stopped", "killed", "stopped", "killed")
MOST_TRANSFERS: Final = 100_000
_LONGEST: Final = 60.0  # seconds for one takeover
_TOKEN: Final = "sequencer-fleet"


@dataclass(slots=True)
class Chain:
    """What the ledger was given. A second signature at one position, or a transfer that is executed again, is
    counted."""

    ledger: Ledger
    payer: Pubkey = field(default_factory=Pubkey.default)
    funded: int = 0
    blocks: dict[int, str] = field(default_factory=dict)
    by_host: Counter[str] = field(default_factory=Counter)
    done: Counter[int] = field(default_factory=Counter)
    """How often each transfer was executed."""
    refused: Counter[str] = field(default_factory=Counter)
    """Transfers that the ledger refused, by its reason."""
    two_blocks: int = 0
    bad: int = 0

    def fund(self, key: bytes) -> None:
        """Give the sequencers' account what it needs. Idempotent."""
        if not self.funded:
            self.payer, self.funded = Pubkey.from_bytes(key), MOST_TRANSFERS * (LEAST + MOST_TRANSFERS + 10_000)
            self.ledger.fund(self.payer, self.funded)

    def add(self, line: dict[str, Any], blockhash: Hash) -> None:
        """Judge a block and execute its transfers."""
        block, position = line["block"], line["position"]
        if not _native.verify("ed25519", bytes(self.payer), bytes.fromhex(block), bytes.fromhex(line["signature"])):
            self.bad += 1
        self.two_blocks += self.blocks.setdefault(position, block) != block
        self.by_host[line["host"]] += 1
        for n, signature in enumerate(line["signatures"]):
            number = line["first"] + n
            message = transfer_of(number, self.payer, blockhash)
            signed = VersionedTransaction.populate(message, [Signature(bytes.fromhex(signature))])
            reason = self.ledger.execute(signed)
            if reason is None:
                self.done[number] += 1
            else:
                self.refused[reason] += 1

    @property
    def executed(self) -> int:
        """Transfers without a gap from the first one on."""
        return len(self.done)

    def books_balance(self) -> bool:
        """Whether the account paid each transfer and its fee once."""
        paid = sum(LEAST + number for number in self.done) + self.ledger.fees
        return self.ledger.balance(self.payer) == self.funded - paid


class Host:
    """The process of one sequencer, from outside."""

    def __init__(self, name: str, spec: Path, lines: asyncio.Queue[dict[str, Any]]) -> None:
        self.name, self._spec, self._lines = name, spec, lines
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it."""
        command = python("-m", "hsmcore_bench.demo.fleet_member", str(self._spec))
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=1 << 22)
        self._reading = asyncio.ensure_future(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.endswith(b"\n"):  # else it was killed while it wrote
                self._lines.put_nowait(json.loads(line))

    def learn(self, position: int, executed: int) -> None:
        """Tell it of a block."""
        process = self._process
        if process is not None and process.stdin is not None and process.returncode is None:
            process.stdin.write(json.dumps({"position": position, "executed": executed}).encode() + b"\n")

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self) -> None:
        """Wait for its end, and read what it still wrote."""
        if self._process is not None and self._reading is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            await self._process.wait()
            await self._reading

    async def end(self) -> None:
        """End it, stopped or not."""
        if self._process is not None and self._process.returncode is None:
            self.send(signal.SIGCONT)
            await self.wait()


class Player:
    """Belongs to one event loop."""

    def __init__(self, hosts: list[Host], lines: asyncio.Queue[dict[str, Any]], ledger: Ledger, tell: Tell) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._lines, self._tell = lines, tell
        self.chain, self._blockhash = Chain(ledger), ledger.blockhash()
        self.events: list[dict[str, Any]] = []
        self.takeovers: list[tuple[float, float]] = []
        """Seconds of each, and for how many of them the host that took over was still opening."""
        self._opened: dict[str, float] = {}
        """When each host was open last."""
        self.counts: Counter[str] = Counter()
        self._holder = ""
        self._epoch = 0
        self._begun = perf_counter()

    async def play(self) -> None:
        """The whole story."""
        for host in self._hosts.values():
            await host.start()
        holder = await self._blocks_of(None)
        for deed in DEEDS:
            host, was = self._hosts[holder], perf_counter()
            self._event(deed, host=holder)
            host.send(signal.SIGKILL if deed == "killed" else signal.SIGSTOP)
            if deed == "killed":
                await host.wait()
            other = next(name for name in self._hosts if name != holder)
            await self._first_block_of(other)
            opening = max(self._opened[other] - was, 0.0)
            self.takeovers.append((perf_counter() - was, opening))
            if opening:
                self._event("was opening", host=other, seconds=round(opening, 3))
            if deed == "killed":
                await host.start()
            else:
                host.send(signal.SIGCONT)
            self._event("started again" if deed == "killed" else "goes on", host=holder)
            holder = await self._blocks_of(other)
        await asyncio.gather(*(host.end() for host in self._hosts.values()))
        while not self._lines.empty():
            self._take(self._lines.get_nowait())

    async def _first_block_of(self, name: str) -> None:
        async with asyncio.timeout(_LONGEST):
            while self._take(await self._lines.get()) != name:
                pass

    async def _blocks_of(self, name: str | None) -> str:
        """Wait for some blocks of one host. Returns its name: of the one that signs, if none was asked for."""
        count = 0
        async with asyncio.timeout(_LONGEST):
            while count < BLOCKS:
                signed = self._take(await self._lines.get())
                if signed is not None:
                    name = name or signed
                    count += signed == name
        assert name is not None
        return name

    def _take(self, line: dict[str, Any]) -> str | None:
        """Judge a line. Returns the host of a block."""
        what, host = line["what"], line["host"]
        if what == "open":
            self._opened[host] = perf_counter()
            self.chain.fund(bytes.fromhex(line["key"]))
        elif what == "block":
            self.chain.add(line, self._blockhash)
            if host != self._holder:
                self._event("signs", host=host, epoch=line["epoch"], position=line["position"])
                self._holder = host
            for one in self._hosts.values():
                one.learn(line["position"], line["first"] + TRANSFERS)
            return str(host)
        elif what == "state" and line["state"] == "follower" and host == self._holder:
            self._event("lost", host=host, epoch=line["epoch"])
        elif what in ("taken", "refused", "failed"):
            self.counts[what] += 1
        return None

    def _event(self, what: str, **fields: Any) -> None:
        event = {"atSeconds": round(perf_counter() - self._begun, 3), "event": what, **fields}
        self.events.append(event)
        self._tell(line_of(event))

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        chain = self.chain
        twice = sum(count - 1 for count in chain.done.values())
        complete = sorted(chain.done) == list(range(len(chain.done)))
        found = {
            "blocks": len(chain.blocks),
            "blocksByHost": dict(chain.by_host),
            "positionsWithTwoBlocks": chain.two_blocks,
            "badSignatures": chain.bad,
            "transactionsExecuted": len(chain.done),
            "transactionsExecutedTwice": twice,
            "transactionsRefusedByLedger": dict(chain.refused),
            "transactionsMissing": 0 if complete else max(chain.done) + 1 - len(chain.done),
            "booksBalance": chain.books_balance(),
            "takeovers": [round(seconds, 3) for seconds, _ in self.takeovers],
            "takeoversOpening": [round(opening, 3) for _, opening in self.takeovers],
            "ttlMs": TTL_MS,
            "positionsTaken": self.counts["taken"],
            "blocksRefusedToFormerHolder": self.counts["refused"],
            "failed": self.counts["failed"],
            "events": self.events,
        }
        wrong = chain.two_blocks or twice or chain.bad or not complete or not found["booksBalance"]
        return {"ok": not wrong and len(self.takeovers) == len(DEEDS) and len(chain.by_host) > 1, **found}


def line_of(event: dict[str, Any]) -> str:
    """An event for a person."""
    words = {
        "signs": "{host} holds epoch {epoch} and signs block {position}",
        "stopped": "{host} is stopped in the middle of its work (SIGSTOP)",
        "killed": "{host} is killed (SIGKILL)",
        "goes on": "{host} goes on where it was stopped (SIGCONT)",
        "started again": "{host} is started again",
        "was opening": "{host} was still opening for {seconds:.2f} s of that, and waited for a lease from then on",
        "lost": "{host} finds that epoch {epoch} is another's, and signs nothing",
    }
    return f"{event['atSeconds']:7.3f} s  {words[event['event']].format(**event)}"


def run_fleet(tell: Tell) -> dict[str, Any]:
    """Make database and token, and play. Raises SystemFailure without PostgreSQL, ModuleMissing without SoftHSM."""
    module = find_softhsm()
    tell("starting a private PostgreSQL, and making a SoftHSM token for two sequencers")
    with (
        private_postgres() as url,
        token_folder("hsmcore-demo-") as folder,
        variable("SOFTHSM2_CONF", str(folder.conf)),
    ):
        provision(folder.request(module, _TOKEN, KEY_LABEL), folder.conf)
        return asyncio.run(_play(folder, module, url, tell))


async def _play(folder: TokenFolder, module: str, url: str, tell: Tell) -> dict[str, Any]:
    ledger, lines = Ledger(history=MOST_TRANSFERS), asyncio.Queue[dict[str, Any]]()
    write_private(folder.path / "url", url)
    hosts = []
    for name in HOSTS:
        spec = {"host": name, "blockhash": str(ledger.blockhash()), "config": _config(folder, module, name)}
        path = folder.path / f"{name}.json"
        write_private(path, json.dumps(spec))
        hosts.append(Host(name, path, lines))
    player = Player(hosts, lines, ledger, tell)
    try:
        await player.play()
    except TimeoutError:
        raise SystemFailure(f"no sequencer took over within {_LONGEST:.0f} s") from None
    finally:
        await asyncio.gather(*(host.end() for host in hosts))
    return player.as_dict()


def _config(folder: TokenFolder, module: str, host: str) -> dict[str, Any]:
    pin = {"file": str(folder.pin_file())}
    provider = {"modulePath": module, "tokenLabel": _TOKEN, "pin": pin, "keyLabel": KEY_LABEL, "sessions": 2}
    manager = {
        "type": "softhsm",
        "config": provider,
        "auditLogFile": str(folder.path / f"{host}.log"),
        "policy": {"kinds": ["tx-v0", "block"], "domain": DOMAIN},
        "fleet": {
            "store": {"url": {"file": str(folder.path / "url")}},
            "name": "demo",
            "host": host,
            "ttlMs": TTL_MS,
            "singleNode": True,
        },
    }
    return {"sequencer": {"keyManager": manager}}
