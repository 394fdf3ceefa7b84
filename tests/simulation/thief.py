"""A fleet that publishes its positions, and a thief who has the signing key, the database and a host.

The thief forks the log where it pleases, goes on with it in the fleet's name, shows histories to some witnesses and not
to others, with true and invented proofs, changes rows, and puts forged files in the place of a host's. Whatever comes
of the log: no position has two witnessed entries.
"""

from __future__ import annotations

import base64
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

from tests.simulation import witnessed
from tests.simulation.clock import SECOND
from tests.simulation.device import Key
from tests.simulation.fleet import CHAIN, Fleet, Host, config_of
from tests.simulation.fleet_script import CALM, HOSTS, SECONDS, Doing, FleetScript, fleet_script
from tests.simulation.witnessed import NAMES, ORIGIN, QUORUM, Witnesses, entries_of, key_of
from tests.simulation.world import Outcome, folder
from tests.support.rfc6962 import growth_of, leaf_of

from hsmcore.audit.layout import TreeLayout
from hsmcore.audit.public import PAYLOAD, PublicTree
from hsmcore.manager.publishing import PublicLog
from hsmcore.serve import witness
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import ED25519, VerifierKey, signature_line

FIRST: Final = 1
THEFTS: Final = 12
QUIET: Final = 0.25
"""How many worlds have no thief: there, all that is bound is published in the end."""
LATE_NS: Final = CALM * SECOND // 2
"""Time from a position to its proof, in a world in which nothing goes wrong any more: the log waits for gaps, and some
requests of witnesses are lost."""
LOSES: Final = frozenset({"steal", "lose", "alone", "forge"})
"""After which the log may stand for good: its history, or its database, is another one."""
_KEY: Final = Key.of("first")
_LOG: Final = VerifierKey(ORIGIN, ED25519, _KEY.public_key)


@dataclass(frozen=True, slots=True)
class ThiefScript(FleetScript):
    """A fleet's, with thefts among what goes wrong."""


