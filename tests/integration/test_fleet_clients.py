"""Clients of a fleet's gateways: three of them on PostgreSQL and SoftHSM, of which one signs at a time."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest
from tests.integration.test_typescript import AT_LENGTH, NODE, built, load, needs_node  # noqa: F401  # a fixture
from tests.support import rust
from tests.support.gateways import GatewayProcess, document_of
from tests.support.loops import one_loop
from tests.support.paths import ROOT
from tests.support.policed import ordered
from tests.support.postgres import Cluster
from tests.support.softhsm import Token
from tests.support.verifiers import is_good
from tests.support.zygote import CLI, Forked

from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.errors import HsmError, NotHolder
from hsmcore.gateway import Client

pytestmark = pytest.mark.integration
TTL_MS = 1000


class Site:
    """Gateways of one fleet, each at a socket in a folder of its host's name."""

    def __init__(self, folder: Path, token: Token, server: Cluster, *names: str, ttl_ms: int = TTL_MS) -> None:
        self.folder, self.names, self.server = folder, names, server
        url = server.database()
        self.database = url.rsplit("/", 1)[1]
        self.gateways: dict[str, GatewayProcess] = {}
        for name in names:
            own = folder / name
            own.mkdir(mode=0o700)
            fleet = {"store": {"url": url}, "name": "tests", "host": name, "singleNode": True, "ttlMs": ttl_ms}
            policy = {"kinds": ["block", "state-root", "raw"]}
            log = str(own / "audit.log")
            config = token.config(fleet=fleet, policy=policy, auditLogFile=log, maxCacheSize=0, requestTimeoutMs=60_000)
            self.gateways[name] = GatewayProcess(own, document_of(config, self.address(name)))

    def address(self, name: str) -> str:
        return f"unix:{self.folder}/{name}/sign.sock"

    @property
    def addresses(self) -> list[str]:
        return [self.address(name) for name in self.names]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for one in self.gateways.values():
                await one.start()
                stack.push_async_callback(one.end)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def fleet(self, *words: str) -> None:
        """A command of `hsmcore fleet`."""
        config = str(self.folder / self.names[0] / "gateway.json")
        process = await asyncio.to_thread(Forked, [CLI, "fleet", *words, "--config", config])
        assert await asyncio.to_thread(process.wait) == 0

    def holder(self) -> str:
        """The host that holds the epoch, or ""."""
        found = self.server.execute("SELECT host FROM hsmcore_tests.fleet WHERE released = 0", self.database)
        return str(found[0][0]) if found else ""

    def signed(self) -> list[dict[str, Any]]:
        """The records of signatures, of all hosts. What was open at a host that ended is there once more, by the next
        one: the same bytes."""
        return [
            record
            for name in self.names
            for block in Query(Layout(self.folder / name / "audit.log"), None, None, {"operation": "sign"}).blocks()
            for record in block
            if record["result"] == "ok"
        ]


@pytest.fixture
def site(tmp_path: Path, world: Token, postgres: Cluster) -> Site:
    return Site(tmp_path, world, postgres, "signer-1", "signer-2", "signer-3")


