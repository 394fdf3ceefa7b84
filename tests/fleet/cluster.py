"""A database of three nodes for a test: primary `a`, synchronous standby `b`, asynchronous standby `c`. The test itself
decides what happens to them, as an operator would; patroni.py has a cluster that decides by itself.

Between the nodes lie proxies (links) that can be held. A node that was killed never comes back as a second primary, but
with `split`, where the old one goes on with nobody to confirm its commits.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from tests.fleet.nodes import Node, give
from tests.fleet.proxy import Proxy
from tests.support.chaos import send_signal

NAMES = ("a", "b", "c")
CANCEL = """SELECT pg_cancel_backend(pid) FROM pg_stat_activity
    WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'"""
_BINDS = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%INSERT INTO bound%'"
_GOT = "SELECT (greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn)::bigint"
_AT = "SELECT pg_current_wal_flush_lsn()::text"
_STREAMS = """SELECT count(*) FROM pg_stat_replication
    WHERE state = 'streaming' AND application_name = %s AND flush_lsn >= %s::pg_lsn"""


class Template:
    """The three nodes as they are before anything has happened, to be copied: made once, for many clusters. `prepare`:
    puts into the first one, which runs, what all are to have. Blocks."""

    def __init__(self, folder: Path, prepare: Callable[[Node], None] = lambda _: None) -> None:
        give(folder)
        self.nodes = [Node(name, folder / name) for name in NAMES]
        first, *others = self.nodes
        first.make()
        prepare(first)
        for other in others:
            other.clone_from(first.port)
        first.end(signal.SIGINT)

    def copy(self, folder: Path) -> list[Node]:
        """New nodes with that content, in a new folder."""
        folder.mkdir()
        folder.chmod(0o755)
        copies = [Node(node.name, folder / node.name) for node in self.nodes]
        for node, copied in zip(self.nodes, copies, strict=True):
            node.copy_to(copied)
        return copies


