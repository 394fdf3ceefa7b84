"""A thief of the log's key, the database and the host tries to have two digests witnessed at one position.

Witnesses of two makes, one of them ours, see what the thief chooses to show: forks of any size, with true and with
invented proofs, in any order, replays, and each witness something else. As long as fewer witnesses lie than two quorums
share, no position has two proofs.
"""

from __future__ import annotations

import base64
import random
import runpy
from contextlib import ExitStack
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.support.rfc6962 import growth_of, leaf_of, path_of, root_of
from tests.support.witness_server import WitnessServer, line_of, vkey

from hsmcore.serve.witness import LogWitness
from hsmcore.tlog.note import VerifierKey

verify = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "verify_position.py"))["verify"]
QUORUM = 2
MOST = 12


class Thief:
    """Holds everything but the witnesses. `ask`: of each witness."""

    def __init__(self, seed: str, key, witnesses) -> None:
        self._random = random.Random(seed)
        self._key, self._witnesses, self._origin = key, witnesses, f"example.com/{seed}"
        self._seen: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
        """By text of a checkpoint: its digests, and the cosignatures that it got."""

    @property
    def origin(self) -> str:
        return self._origin

    def _digest(self) -> bytes:
        return bytes([self._random.randrange(3)]) * 32

    def show(self, digests: list[bytes], old: int | None = None) -> None:
        """Show a history to a witness, or to all."""
        leaves = [leaf_of(b"\1" + digest) for digest in digests]
        size = len(leaves)
        root = root_of(leaves)
        text = f"{self._origin}\n{size}\n{base64.b64encode(root).decode()}\n".encode()
        note = text + b"\n" + line_of(self._origin, 1, bytes(self._key.verify_key), self._key.sign(text).signature)
        _, lines = self._seen.setdefault(text, (digests, []))
        chosen = self._witnesses if old is None else [self._random.choice(self._witnesses)]
        for _, add in chosen:
            begin = old
            for _ in range(2):
                if begin is None:
                    begin = 0
                path = growth_of(begin, leaves) if 0 < begin < size else []
                if old is not None and self._random.random() < 0.3:  # an invented one
                    path = [self._random.choice([*leaves, root]) for _ in path] or [root]
                head = [f"old {begin}", *(base64.b64encode(one).decode() for one in path), "", ""]
                status, content = add("\n".join(head).encode() + note)
                if status == 200:
                    lines.append(content)
                if status != 409 or int(content) > size:
                    break
                begin = int(content)

    def strike(self) -> None:
        """Fork any history that was shown, at any position, to any size."""
        digests = list(self._random.choice(list(self._seen.values()))[0])
        at = self._random.randrange(len(digests))
        if self._random.random() < 0.7:
            digests = [*digests[:at], self._digest(), *digests[at + self._random.randrange(2) :]]
        digests += [self._digest() for _ in range(self._random.randrange(3))]
        digests = digests[: max(1, min(MOST, len(digests) - self._random.randrange(3)))]
        self.show(digests, self._random.choice([0, at, len(digests)]))

    def proven(self, policy: bytes) -> dict[int, set[bytes]]:
        """All that the thief can prove, by position."""
        found: dict[int, set[bytes]] = {}
        for text, (digests, lines) in self._seen.items():
            leaves = [leaf_of(b"\1" + digest) for digest in digests]
            for at, digest in enumerate(digests if len(lines) >= QUORUM else []):
                path = "".join(base64.b64encode(one).decode() + "\n" for one in path_of(at, leaves))
                head = f"c2sp.org/tlog-proof@v1\nindex {at}\n{path}\n".encode()
                if verify(policy, digest, at, head + text + b"\n" + b"".join(lines)):
                    found.setdefault(at, set()).add(digest)
        return found


def campaign(folder: Path, seeds: range, liars: int) -> int:
    """Run it. Returns how many positions two digests were proven for. `liars`: witnesses that forget all they saw."""
    key, twice, proven = SigningKey.generate(), 0, 0
    with ExitStack() as rest:
        servers = [rest.enter_context(WitnessServer(name=f"witness.example/w{n}")) for n in (1, 2)]
        for seed in map(str, seeds):
            origin = f"example.com/{seed}"
            public_key = bytes(key.verify_key)
            ours = LogWitness(folder / seed, "witness.example/w0", [VerifierKey(origin, 1, public_key)])
            for server in servers:
                server.logs = {origin: public_key}

            def asked(server: WitnessServer, body: bytes) -> tuple[int, bytes]:
                if servers.index(server) < liars:
                    server.seen.clear()
                status, _, content = server.answer(body)
                return status, content

            witnesses = [(ours.key.name, lambda body, ours=ours: ours.add(body)[:2])]
            witnesses += [(server.name, lambda body, server=server: asked(server, body)) for server in servers]
            thief = Thief(seed, key, witnesses)
            keys = [str(ours.key), *(vkey(server.name, 4, server.public_key) for server in servers)]
            policy = f"origin {origin}\nfirst 0\nquorum {QUORUM}\n" + "".join(f"witness {key}\n" for key in keys)
            thief.show([bytes([7]) * 32] * (1 + int(seed) % 5))
            for _ in range(12):
                thief.strike()
            found = thief.proven(policy.encode())
            proven += len(found)
            twice += sum(len(digests) > 1 for digests in found.values())
    assert proven > len(seeds), "the campaign proves something"
    return twice


def test_nothing_is_witnessed_twice(tmp_path):
    assert campaign(tmp_path, range(150), liars=0) == 0


@pytest.mark.deep
def test_nothing_is_witnessed_twice_at_length(tmp_path):
    assert campaign(tmp_path, range(1000), liars=0) == 0


def test_it_would_be_found(tmp_path):
    """Two quorums of two of three share one witness. While that one forgets, the thief has what he wants."""
    assert campaign(tmp_path, range(40), liars=2) > 0
