"""The public log of positions: what is bound becomes a leaf, witnessed, and proven to a program that knows neither."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import runpy
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.integration.test_policy import policed
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.policed import ordered
from tests.support.web import asked
from tests.support.witness_server import WitnessServer, line_of

from hsmcore.cli.app import run as cli
from hsmcore.errors import BadArgument, ConfigurationError, DeadlineExceeded, DoubleSign
from hsmcore.serve import attached

verify = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "verify_position.py"))["verify"]

pytestmark = pytest.mark.integration
FOLLOWS = Path(__file__).parents[2] / "examples" / "follow_positions.py"
ORIGIN = "example.com/my-rollup/block"


def publishing(token, folder, *witnesses, more=None, **publish):
    listed = [{"url": one.url, "key": one.key} for one in witnesses]
    said = {
        "folder": str(folder / "public"),
        "chains": {"block": {"origin": ORIGIN}},
        "everyMillis": 10,
        **({"witnesses": listed} if listed else {}),
        **publish,
    }
    return policed(token, folder, rules={"publish": said, **(more or {})})


DOMAIN = "default/block"


def policy(*witnesses, first=0, quorum=None):
    """What a verifier is given."""
    lines = [f"origin {ORIGIN}", f"first {first}", f"quorum {quorum or len(witnesses)}"]
    return "".join(f"{line}\n" for line in [*lines, *(f"witness {one.key}" for one in witnesses)]).encode()


def digest(payload):
    return hashlib.sha256(payload).digest()


@one_loop
async def test_a_position_that_was_signed_is_proven(world, tmp_path):
    with WitnessServer() as one, WitnessServer(name="witness.example/w2") as two:
        async with opened(publishing(world, tmp_path, one, two)) as manager:
            one.logs[ORIGIN] = two.logs[ORIGIN] = manager.public_key
            for position in range(300):
                await manager.sign(ordered(position))
            for position in (0, 1, 255, 256, 299):
                proof = await manager.position_proof(DOMAIN, position)
                known = policy(one, two)
                assert verify(known, digest(ordered(position)), position, proof) == 2
                assert verify(known, digest(ordered(position, b"other")), position, proof) is None
                assert verify(known, digest(ordered(position)), position + 1, proof) is None
                assert verify(policy(one, two, first=1), digest(ordered(position)), position, proof) is None


@one_loop
async def test_witnesses_are_asked_about_the_same_checkpoints_over_one_connection(world, tmp_path):
    """A quorum is of one checkpoint: who is faster waits, or its cosignatures count for nothing. A connection that the
    witness has closed is opened again, which is no failure."""
    with WitnessServer() as one, WitnessServer(name="witness.example/w2") as two:
        seen: dict[str, list[int]] = {one.name: [], two.name: []}
        for witness in (one, two):
            witness.wrong = lambda answer, witness=witness: (
                seen[witness.name].append(witness.seen.get(ORIGIN, (0,))[0]),
                time.sleep(0.02 if witness is two else 0),
                answer,
            )[-1]
        two.closes = True
        async with opened(publishing(world, tmp_path, one, two, cosignEverySeconds=3600)) as manager:
            one.logs[ORIGIN] = two.logs[ORIGIN] = manager.public_key
            position = 0
            while len(seen[two.name]) < 8:
                await manager.sign(ordered(position))
                await asyncio.sleep(0.002)
                position += 1
            await manager.position_proof(DOMAIN, position - 1)
            assert {found["error"] for found in status(manager)["witnesses"].values()} == {None}
        assert seen[one.name] == seen[two.name]
        assert one.connections < one.asked
        assert two.connections == two.asked


@one_loop
async def test_a_witness_that_failed_once_is_asked_again_before_it_would_be_due(world, tmp_path):
    with WitnessServer() as witness:
        answers = iter([(500, "text/plain", b"")])
        witness.wrong = lambda answer: next(answers, answer)
        async with opened(publishing(world, tmp_path, witness, cosignEverySeconds=3600)) as manager:
            witness.logs[ORIGIN] = manager.public_key
            await manager.sign(ordered(0))
            await manager.position_proof(DOMAIN, 0, timeout=50)
        assert witness.asked > 1


def leaves(folder, size):
    """The entries of a log, as a follower reads them from its bundles."""
    found = []
    for number in range(-(-size // 256)):
        width = min(256, size - number * 256)
        path = folder / "tile" / "entries" / f"{number:03d}"
        data = (path if width == 256 else path.with_name(f"{number:03d}.p") / str(width)).read_bytes()
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 2], "big")
            found.append(data[at + 2 : at + 2 + length])
            at += 2 + length
    return found


def status(manager):
    return manager.describe()["publish"][DOMAIN]


@one_loop
async def test_it_goes_on_over_rotation_restart_and_a_folder_that_is_lost(fresh_token, tmp_path):
    """A witness that knows the first key alone takes the checkpoints of the overlap, too: both keys have signed."""
    with WitnessServer() as one:
        token = fresh_token()
        rotating = {"maxCacheSize": 0, "keyRotation": {"intervalDays": 30, "overlapDays": 2}}
        config = publishing(token, tmp_path, one, more=rotating)
        async with opened(config) as manager:
            one.logs[ORIGIN] = manager.public_key
            await manager.sign(ordered(0))
            await manager.position_proof(DOMAIN, 0)
            await manager.rotate_key("test")
            await manager.sign(ordered(1))
            proof = await manager.position_proof(DOMAIN, 1)
            assert verify(policy(one), digest(ordered(1)), 1, proof) == 1
            assert proof.count(f"— {ORIGIN} ".encode()) == 2
        shutil.rmtree(tmp_path / "public")
        async with opened(config) as manager:
            await manager.sign(ordered(2))
            for position in range(3):
                proof = await manager.position_proof(DOMAIN, position)
                assert verify(policy(one), digest(ordered(position)), position, proof) == 1
        assert leaves(tmp_path / "public" / "block", 3) == [b"\1" + digest(ordered(n)) for n in range(3)]
        assert one.seen[ORIGIN][0] == 3


@one_loop
async def test_a_position_that_never_comes_is_bound_to_nothing(world, tmp_path):
    async with opened(publishing(world, tmp_path, gapSeconds=1)) as manager:
        await manager.sign(ordered(0))
        await manager.sign(ordered(4))
        await until(lambda: status(manager)["waitsFor"] == 1)
        await until(lambda: status(manager)["published"] == 1)
        await manager.sign(ordered(2))  # late, and in time
        await manager.position_proof(DOMAIN, 4)
        for position in (1, 3):
            with pytest.raises(DoubleSign):
                await manager.sign(ordered(position))
        assert await manager.sign(ordered(2))
    found = leaves(tmp_path / "public" / "block", 5)
    assert [entry[:1] for entry in found] == [b"\1", b"\0", b"\1", b"\0", b"\1"]


@one_loop
async def test_what_a_floor_gave_up_before_is_said_to_be_lost_and_rows_wait_for_the_log(world, tmp_path):
    async with opened(policed(world, tmp_path)) as manager:
        for position in range(10):
            await manager.sign(ordered(position))
        await manager._guard.watermark.raise_floor(DOMAIN, 3, "before the log began")
    state = sqlite3.connect(tmp_path / "state.db")
    assert rows(state) == list(range(4, 10))
    async with opened(publishing(world, tmp_path)) as manager:
        await manager.position_proof(DOMAIN, 9)
        logs, manager._keys.logs = manager._keys.logs, None
        await logs.close()
        for position in range(10, 15):
            await manager.sign(ordered(position))
        await manager._guard.watermark.raise_floor(DOMAIN, 12, "a test")
        assert rows(state) == list(range(10, 15)), "what is not published stays"
    async with opened(publishing(world, tmp_path)) as manager:
        await manager.position_proof(DOMAIN, 14)
        await manager._guard.watermark.remove()
        assert rows(state) == [13, 14]
    found = leaves(tmp_path / "public" / "block", 15)
    assert found == [b"\2"] * 4 + [b"\1" + digest(ordered(n)) for n in range(4, 15)]
    state.close()


def rows(state):
    return [position for (position,) in state.execute("SELECT position FROM bound ORDER BY position")]


@one_loop
async def test_it_may_begin_at_a_later_position_and_never_changes_that(world, tmp_path):
    began = {"chains": {"block": {"origin": ORIGIN, "first": 1_000_000}}}
    async with opened(publishing(world, tmp_path, **began)) as manager:
        await manager.sign(ordered(1_000_000))
        assert (await manager.position_proof(DOMAIN, 1_000_000)).startswith(b"c2sp.org/tlog-proof@v1\nindex 0\n")
        for domain, position in ((DOMAIN, 999_999), ("default/state-root", 1_000_000)):
            with pytest.raises(BadArgument):
                await manager.position_proof(domain, position)
    other = ({"origin": ORIGIN}, {"origin": "example.com/another", "first": 1_000_000})
    for chain, key in zip(other, ("first", "origin"), strict=True):
        with pytest.raises(ConfigurationError, match=rf"publish.chains.block.{key}: is .*, and was "):
            async with opened(publishing(world, tmp_path, chains={"block": chain})):
                pass


@one_loop
async def test_a_store_that_went_back_behind_the_log_publishes_nothing(world, tmp_path):
    async with opened(publishing(world, tmp_path)) as manager:
        await manager.sign(ordered(0))
        await manager.position_proof(DOMAIN, 0)
    with sqlite3.connect(tmp_path / "state.db") as state:
        state.execute("DELETE FROM published")
        state.execute("DELETE FROM bound")
        state.execute("DELETE FROM watermark")
    state.close()
    config = publishing(world, tmp_path, more={"auditLogFile": str(tmp_path / "another.log")})
    async with opened(config) as manager:
        await manager.sign(ordered(0, b"another"))
        await until(lambda: status(manager)["problem"] is not None)
        assert "went back" in status(manager)["problem"]
        with pytest.raises(DeadlineExceeded, match="went back"):
            await manager.position_proof(DOMAIN, 1, timeout=0.01)


@one_loop
async def test_a_folder_that_is_lost_after_its_rows_is_not_made_up(world, tmp_path):
    """Nothing is signed that contradicts what was signed; a copy of the folder mends it."""
    folder, copy = tmp_path / "public", tmp_path / "copy"
    async with opened(publishing(world, tmp_path)) as manager:
        for position in range(5):
            await manager.sign(ordered(position))
        await manager.position_proof(DOMAIN, 4)
        await manager._guard.watermark.raise_floor(DOMAIN, 2, "a test")
    folder.rename(copy)
    async with opened(publishing(world, tmp_path)) as manager:
        await manager.sign(ordered(5))
        await until(lambda: status(manager)["problem"] is not None)
        assert "another one than was signed" in status(manager)["problem"]
        assert status(manager)["signed"] == 5
    shutil.rmtree(folder)
    copy.rename(folder)
    async with opened(publishing(world, tmp_path)) as manager:
        await manager.position_proof(DOMAIN, 5)
    assert leaves(folder / "block", 6) == [b"\1" + digest(ordered(n)) for n in range(6)]


@one_loop
async def test_a_store_that_is_restored_goes_on_with_the_tree_that_was_published(world, tmp_path):
    async with opened(publishing(world, tmp_path)) as manager:
        for position in range(5):
            await manager.sign(ordered(position))
        await manager.position_proof(DOMAIN, 4)
    with sqlite3.connect(tmp_path / "state.db") as state:
        state.execute("DELETE FROM published")
    state.close()
    async with opened(publishing(world, tmp_path)) as manager:
        await manager.sign(ordered(5))
        await manager.position_proof(DOMAIN, 5)
    assert leaves(tmp_path / "public" / "block", 6) == [b"\1" + digest(ordered(n)) for n in range(6)]


@one_loop
async def test_a_witness_that_hangs_or_refuses_costs_no_signature_and_no_proof_of_a_quorum(world, tmp_path):
    with WitnessServer() as bad, WitnessServer(name="witness.example/w2") as good:
        bad.wrong = lambda answer: None
        async with opened(publishing(world, tmp_path, bad, good, quorum=1)) as manager:
            good.logs[ORIGIN] = manager.public_key
            for position in range(20):
                await manager.sign(ordered(position))
            proof = await manager.position_proof(DOMAIN, 19)
            assert verify(policy(bad, good, quorum=1), digest(ordered(19)), 19, proof) == 1
            assert verify(policy(bad, good), digest(ordered(19)), 19, proof) is None
    with WitnessServer() as refusing:
        async with opened(publishing(world, tmp_path, refusing)) as manager:
            await manager.sign(ordered(20))
            await until(lambda: status(manager)["witnesses"][refusing.name]["error"] is not None)
            with pytest.raises(DeadlineExceeded, match="does not know the log"):
                await manager.position_proof(DOMAIN, 20, timeout=0.01)


@one_loop
async def test_its_files_are_for_everybody_and_commands_read_them(world, tmp_path, capsys):
    with WitnessServer() as one:
        config = publishing(world, tmp_path, one)
        config["sequencer"]["keyManager"]["monitoring"] = {"listen": "127.0.0.1:0"}
        async with opened(config) as manager, attached(manager) as site:
            one.logs[ORIGIN] = manager.public_key
            for position in range(3):
                await manager.sign(ordered(position))
            proof = await manager.position_proof(DOMAIN, 1)
            shown = await asked(site.address, "/log/block/checkpoint")
            assert (shown.status, shown.body) == (200, (tmp_path / "public/block/checkpoint").read_bytes())
            tile = await asked(site.address, "/log/block/tile/0/000.p/3")
            assert (tile.status, len(tile.body)) == (200, 96)
            (tmp_path / "public" / "secret").write_text("x")
            for path in (
                "block/cosigned",
                "secret",
                "../state.db",
                "block/%2e%2e/secret",
                "block//checkpoint",
                "x/checkpoint",
            ):
                assert (await asked(site.address, f"/log/{path}")).status == 404, path
        path = tmp_path / "config.json"
        path.touch(0o600)
        path.write_text(json.dumps(config))
        (tmp_path / "proof").write_bytes(proof)
        given = ["--config", str(path), "--json"]
        assert cli(["publish", "status", *given]) == 0
        [found] = json.loads(capsys.readouterr().out)
        assert (found["published"], found["witnesses"]) == (3, {one.name: 3})
        assert cli(["publish", "proof", "block", "1", *given]) == 0
        assert verify(policy(one), digest(ordered(1)), 1, json.loads(capsys.readouterr().out)["proof"].encode()) == 1
        for position, payload, valid in ((1, ordered(1), True), (1, ordered(2), False), (2, ordered(1), False)):
            line = ["publish", "verify", "block", str(position), digest(payload).hex(), str(tmp_path / "proof"), *given]
            assert cli(line) == (0 if valid else 1)
            assert json.loads(capsys.readouterr().out)["valid"] is valid
        assert cli(["publish", "proof", "block", "3", *given]) != 0


def followed(folder, *others):
    line = [sys.executable, FOLLOWS, folder / "policy", folder / "public" / "block", folder / "state", *others]
    return subprocess.run(list(map(str, line)), capture_output=True, text=True, check=False, timeout=60)


@one_loop
async def test_who_follows_the_log_finds_a_thief_and_names_the_key(world, tmp_path):
    """The thief has the key sign another history, and one witness is his."""
    with WitnessServer() as one, WitnessServer(name="witness.example/w2") as two:
        (tmp_path / "policy").write_bytes(policy(one, two, quorum=1))
        async with opened(publishing(world, tmp_path, one, two)) as manager:
            one.logs[ORIGIN] = two.logs[ORIGIN] = manager.public_key
            for begin in (0, 260):
                for position in range(begin, begin + 260):
                    await manager.sign(ordered(position))
                await manager.position_proof(DOMAIN, begin + 259)
                done = await asyncio.to_thread(followed, tmp_path)
                assert (done.returncode, done.stdout) == (0, f"{begin + 260} positions, one history\n"), done.stderr
            seen, damaged = tmp_path / "state", tmp_path / "public" / "block" / "tile" / "entries" / "001"
            kept, whole = seen.read_bytes(), damaged.read_bytes()
            seen.write_bytes(kept[: 300 * 32])
            damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            done = await asyncio.to_thread(followed, tmp_path)
            assert (done.returncode, done.stdout) == (1, ""), "a damaged file is no proof against anybody"
            assert "damaged" in done.stderr
            seen.write_bytes(kept)
            damaged.write_bytes(whole)
            text = f"{ORIGIN}\n200\n{base64.b64encode(bytes(32)).decode()}\n".encode()
            key = manager._keys.port(manager)
            [signs] = [version for version in manager.keys() if version.public_key == manager.public_key]  # noqa: SIM118
            signature = await key.sign(signs, text)
        note = text + b"\n" + line_of(ORIGIN, 1, manager.public_key, signature) + two.cosigned(text)
        (tmp_path / "other").write_bytes(note)
        done = await asyncio.to_thread(followed, tmp_path, tmp_path / "other")
        assert done.returncode == 2
        assert "EQUIVOCATION" in done.stdout
        assert f"signed by {ORIGIN}, " in done.stdout
        assert f"signed by {two.name}, " in done.stdout
        (tmp_path / "other").write_bytes((tmp_path / "public" / "block" / "checkpoint").read_bytes())
        assert (await asyncio.to_thread(followed, tmp_path, tmp_path / "other")).returncode == 0
        (tmp_path / "public" / "block" / "checkpoint").write_bytes(note)
        assert (await asyncio.to_thread(followed, tmp_path)).returncode == 2, "the log itself went back"


@one_loop
async def test_no_signature_waits_for_the_log(world, tmp_path):
    """The log is held up for good; as many transactions of the store and as many calls sign as without one."""
    async with opened(publishing(world, tmp_path)) as manager:
        [log] = manager._keys.logs._logs.values()
        async with log._one:
            for position in range(50):
                await manager.sign(ordered(position))
            assert status(manager)["signed"] == 0
        await manager.position_proof(DOMAIN, 49)


@one_loop
async def test_beside_a_seal_a_row_that_was_changed_is_not_published(world, tmp_path):
    config = publishing(world, tmp_path, gapSeconds=1)
    config["sequencer"]["stateSecret"] = "s" * 32
    async with opened(config) as manager:
        await manager.sign(ordered(0))
        await manager.position_proof(DOMAIN, 0)
        await manager.sign(ordered(2))
        await manager.position_proof(DOMAIN, 2)  # a gap is vouched for, too
    assert [entry[:1] for entry in leaves(tmp_path / "public" / "block", 3)] == [b"\1", b"\0", b"\1"]
    async with opened(config) as manager:
        [log] = manager._keys.logs._logs.values()
        async with log._one:
            await manager.sign(ordered(3))
            with sqlite3.connect(tmp_path / "state.db") as state:
                state.execute("UPDATE bound SET digest = ? WHERE position = 3", ["ab" * 32])
            state.close()
        await until(lambda: "not genuine" in (status(manager)["problem"] or ""))
        assert status(manager)["signed"] == 3