def thief_script(seed: int) -> ThiefScript:
    """A fleet's minute. In three of four worlds there is a thief, who strikes some times."""
    whole, rng = fleet_script(seed), random.Random(f"thief {seed}")
    at = [rng.randrange(2 * SECOND, (SECONDS - CALM // 2) * SECOND) for _ in range(rng.randrange(1, THEFTS))]
    doings = [*whole.doings]
    if rng.random() >= QUIET:
        doings += [Doing(one, 0, "steal", rng.choice(HOSTS), rng.randrange(1 << 20)) for one in at]
    said: dict[str, Any] = {one.name: getattr(whole, one.name) for one in fields(whole)}
    said["doings"] = tuple(sorted(doings, key=lambda one: one.at_ns))
    return ThiefScript(**said)


class ThiefWorld(Fleet):
    """Plays it."""

    def __init__(self, script: ThiefScript) -> None:
        super().__init__(script)
        self._place = folder() / "public"
        shutil.rmtree(self._place, ignore_errors=True)
        for name in (*HOSTS, "witnesses"):
            (self._place / name).mkdir(mode=0o700, parents=True)
        self.witnesses = Witnesses(self.loop, self._place / "witnesses", _KEY.public_key, self.tell)
        witnessed.begin(self.witnesses)

    def run(self) -> Outcome:
        outcome = super().run()
        outcome.broken = [what for what in outcome.broken if what.startswith("alive:")]
        outcome.broken += [f"witnessed_once: {what}" for what in self._witnessed_twice()]
        closing = self.facts.closing_ns
        loses = {one.what for one in self.facts.doings} & LOSES
        if not loses and not outcome.broken and self.facts.is_calm(closing - 2 * LATE_NS, closing):
            outcome.broken += [f"published: {what}" for what in self._unpublished()]
        return outcome

    def _unpublished(self) -> Iterator[str]:
        """What is bound is witnessed some seconds later."""
        settled = self.facts.closing_ns - LATE_NS
        due = [one.position + 1 - FIRST for one in self.server.bound if one.domain == CHAIN and one.at_ns < settled]
        [(size,)] = self.server.rows("SELECT size FROM published") or [(0,)]
        witnessed = max((size for (size, _), names in self.witnesses.seen.items() if len(names) >= QUORUM), default=0)
        if min(witnessed, size) < max(due, default=0):
            yield f"{max(due)} positions are due, {size} are signed, and {witnessed} witnessed"

    def config_of(self, name: str) -> Any:
        listed = [{"url": f"https://{one}", "key": str(key_of(one))} for one in NAMES]
        chains = {"block": {"origin": ORIGIN, "first": FIRST}}
        publish = {"folder": str(self._place / name), "chains": chains, "gapSeconds": 2, "witnesses": listed}
        return config_of(self.script, name, publish={**publish, "quorum": QUORUM, "cosignEverySeconds": 10})

    def _witnessed_twice(self) -> Iterator[str]:
        proven: dict[int, set[bytes]] = {}
        for (size, root), names in self.witnesses.seen.items():
            if len(names) >= QUORUM:
                entries = self.witnesses.histories.get(root)
                if entries is None:
                    yield f"a quorum has cosigned {size} positions that are nobody's"
                for at, entry in enumerate(entries or ()):
                    proven.setdefault(at, set()).add(entry)
        for at, found in sorted(proven.items()):
            if len(found) > 1:
                yield f"position {at + FIRST} has {len(found)} witnessed entries"

    # ---- what the thief does ---------------------------------------------------------------------------------------

    def _steal(self, host: Host, _lasts: int, rng: random.Random) -> None:
        known = self._history(host, rng)
        rng.choice((self._fork, self._fork, self._go_on_with, self._rewrite, self._rewrite_rows))(host, known, rng)

    def _history(self, host: Host, rng: random.Random) -> list[bytes]:
        """One that was shown, or what is bound now."""
        rows = self.server.rows(f"SELECT position, digest FROM bound WHERE domain = '{CHAIN}' ORDER BY position")  # noqa: S608
        bound: dict[int, str] = {position: digest for position, digest in rows}  # noqa: C416  # of rows
        found = []
        while (digest := bound.get(FIRST + len(found))) is not None:
            found.append(PAYLOAD + bytes.fromhex(digest))
        shown = [*self.witnesses.histories.values()]
        layout = self._layout(host)
        if layout.checkpoint.exists():
            shown.append(tuple(entries_of(layout.folder, Checkpoint.parse(layout.checkpoint.read_bytes()).size)))
        return [*rng.choice(shown)] if shown and rng.random() < 0.6 else found

    def _layout(self, host: Host) -> TreeLayout:
        return TreeLayout(self._place / host.name / "block")

    def _fork(self, _host: Host, known: list[bytes], rng: random.Random) -> None:
        """Another payload at a position, and what follows it as it was, or not."""
        if known:
            at = max(0, len(known) - 1 - int(rng.expovariate(0.3)))
            known[at] = _made_up(rng)
            del known[at + 1 + rng.randrange(3) :]
        self._show(known + [_made_up(rng) for _ in range(rng.randrange(3))], rng)

    def _go_on_with(self, _host: Host, known: list[bytes], rng: random.Random) -> None:
        """The fleet's history, and positions that it has not signed yet."""
        self._show(known + [_made_up(rng) for _ in range(1 + rng.randrange(2))], rng)

    def _rewrite(self, host: Host, known: list[bytes], rng: random.Random) -> None:
        """Forged files in the place of a host's, also while it runs, with a checkpoint that the key has signed."""
        if known:
            known[rng.randrange(len(known))] = _made_up(rng)
        layout = self._layout(host)
        shutil.rmtree(layout.folder, ignore_errors=True)
        tree = PublicTree.found(layout, ())
        if known:
            tree.append(known)
            layout.checkpoint.write_bytes(self._signed(known))
        if rng.random() < 0.5:
            self._show(known, rng)
        if rng.random() < 0.5 and host.process is not None:
            self._kill(host, SECOND, rng)  # it begins with them

    def _rewrite_rows(self, _host: Host, known: list[bytes], rng: random.Random) -> None:
        """What is bound is something else now, or the head of the log is."""
        raw = self.server._memory.raw
        if rng.random() < 0.5 and known:
            at = FIRST + rng.randrange(len(known) + 2)
            digest = _made_up(rng)[1:].hex()
            raw.execute("UPDATE bound SET digest = ? WHERE domain = ? AND position = ?", (digest, CHAIN, at))
        elif known:
            known[-1] = _made_up(rng)
            signed = self._signed(known).decode()
            raw.execute("UPDATE published SET size = ?, signed = ? WHERE name = ?", (len(known), signed, CHAIN))

    def _signed(self, entries: list[bytes]) -> bytes:
        root = base64.b64encode(self.witnesses.knows(entries)).decode()
        text = f"{ORIGIN}\n{len(entries)}\n{root}\n".encode()
        return text + b"\n" + signature_line(_LOG, _KEY.pair.sign(text))

    def _show(self, entries: list[bytes], rng: random.Random) -> None:
        """Show a history to some witnesses: with what each has seen last, and a proof that is true, or invented."""
        if not entries:
            return
        note, leaves = self._signed(entries), [leaf_of(entry) for entry in entries]
        for name in rng.sample(NAMES, rng.randrange(1, len(NAMES) + 1)):
            old = rng.choice((0, len(entries) - 1, len(entries)))
            for _ in range(2):
                path = growth_of(old, leaves) if 0 < old < len(entries) else []
                if rng.random() < 0.2:
                    path = [rng.choice(leaves) for _ in path]
                head = [f"old {old}", *(base64.b64encode(one).decode() for one in path), "", ""]
                status, content = self.witnesses.add(name, "\n".join(head).encode() + note, "the thief")
                if status != 409 or int(content) > len(entries):
                    break
                old = int(content)


def _made_up(rng: random.Random) -> bytes:
    return PAYLOAD + rng.randbytes(32)


def _credulous() -> None:
    """A witness does not check that a log has only grown."""
    witness.check_consistency = lambda *_given: None


def _forgetful() -> None:
    """A witness keeps nothing of what it has cosigned."""
    witness.replace = lambda *_given: None


def _first_only() -> None:
    """Witnesses are asked about the first checkpoint for ever."""
    ask_on = PublicLog._ask_on
    PublicLog._ask_on = lambda self: ask_on(self) if self._asked is None else None  # type: ignore[method-assign]


THIEF_MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "credulous": (_credulous, "witnessed_once"),
    "first-only": (_first_only, "published"),
    "forgetful-witness": (_forgetful, "witnessed_once"),
}
