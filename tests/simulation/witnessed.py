"""Witnesses of a fleet's public log: three real `LogWitness`, two of which are a quorum, and what asks them, greenlets
in place of threads.

A request travels: its witness may see it and the answer be lost, or its sender be dead by then.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from greenlet import getcurrent, greenlet
from nacl.signing import SigningKey
from tests.simulation.clock import SECOND
from tests.simulation.hosts import HOST, HostsLoop, Process
from tests.simulation.threads import no_loop
from tests.support.rfc6962 import leaf_of, root_of

from hsmcore.audit import witnesses
from hsmcore.audit.layout import TreeLayout
from hsmcore.audit.public import PublicTree
from hsmcore.audit.signers import FileSigner
from hsmcore.audit.tiles import Tiles
from hsmcore.manager import publishing
from hsmcore.serve.witness import LogWitness
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import COSIGNATURE, ED25519, VerifierKey

ORIGIN: Final = "world.example/block"
NAMES: Final = tuple(f"{name}.example" for name in ("w1", "w2", "w3"))
QUORUM: Final = 2
_MS: Final = 1_000_000


def secret_of(name: str) -> SigningKey:
    return SigningKey(hashlib.sha256(name.encode()).digest())


def key_of(name: str) -> VerifierKey:
    return VerifierKey(name, COSIGNATURE, bytes(secret_of(name).verify_key))


class Witnesses:
    """Those of a world."""

    def __init__(self, loop: HostsLoop, folder: Path, public_key: bytes, tell: Callable[[str, str], None]) -> None:
        self.loop, self.tell = loop, tell
        log = VerifierKey(ORIGIN, ED25519, public_key)
        self._made = {name: LogWitness(folder / name, name, [log]) for name in NAMES}
        for name, witness in self._made.items():
            witness._signer, witness.key = FileSigner(name, secret_of(name)), key_of(name)
        self.seen: dict[tuple[int, bytes], set[str]] = {}
        """By the size and root of each checkpoint: who has cosigned it."""
        self.histories: dict[bytes, tuple[bytes, ...]] = {}
        """By its root: the entries of each log that somebody showed."""
        self.entries: dict[bytes, bytes] = {}
        """By their leaves."""

    def knows(self, entries: Sequence[bytes]) -> bytes:
        """Note a history. Returns its root."""
        leaves = [leaf_of(entry) for entry in entries]
        self.entries.update(zip(leaves, entries, strict=True))
        root = root_of(leaves)
        self.histories[root] = tuple(entries)
        return root

    def add(self, name: str, body: bytes, who: str) -> tuple[int, bytes]:
        """A request arrives."""
        status, content, _ = self._made[name].add(body)
        checkpoint = Checkpoint.parse(body.partition(b"\n\n")[2])
        self.tell(name, f"{status} to {who}, of {checkpoint.size} positions")
        if status == 200:
            self.seen.setdefault((checkpoint.size, checkpoint.root), set()).add(name)
        return status, content


worlds: list[Witnesses] = []


def entries_of(folder: Path, size: int) -> list[bytes]:
    """What a folder has of a log's first entries."""
    found: list[bytes] = []
    data = b"".join(_bundle(folder, number, min(size - 256 * number, 256)) for number in range(-(-size // 256)))
    at = 0
    while at < len(data) and len(found) < size:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        found.append(data[at + 2 : end])
        at = end
    return found


def _bundle(folder: Path, number: int, width: int) -> bytes:
    whole = folder / "tile" / "entries" / f"{number:03d}"
    path = whole if width == 256 or whole.exists() else whole.with_name(f"{whole.name}.p") / str(width)
    return path.read_bytes() if path.exists() else b""


# ---- threads ---------------------------------------------------------------------------------------------------------


class _Thread(greenlet):
    """In the place of `threading.Thread`."""

    def __init__(self, target: Callable[[], None], **_options: Any) -> None:
        super().__init__(target)
        process = HOST.get()
        assert process is not None
        self.process: Process = process
        self.gr_context = process.context.copy()

    def start(self) -> None:
        _threads.append(self)
        self.goes_on(0)

    def goes_on(self, after_ns: int, number: int = 0) -> None:
        worlds[0].loop.happens_to(self.process, after_ns, lambda: self._run(number))

    waits = 0
    """The number of its wait: an event that is of an earlier one comes too late."""

    def _run(self, number: int) -> None:
        if number == self.waits and not self.dead:
            self.waits += 1
            with no_loop():
                self.switch()

    def pause(self, ns: int) -> None:
        self.goes_on(ns, self.waits)
        assert self.parent is not None
        self.parent.switch()

    def join(self, _seconds: float) -> None:
        pass


_threads: list[_Thread] = []
"""Those of the world, dead or not: to drop one runs its `finally`."""


class _Event:
    """In the place of `threading.Event`."""

    def __init__(self) -> None:
        self._set, self._waits = False, list[_Thread]()

    def is_set(self) -> bool:
        return self._set

    def clear(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True
        for thread in self._waits:
            thread.goes_on(0, thread.waits)
        self._waits.clear()

    def wait(self, seconds: float) -> None:
        if not self._set:
            thread = getcurrent()
            assert isinstance(thread, _Thread)
            self._waits.append(thread)
            thread.pause(int(seconds * SECOND))
            self._waits[:] = [one for one in self._waits if one is not thread]


def _asked(self: Any, body: bytes) -> tuple[int, bytes]:
    """In the place of `WitnessConnection.ask`."""
    thread, world = getcurrent(), worlds[0]
    assert isinstance(thread, _Thread)
    rng = world.loop.chance.time
    name = self._host
    trips = [rng.randrange(40 * _MS if rng.random() < 0.9 else 2 * SECOND) for _ in range(2)]
    lost = rng.choice((None, None, None, None, None, None, "request", "answer"))
    thread.pause(trips[0])
    answer = (0, b"") if lost == "request" else world.add(name, body, thread.process.name)
    thread.pause(trips[1])
    if lost is not None:
        raise witnesses.WitnessError("no answer (simulated)")
    return answer


def begin(world: Witnesses) -> None:
    """Ask these from now on, in the place of hsmcore's threads and connections."""
    worlds[:] = [world]
    _threads.clear()
    made: Any = SimpleNamespace(Thread=_Thread, Event=_Event, Lock=threading.Lock)
    witnesses.threading = made
    witnesses.WitnessConnection.ask = _asked  # type: ignore[method-assign]


class Tree(PublicTree):
    """A host's, which tells what it grows to."""

    def __init__(self, layout: TreeLayout, size: int) -> None:
        super().__init__(layout, size)
        leaves = Tiles(layout, size)  # the bundles beside them may be the thief's
        self._entries = [worlds[0].entries[leaves.leaf(index)] for index in range(size)]

    def append(self, entries: Sequence[bytes]) -> None:
        super().append(entries)
        self._entries += entries
        worlds[0].knows(self._entries)


publishing.PublicTree = Tree  # type: ignore[misc]