class Cluster:
    """Three nodes, of which `leader` is the primary that clients are led to; None: there is none just now. Belongs to
    one event loop."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.leader: Node | None = None
        self.synchronous, self.asynchronous = nodes[1], nodes[2]
        self.old: Node | None = None
        """A primary that was left behind and still runs."""
        self.links = {node.name: Proxy(self._upstream) for node in nodes}
        """The ways by which standbys get the primary's log, by the standby's name."""

    def _upstream(self) -> int | None:
        return None if self.leader is None else self.leader.port

    def port(self) -> int | None:
        """Where clients are led to."""
        return None if self.leader is None else self.leader.port

    async def start(self) -> None:
        """Start all three, and wait until the standbys follow."""
        for link in self.links.values():
            await link.start()
        first = self.nodes[0]
        first.configure(synchronous_standby_names=self.synchronous.name)
        self.leader = first
        await asyncio.gather(*(self._follow(node) for node in self.nodes[1:]), asyncio.to_thread(first.start))
        for node in self.nodes[1:]:
            await self.streams(node)

    async def _follow(self, node: Node) -> None:
        node.follow(self.links[node.name].port)
        await asyncio.to_thread(node.start)

    async def close(self) -> None:
        """End everything."""
        self.leader = None
        await asyncio.gather(*(asyncio.to_thread(node.end) for node in self.nodes))
        for link in self.links.values():
            await link.close()

    async def ask(self, node: Node, question: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return await asyncio.to_thread(node.ask, question, *values)

    async def streams(self, node: Node, seconds: float = 120.0) -> None:
        """Wait until a standby has what the primary has written so far."""
        at = None
        async with asyncio.timeout(seconds):
            while True:
                assert self.leader is not None
                with suppress(psycopg.Error):
                    at = at or (await self.ask(self.leader, _AT))[0][0]
                    if (await self.ask(self.leader, _STREAMS, node.name, at))[0][0]:
                        return
                await asyncio.sleep(0.05)

    # ---- what goes wrong ----

    async def kill(self, node: Node) -> None:
        """Kill a node with all its processes."""
        await asyncio.to_thread(node.end)

    async def bounce(self, node: Node, number: int = signal.SIGKILL) -> None:
        """End a node by a signal and start it again as what it was."""
        await asyncio.to_thread(node.end, number)
        await asyncio.to_thread(node.start)

    def stop(self, node: Node) -> None:
        """Stop a node's processes, all of them."""
        if node.process is not None:
            node.process.send(signal.SIGSTOP, family=True)

    def cont(self, node: Node) -> None:
        """Let them go on."""
        if node.process is not None:
            node.process.send(signal.SIGCONT, family=True)

    async def cancel_waiting_commit(self) -> int:
        """Cancel every commit that waits for the synchronous standby, on the primary and on one that was left behind:
        what it wrote is there all the same. Returns how many there were."""
        count = 0
        for node in filter(None, (self.leader, self.old)):
            with suppress(psycopg.Error):
                count += len(await self.ask(node, CANCEL))
        return count

    async def hold_a_commit(self, tries: int = 10) -> None:
        """Keep the primary's log from the synchronous standby, at a moment when a transaction that binds a new position
        waits for it, if that comes: anything else of that host would stand before it."""
        assert self.leader is not None
        link = self.links[self.synchronous.name]
        for _ in range(tries):
            link.hold()
            for _ in range(5):
                with suppress(psycopg.Error):
                    if await self.ask(self.leader, _BINDS):
                        return
                await asyncio.sleep(0.02)
            link.heal()
            await asyncio.sleep(0.05)
        link.hold()

    async def synchronize_with(self, node: Node, names: str) -> None:
        """Set synchronous_standby_names of a primary that runs. Empty: it lets all commits go that wait."""
        node.configure(synchronous_standby_names=names)
        async with asyncio.timeout(60):
            while await self.ask(node, "SHOW synchronous_standby_names") != [(names,)]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def hold_a_bind(self, seconds: float) -> int | None:
        """Stop the server's process of a transaction that binds, when it has read who holds the epoch and is about to
        insert: with a lock of the table that it waits for, which is then given back. Returns the process id, for
        `let_go`; None: nothing was bound in that time."""
        assert self.leader is not None
        return await asyncio.to_thread(self.leader.hold_a_bind, seconds)

    def let_go(self, pid: int) -> None:
        """Let that process go on."""
        with suppress(ProcessLookupError):  # its server was killed
            send_signal(pid, signal.SIGCONT)

    async def fail_over(self, number: int = signal.SIGKILL) -> None:
        """The primary dies of a signal, and the synchronous standby takes its place: nothing is lost. SIGINT: it ends
        in order, when its standbys have all that it has written."""
        assert self.leader is not None
        dead, self.leader = self.leader, None
        await asyncio.to_thread(dead.end, number)
        await self._promote(self.synchronous, self.asynchronous)

    async def split(self) -> None:
        """The primary is cut off from its standbys, of which the synchronous one takes its place; the old primary goes
        on as `old`, and clients that are still led there can commit nothing."""
        self.old, self.leader = self.leader, None
        for link in self.links.values():
            link.cut()
        await self._promote(self.synchronous, self.asynchronous)

    async def end_split(self) -> None:
        """The old primary is found and killed."""
        if self.old is not None:
            await self.kill(self.old)
            self.old = None

    async def lose(self) -> None:
        """Primary and synchronous standby die, and the asynchronous one is promoted by force: what it had not got, as
        while its link was held, is lost."""
        assert self.leader is not None
        dead, self.leader = self.leader, None
        await self.kill(dead)
        await self.kill(self.synchronous)
        self.links[self.asynchronous.name].cut()
        await self._promote(self.asynchronous, self.synchronous)

    async def rejoin(self) -> None:
        """Have the node that died as the primary follow the new one, as its asynchronous standby."""
        assert self.leader is not None
        node = self.asynchronous
        await self.kill(node)
        await asyncio.to_thread(node.clone_from, self.leader.port)
        await self._follow(node)
        await self.streams(node)

    async def _promote(self, node: Node, standby: Node) -> None:
        node.configure(synchronous_standby_names=standby.name)
        # One that got more of the old primary's log than the new one seems to stream, and gets nothing.
        follows = standby.process is not None and await self._got(standby) <= await self._got(node)
        await self.ask(node, "SELECT pg_promote(true, 120)")
        self.leader, self.synchronous = node, standby
        [self.asynchronous] = (other for other in self.nodes if other not in (node, standby))
        link = self.links[standby.name]
        link.cut()
        link.heal()
        if follows:
            # PostgreSQL 15's standby ends in a PANIC where the timelines part within a record that spans two files.
            with suppress(TimeoutError):
                return await self.streams(standby, 15)
        await self.kill(standby)
        await asyncio.to_thread(standby.clone_from, node.port)
        await self._follow(standby)
        return await self.streams(standby)

    async def _got(self, node: Node) -> int:
        return int((await self.ask(node, _GOT))[0][0])


@asynccontextmanager
async def cluster(template: Template, folder: Path) -> AsyncIterator[Cluster]:
    """A cluster that runs, in a new folder, which is gone at the end."""
    made = Cluster(await asyncio.to_thread(template.copy, folder))
    try:
        await made.start()
        yield made
    finally:
        await made.close()
        await asyncio.to_thread(shutil.rmtree, folder)