class Load:
    """Callers in Python that sign without end, messages and blocks."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.going = True
        self.asked = self.signed = 0
        self.failed: Counter[str] = Counter()
        self.wrong: list[bytes] = []
        self.members: Counter[str] = Counter()
        """By which gateways."""

    async def one(self, message: bytes, **more: Any) -> None:
        self.asked += 1
        try:
            receipt = await self.client.sign_with_receipt(message, **more)
        except HsmError as error:
            self.failed[f"{error.status} {error.maybe_signed}"] += 1
        else:
            self.signed += 1
            self.members[receipt.member] += 1
            if not is_good("ed25519", receipt.public_key, message, receipt.signature):
                self.wrong.append(message)

    async def messages(self, name: int) -> None:
        for number in count():
            if not self.going:
                return
            await self.one(b"python %d, message %d" % (name, number))

    async def blocks(self) -> None:
        for position in count():
            if not self.going:
                return
            await self.one(ordered(position, b"%d" % position), kind="block")

    async def follows(self, site: Site, *without: str) -> str:
        """Wait until a host signs that is none of these, and holds the epoch. Returns its name."""
        before = Counter(self.members)
        while True:
            held = await asyncio.to_thread(site.holder)
            if held not in without and self.members[site.address(held)] >= before[site.address(held)] + 50:
                return held
            await asyncio.sleep(0.02)


async def takeovers(site: Site, load: Load) -> None:
    """The holder is drained, the next one killed, and then all are started again, in turn."""
    first = await load.follows(site)
    await site.fleet("drain", first, "--reason", "maintenance")
    second = await load.follows(site, first)
    await site.fleet("drain", first, "--off")
    await site.gateways[second].kill()
    await load.follows(site, second)
    await site.gateways[second].start()
    for name in site.names:
        await site.gateways[name].end(signal.SIGTERM)
        await site.gateways[name].start()
    await load.follows(site)


@needs_node
@rust.needs_cargo
@one_loop
@pytest.mark.slow("three gateways start, and start again")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("deadline", [60.0, pytest.param(10.0, marks=AT_LENGTH)])
async def test_clients_sign_through_takeovers(site, built, tmp_path, deadline):  # noqa: F811  # the fixture
    async with site, Client(site.addresses, connections=2, timeout=deadline) as client:
        python = Load(client)
        callers = [asyncio.ensure_future(python.messages(number)) for number in range(8)]
        callers.append(asyncio.ensure_future(python.blocks()))

        async def beside_rust(tell: Any) -> None:
            await tell("wait 50")
            await takeovers(site, python)
            await tell("wait 50")

        async def during(tell: Any) -> None:
            await tell("wait 50")
            made.append(await rust.load(program, tmp_path, beside_rust, *site.addresses))
            await tell("wait 50")

        program, made = await asyncio.to_thread(rust.built, "probe"), []
        options = {"timeoutMs": deadline * 1000, "connections": 2}
        node = await load(built, ",".join(site.addresses), during, blocks=True, **options)
        python.going = False
        await asyncio.gather(*callers)
    assert (python.failed, python.wrong) == ({}, [])
    assert python.asked == python.signed
    assert (node["failed"], node["twice"]) == ({}, [])
    assert node["made"] == node["settled"] == node["signed"]
    records = site.signed()
    keys: dict[str, set[str]] = {}
    for record in records:
        keys.setdefault(record["message_sha256"], set()).add(record["key_id"])
    assert len(rust.settled(tmp_path, *made)) == made[0]
    assert len(keys) == python.signed + node["signed"] + made[0], "each was recorded before it was handed out"
    assert {message: by for message, by in keys.items() if len(by) > 1} == {}
    places: dict[tuple[str, int], set[str]] = {}
    for record in records:
        if "position" in record:
            places.setdefault((record["kind"], record["position"]), set()).add(record["message_sha256"])
    assert {kind for kind, _ in places} == {"block", "state-root"}
    assert [place for place, messages in places.items() if len(messages) > 1] == []


@one_loop
async def test_a_standby_says_which_host_holds_the_epoch(tmp_path, world, postgres):
    site = Site(tmp_path, world, postgres, "signer-1", "signer-2", ttl_ms=60_000)
    async with site, Client(site.addresses) as client:
        assert await client.sign(b"message")  # a host holds it then
        held = await asyncio.to_thread(site.holder)
        async with Client([site.address(name) for name in site.names if name != held]) as other:
            for asked in (other.sign(b"message"), other.sign_many([b"message"])):
                with pytest.raises(NotHolder) as refused:
                    await asked
                error = refused.value
                assert (error.holder, error.retryable, error.maybe_signed) == (held, True, False)
                assert "holder: " not in str(error)


@needs_node
@one_loop
@pytest.mark.timeout(200)
async def test_the_example_signs_block_after_block_through_a_takeover(tmp_path, world, postgres, built):  # noqa: F811
    site = Site(tmp_path, world, postgres, "signer-1", "signer-2")
    program = [NODE, ROOT / "examples" / "fleet_sequencer.mjs", ",".join(site.addresses), "default"]
    async with site:
        running = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
        assert running.stdout is not None
        try:
            for position in range(40):
                number, signature = (await running.stdout.readline()).decode().split()
                block = ordered(position, b"what is in block %d" % position)
                assert int(number) == position
                assert is_good("ed25519", world.keys["ed25519"].public_key, block, bytes.fromhex(signature))
                if position == 20:
                    await site.gateways[await asyncio.to_thread(site.holder)].kill()
            running.terminate()
            await running.stdout.read()
            assert await running.wait() == 0
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()
