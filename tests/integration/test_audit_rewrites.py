"""Root of a host writes its audit log again, with the host's key and all that is kept beside it, while other hosts
cosign it. Each time that is found: by a verifier who has the witnesses' keys, or by the witnesses when asked."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.audit_logs import keys_of, settings, write_log
from tests.support.loops import one_loop
from tests.support.witness_server import WitnessServer

from hsmcore.audit.check.prove import latest
from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.witnesses import Witnesses
from hsmcore.serve.witness import LogWitness
from hsmcore.tlog.note import VerifierKey

pytestmark = pytest.mark.integration
EARLIER, NOW = 60, 100
"""Records, with cosignatures of both hosts."""


class Hosts:
    """The others: what they remember is out of reach."""

    def __init__(self, folder: Path, rest: ExitStack) -> None:
        self._servers = [rest.enter_context(WitnessServer(name=f"host-{name}.example")) for name in "ab"]
        self._folder = folder
        self.keys: list[VerifierKey] = []

    def know(self, layout: Layout) -> None:
        origin = layout.origin.read_text().strip()
        logs = [VerifierKey(origin, key.kind, key.public_key) for key in keys_of(layout)]
        for server in self._servers:
            witness = LogWitness(self._folder / server.name, server.name, logs)

            def answer(body: bytes, witness: LogWitness = witness) -> tuple[int, str, bytes]:
                found = witness.add(body)
                return found.status, found.media_type, found.content

            server.answer = answer  # hsmcore's own witness judges
            self.keys.append(witness.key)

    def asked(self, layout: Layout) -> list[str | None]:
        """What they say of a log, each: why it is not cosigned."""
        listed = [{"url": one.url, "key": str(key)} for one, key in zip(self._servers, self.keys, strict=True)]
        asking = Witnesses(layout, settings(witnesses=listed), lambda: latest(layout))
        asking.once()
        return [one.error for one in asking.status.values()]


async def rewritten(layout: Layout, earlier: Path, rng: random.Random) -> str:
    """Write the log again, in some way. Returns which."""
    way = rng.choice(("older", "fork", "anew", "uncosigned", "edit", "cut"))
    kept, home = layout.folder.parent / "kept", layout.log.parent
    shutil.copytree(layout.cosigned, kept)
    if way in ("older", "fork"):
        shutil.rmtree(layout.folder)
        shutil.copytree(earlier, home, dirs_exist_ok=True)
        if way == "fork":
            await write_log(layout.log, rng.randrange(1, 80), begin=7000 + rng.randrange(1000))
    elif way == "anew":
        shutil.rmtree(layout.folder)  # the key's file stays
        layout.log.unlink()
        origin = (earlier / layout.origin.relative_to(home)).read_text().strip()
        await write_log(layout.log, rng.randrange(1, 160), begin=rng.choice((0, 7000)), origin=origin)
    elif way == "edit":
        data = bytearray(layout.log.read_bytes())
        at = data.index(b'"signature":"') + 13 + rng.randrange(60)
        data[at] = data[at] ^ 1 if chr(data[at] ^ 1) in "0123456789abcdef" else ord("0") + (data[at] == ord("0"))
        layout.log.write_bytes(data)
    elif way == "cut":
        lines = layout.log.read_bytes().splitlines(keepends=True)
        layout.log.write_bytes(b"".join(lines[: rng.randrange(1, len(lines))]))
        if rng.random() < 0.5:  # and the checkpoint of that time
            shutil.copy2(earlier / layout.checkpoint.relative_to(home), layout.checkpoint)
    said = rng.choice(("all", "none", "some"))
    if way == "uncosigned" or said != "all":
        shutil.rmtree(layout.cosigned, ignore_errors=True)
    elif way != "older":
        shutil.copytree(kept, layout.cosigned, dirs_exist_ok=True)
    if said == "some" and way != "uncosigned":
        layout.cosigned.mkdir(mode=0o700)
        shutil.copy2(min(kept.iterdir()), layout.cosigned)
    shutil.rmtree(kept)
    return way


async def campaign(folder: Path, seeds: range) -> Counter[str]:
    """Returns how often who has found it first."""
    found: Counter[str] = Counter()
    with ExitStack() as rest:
        hosts = Hosts(folder / "hosts", rest)
        (folder / "hosts").mkdir(mode=0o700)
        (folder / "host").mkdir(mode=0o700)
        layout = await write_log(folder / "host" / "audit.log", EARLIER)
        hosts.know(layout)
        assert hosts.asked(layout) == [None, None]
        shutil.copytree(folder / "host", folder / "earlier")
        await write_log(layout.log, NOW - EARLIER, begin=EARLIER)
        assert hosts.asked(layout) == [None, None]
        trust = Trust(witnesses=hosts.keys)
        assert verify(layout, trust).findings == []
        for seed in seeds:
            place = folder / f"seed-{seed}"
            shutil.copytree(folder / "host", place)
            other = Layout(place / "audit.log")
            way = await rewritten(other, folder / "earlier", random.Random(f"rewrite {seed}"))
            findings = verify(other, trust).findings
            refused = [] if findings else [one for one in hosts.asked(other) if one]
            assert findings or len(refused) == 2, f"seed {seed}: {way}: nobody has found it"
            found[f"{way}: {'the verifier' if findings else 'the hosts'}"] += 1
            shutil.rmtree(place)
    return found


@one_loop
async def test_a_log_that_root_writes_again_is_found(tmp_path):
    found = await campaign(tmp_path, range(12))
    assert {who.partition(": ")[2] for who in found} == {"the verifier", "the hosts"}


@pytest.mark.deep
@pytest.mark.timeout(900)
@one_loop
async def test_a_log_that_root_writes_again_is_found_at_length(tmp_path):
    found = await campaign(tmp_path, range(200))
    assert {who.partition(": ")[0] for who in found} == {"older", "fork", "anew", "uncosigned", "edit", "cut"}
