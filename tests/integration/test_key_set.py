"""The signed set of keys: when one is made, who signs it, and that verifiers can follow each step of a rotation."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from asyncio import to_thread
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from subprocess import run

import pytest
from nacl.signing import SigningKey
from tests.integration.test_policy import records
from tests.support.key_sets import EXAMPLES, Case, by_hsmcore, by_node, by_python
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, until
from tests.support.vault_site import TOKEN, site
from tests.support.web import asked

import hsmcore
from hsmcore.cli.app import run as cli
from hsmcore.errors import AlgorithmUnsupported, BadArgument, ConfigurationError, PolicyRefused
from hsmcore.manager.background import BackgroundServices
from hsmcore.serve import attached
from hsmcore.state import StoreBusy
from hsmcore.tlog.key_set import KeyEntry, KeySet, signer, split, text_of
from hsmcore.tlog.note import signature_line

pytestmark = pytest.mark.integration


def config_of(token, folder, *, kinds=("raw", "key-set"), key="ed25519", rules=None, **rotation):
    return token.config(
        key,
        maxCacheSize=0,
        requestTimeoutMs=500,
        auditLogFile=str(folder / "audit.log"),
        policy={"kinds": list(kinds), "domain": "my-rollup"},
        keyRotation={"intervalDays": 30, "overlapDays": 0, **rotation},
        **{"stateFile": str(folder / "state.db"), **(rules or {})},
    )


async def first(manager):
    await until(lambda: manager.key_set() != b"")
    return KeySet.trust(manager.key_set(), manager.public_key, "my-rollup")


def states(found):
    return [(key.version, key.state, key.successor) for key in found.keys]


@one_loop
async def test_a_set_is_made_at_each_step_of_a_rotation_and_none_without(fresh_token, tmp_path):
    config = config_of(fresh_token(), tmp_path)
    async with opened(config) as manager:
        old = await first(manager)
        assert (states(old), old.kinds, old.serial) == ([(1, "current", None)], ("raw", "key-set"), 0)
        new = await manager.rotate_key("test")
        assert await manager.get_current_key_id() == new

        def ended():
            return KeySet.remembered(manager.key_set()).keys[0].state == "retired"

        await until(ended)
        notes = manager.key_set(since=-1)
        sets = [KeySet.remembered(note) for note in split(notes)]
        assert [states(one) for one in sets] == [
            [(1, "current", None)],
            [(1, "current", None), (2, "next", None)],
            [(1, "overlap", 2), (2, "current", None)],
            [(1, "retired", 2), (2, "current", None)],
        ]
        assert [len(one.signed_by()) for one in sets] == [1, 2, 2, 1]
        said = await records(manager, operation="key-evidence")
        assert [record["evidence_sha256"] for record in said] == [key.evidence.hex() for key in sets[-1].keys]
        latest = old.follow(notes)
        assert latest.note == manager.key_set()
        signed = await records(manager, operation="sign")
        bound = [record["position"] for record in signed if record.get("kind") == "key-set"]
        assert bound == [0, 1, 2, 3]
    async with opened(config) as manager:  # which says the same
        await until(lambda: manager._keys._sets._role.held)
        await manager._keys._sets.look()
        assert manager.key_set(since=-1) == notes


BATCHES = ("raw", "batch-root", "key-set")
TEN_YEARS = 315_360_000


@one_loop
async def test_a_proof_outlives_the_rotation_of_its_key_unless_that_was_ended_by_hand(fresh_token, tmp_path):
    """A verifier that keeps the set takes what a key batched before its end, for ever, and nothing above. Of those that
    are ended by hand, one in the application and one on the command line, one was retired before."""
    config = config_of(fresh_token(), tmp_path, kinds=BATCHES)
    async with opened(config) as manager:
        known = await first(manager)
        old_id = await manager.get_current_key_id()
        old = [await manager.sign_batched(b"m%d" % number) for number in range(3)]

        def ended(version):
            return KeySet.remembered(manager.key_set()).keys[version - 1].state == "retired"

        await manager.rotate_key("test")
        await until(lambda: ended(1))
        made = [*old, await manager.sign_batched(b"m3")]
        await manager.rotate_key("test")
        await until(lambda: ended(2))
        made.append(await manager.sign_batched(b"m4"))
        known = known.follow(manager.key_set(since=known.serial))
        assert [(key.state, key.last_batched) for key in known.keys] == [
            ("retired", 2),
            ("retired", 3),
            ("current", None),
        ]
        later = time.time() + TEN_YEARS
        for number, one in enumerate(made):
            found = known.verify_batched(b"m%d" % number, one.proof, later)
            assert (found.key.version, found.says.index) == ((1, 1, 1, 2, 3)[number], number)
        assert not known.accepts(made[0].public_key, later)
        ends = known.keys[0].not_after
        stolen_id = await manager.get_current_key_id()
        await manager.rotate_key("it may be stolen")
        await manager.deactivate_key(stolen_id)
        (tmp_path / "hsmcore.json").write_text(json.dumps(config))
        await to_thread(cli, ["keys", "deactivate", old_id, "--config", str(tmp_path / "hsmcore.json")])
        await until(lambda: ended(3))
        await manager._keys._sets.look()
        known = known.follow(manager.key_set(since=known.serial))
        assert [key.last_batched for key in known.keys] == [None, 3, None, None]
        assert known.keys[0].not_after == ends
        found = [known.verify_batched(b"m%d" % number, one.proof) for number, one in enumerate(made)]
        assert [number for number, one in enumerate(found) if one is not None] == [3]


@one_loop
async def test_a_set_is_renewed_after_half_its_time_and_not_before(fresh_token, tmp_path, monkeypatch):
    config = config_of(fresh_token(), tmp_path, keySetGoodForHours=10)
    hour, ahead = 3600, [0]
    async with opened(config) as manager:
        begun = await first(manager)
        rotation = manager._keys._sets._rotation
        sure = rotation.sure
        monkeypatch.setattr(rotation, "sure", lambda: sure() + ahead[0] * hour * 1_000_000_000)
        assert begun.good_until == begun.time + 10 * hour
        for hours, serial in ((4, 0), (6, 1), (10, 1), (12, 2), (30, 3)):
            ahead[0] = hours
            for _ in range(3):
                await manager._keys._sets.look()
            found = KeySet.remembered(manager.key_set())
            assert (found.serial, found.keys) == (serial, begun.keys)
            assert begun.follow(manager.key_set(since=begun.serial) or begun.note).note == found.note
        assert manager.key_set(since=-1) == found.note, "what says the same is handed out once"
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        assert database.execute("SELECT serial FROM key_set").fetchall() == [(3,)], "and kept once"
    async with opened(config) as manager:  # as the store has it
        await until(lambda: manager._keys._sets._role.held)
        await manager._keys._sets.look()
        assert manager.key_set(since=-1) == found.note
        assert found.accepts(manager.public_key, fresh=True)
        assert not begun.accepts(manager.public_key, begun.good_until + 301, fresh=True)


@one_loop
async def test_the_key_before_crowns_nobody_and_real_rotations_are_followed_without_it(fresh_token, tmp_path):
    """Who had stolen the old key replaced the whole set during its overlap, with a serial that none exceeds."""
    async with opened(config_of(fresh_token(), tmp_path, overlapDays=1)) as manager:
        begun = await first(manager)
        for number in range(1, 6):
            await manager.rotate_key("test")
            await until(lambda number=number: KeySet.remembered(manager.key_set()).current.version == number + 1)
        notes = list(split(manager.key_set(since=begun.serial)))
        kept = begun
        for note in notes:  # each is signed by a key that the one before lists as next or current
            new = KeySet.remembered(note)
            assert {key.public_key for key in kept.keys if key.state in ("next", "current")} & new.signed_by()
            kept = kept.follow(note)
        assert (len(notes), kept.note) == (10, begun.follow(b"".join(notes)).note)
        versions = {key.public_key: key for key in manager.keys()}  # noqa: SIM118  # a list
        thief = SigningKey.generate()
        crowned = KeyEntry(9, "ed25519", bytes(thief.verify_key), "current", 0, None, None)
        forged = {}
        for who in ("overlap", "current"):
            stolen = next(key for key in kept.keys if key.state == who).public_key
            for step in (1, 1 << 20, (1 << 20) + 1, 9999999999999999999 - kept.serial):
                text = text_of("my-rollup", kept.serial + step, 0, ("raw",), [crowned])
                theirs = await manager._keys._sets._port.sign(versions[stolen], text)
                signed = ((bytes(thief.verify_key), thief.sign(text).signature), (stolen, theirs))
                forged[who, step] = (
                    text + b"\n" + b"".join(signature_line(signer("my-rollup", k), s) for k, s in signed)
                )
        for verifier in (by_hsmcore, by_python, by_node):
            taken = verifier([Case("", kept.note, note) for note in forged.values()])
            # Whoever has the key that signs now can do what it can: not use up all serials at once.
            assert [case for case, one in zip(forged, taken, strict=True) if one] == [
                ("current", 1),
                ("current", 1 << 20),
            ]


@one_loop
async def test_a_host_of_a_fleet_that_lost_the_role_takes_it_again(fresh_token, tmp_path, postgres):
    """As after a pause of the process that lasted longer than the role: the other one has it meanwhile."""
    url = postgres.database()
    database = url.rpartition("/")[2]
    fleet = {"store": {"url": url}, "name": "tests", "singleNode": True, "ttlMs": 4000}
    config = config_of(fresh_token(), tmp_path, rules={"fleet": fleet, "stateFile": None}, overlapDays=1)
    async with opened(config) as manager:
        old = await first(manager)
        sets = manager._keys._sets
        await until(lambda: sets._role.held)
        taken = "UPDATE hsmcore_tests.role SET epoch = epoch + 1, holder = 'other', until_ns = 0 WHERE name = 'key-set'"
        postgres.execute(taken, database)
        with pytest.raises(StoreBusy, match="other has it now"):
            await sets.look()
        new = await manager.generate_key()
        await manager.set_current_key_id(new)
        await until(lambda: KeySet.remembered(manager.key_set()).serial == 2)
        found = old.follow(manager.key_set(since=-1))
        assert (found.serial, states(found)) == (2, [(1, "overlap", 2), (2, "current", None)])
        [held] = postgres.execute("SELECT holder FROM hsmcore_tests.role WHERE name = 'key-set'", database)
        assert held[0] != "other"


@one_loop
async def test_a_key_that_is_chosen_is_listed_before_it_signs(fresh_token, tmp_path):
    async with opened(config_of(fresh_token(), tmp_path, overlapDays=1)) as manager:
        old = await first(manager)
        made = await manager.generate_key()
        public = {key.id: key.public_key for key in manager.keys()}[made]  # noqa: SIM118  # a list
        seen, use = [], manager._path.use

        def used(version):
            seen.append(old.follow(manager.key_set(since=0)).entry(version.public_key).state)
            use(version)

        manager._path.use = used
        await manager.set_current_key_id(made)
        assert seen == ["next"]
        await until(lambda: KeySet.remembered(manager.key_set()).current.public_key == public)
        found = old.follow(manager.key_set(since=old.serial))
        assert states(found) == [(1, "overlap", 2), (2, "current", None)]
        assert found.verify(b"m", await manager.sign(b"m")).version == 2
        again = hsmcore.create_key_manager(config_of_other(manager.config), rotates=False)
        async with again:  # hands out what the other one had signed, and cannot make a key current
            assert again.key_set() == manager.key_set()
            with pytest.raises(StoreBusy, match="another process"):
                await again.set_current_key_id(await again.generate_key())


def config_of_other(config):
    """The same without the audit log, which one process has."""
    return config.model_copy(
        update={"key_manager": config.key_manager.model_copy(update={"audit_log_file": None, "audit": None})}
    )


async def test_no_caller_has_a_set_signed(fresh_token, tmp_path):
    async with opened(config_of(fresh_token(), tmp_path, kinds=["raw", "digest32", "key-set"])) as manager:
        found = await first(manager)
        forged = found.text.replace(b"\n0\n", b"\n9\n")
        for message, kind, position in (
            (forged, None, None),
            (forged, "key-set", 9),
            (forged, "raw", None),
            (bytes(32), "key-set", None),
            (bytes(32), "key-set", 9),
        ):
            error = BadArgument if kind == "key-set" else PolicyRefused
            with pytest.raises(error):
                await manager.sign(message, kind=kind, position=position)
            with pytest.raises(error):
                await manager.sign_with_receipt(message, kind=kind, position=position)
        with pytest.raises(PolicyRefused):
            await manager.sign_many([b"good", forged])


@one_loop
async def test_one_that_opens_slowly_has_a_set_signed_afterwards(fresh_token, tmp_path, monkeypatch):
    token = fresh_token()
    async with opened(config_of(token, tmp_path)) as manager:
        before = await first(manager)
    begin = BackgroundServices.begin

    async def slowly(*arguments):
        await asyncio.sleep(0.3)
        await begin(*arguments)

    monkeypatch.setattr(BackgroundServices, "begin", slowly)
    async with opened(config_of(token, tmp_path, kinds=("raw", "block", "key-set"))) as manager:
        await until(lambda: KeySet.remembered(manager.key_set()).serial > before.serial)
        assert "block" in before.follow(manager.key_set(since=before.serial)).kinds


@one_loop
async def test_a_forged_row_gets_no_key_into_a_set(fresh_token, tmp_path):
    """Without a stateSecret the rows of another writer are believed: about what the device has."""
    config = config_of(fresh_token(), tmp_path)
    async with opened(config) as manager:
        before = await first(manager)
    forged = bytes(SigningKey.generate().verify_key)
    with closing(sqlite3.connect(tmp_path / "state.db")) as raw, raw:
        for number, state in enumerate(("overlap", "pending", "deactivated")):
            raw.execute(
                "INSERT INTO key_version (key_id, public_key, algorithm, label, members, origin, state, created_ns, "
                "activated_ns, retire_ns, note) VALUES (?, ?, 'ed25519', 'x', '[]', 'rotation', ?, 1, 1, ?, '')",
                (f"0{number}", (forged[:-1] + bytes([number])).hex(), state, 4 * 10**18),
            )
    async with opened(config) as manager:
        await until(lambda: len(KeySet.remembered(manager.key_set()).keys) > 1)
        found = before.follow(manager.key_set(since=before.serial))
        assert [key.state for key in found.keys] == ["current", "retired"]


@one_loop
async def test_what_a_device_says_is_asked_before_the_first_set_whatever_the_store_has(fresh_token, tmp_path):
    config = config_of(fresh_token(), tmp_path, kinds=("raw",))
    async with opened(config) as manager:
        public_key = manager.public_key
    planted = ("INSERT INTO key_evidence VALUES (?, ?, 0)", (public_key.hex(), '{"says":{"CKA_LOCAL":"true"}}'))
    with closing(sqlite3.connect(tmp_path / "state.db")) as database, database:
        database.execute(*planted)
    config["sequencer"]["keyManager"]["policy"]["kinds"].append("key-set")
    async with opened(config) as manager:
        found = await first(manager)
        [said] = await records(manager, operation="key-evidence")
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        [(document,)] = database.execute("SELECT document FROM key_evidence").fetchall()
    assert json.loads(document)["publicKey"] == public_key.hex()
    assert found.current.evidence.hex() == said["evidence_sha256"] == sha256(document.encode()).hexdigest()


@one_loop
async def test_of_several_keys_each_has_a_set_and_batches(fresh_token, tmp_path):
    token, managers = fresh_token({"name": "a", "kind": "ed25519"}, {"name": "b", "kind": "ed25519"}), {}
    for name in "ab":
        rules = {"stateFile": str(tmp_path / f"{name}.db")}
        config = config_of(token, tmp_path, kinds=["key-set", "batch-root"], key=name, rules=rules)
        managers[name] = config["sequencer"]["keyManager"] | {"batching": {"intervalMs": 1}}
        del managers[name]["auditLogFile"]
    config = {"sequencer": {"keyManagers": managers}}
    with pytest.raises(ConfigurationError, match=r"a policy\.domain of its own"):
        hsmcore.create_key_managers(config)
    for name in "ab":
        managers[name]["policy"]["domain"] = name
    async with site(config, tmp_path, {"app": {"token": TOKEN, "keys": ["a", "b"]}}) as vault:
        for name, manager in vault.served.managers.items():
            await until(lambda manager=manager: manager.key_set() != b"")
            await becomes(lambda name=name, manager=manager: hands_out(vault, f"/keys/{name}", manager.key_set()))
            reply = await vault.asked("GET", f"/keys/{name}", token=None)
            KeySet.trust(reply.body, manager.public_key, name)
            signed = await manager.sign_batched(b"m")
            assert hsmcore.verify_batched(manager.public_key, b"m", signed.proof, domain=name)
        assert (await vault.asked("GET", "/keys", token=None)).status == 404
        for kind in ("key-set", "batch-root"):
            with pytest.raises(BadArgument):
                await vault.served.managers.sign(b"m", kind=kind)


async def hands_out(vault, where, expected):
    reply = await vault.asked("GET", where, token=None)
    return (reply.status, reply.body) == (200, expected)


@one_loop
async def test_it_is_handed_out_as_it_is(fresh_token, tmp_path, capfdbinary):
    config = config_of(fresh_token(), tmp_path)
    path = tmp_path / "hsmcore.json"
    path.write_text(json.dumps(config))
    async with site(config, tmp_path) as vault:
        await first(vault.manager)
        await vault.manager.rotate_key()
        await until(lambda: vault.manager.key_set(since=-1).count("§".encode()) == 4)
        newest, every = vault.manager.key_set(), vault.manager.key_set(since=-1)
        for where, expected in (("/keys", newest), ("/keys/default", newest), ("/keys?since=-1", every)):
            await becomes(lambda where=where, expected=expected: hands_out(vault, where, expected))
            reply = await vault.asked("GET", where, token=None)
            assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        for where, status in (("/keys/other", 404), ("/keys?since=x", 400), ("/keys?since=" + "9" * 30, 400)):
            assert (await vault.asked("GET", where, token=None)).status == status
        assert (await vault.asked("POST", "/keys", {}, token=None)).status == 405
        async with attached(vault.manager, "127.0.0.1:0") as console:
            for where, expected in (("/keys", newest), ("/keys?since=2", newest), ("/keys?since=-1", every)):
                assert (await asked(console.address, where)).body == expected
            assert (await asked(console.address, "/keys?since=x")).status == 400
        for options, expected in (([], newest), (["--since", "-1"], every), (["--since", "9"], b"")):
            assert await to_thread(cli, ["keys", "set", "--config", str(path), *options]) == 0
            assert capfdbinary.readouterr().out == expected
        assert await to_thread(cli, ["keys", "set", "--config", str(path), "--json", "--since", "-1"]) == 0
        shown = json.loads(capfdbinary.readouterr().out)
        assert [one["serial"] for one in shown] == [0, 1, 2, 3]
        assert [(key["state"], key["lastBatched"]) for key in shown[-1]["keys"]] == [
            ("retired", None),
            ("current", None),
        ]
        assert shown[-1]["goodUntil"] is None
        assert (
            await to_thread(cli, ["keys", "set", "--config", str(path), "--output", str(tmp_path / "keys.note")]) == 0
        )
        assert (tmp_path / "keys.note").read_bytes() == newest
        document = tmp_path / "evidence.json"
        options = ["--config", str(path), "--json", "--kept", "--output", str(document)]
        assert await to_thread(cli, ["keys", "attest", await vault.manager.get_current_key_id(), *options]) == 1
        assert b"its own word" in capfdbinary.readouterr().out
        assert sha256(document.read_bytes()).digest() == KeySet.remembered(newest).current.evidence
        await refuses_what_no_set_has_the_digest_of(vault.manager, tmp_path, options, capfdbinary)
        for program in ([sys.executable, "verify_key_set.py"], ["node", "verify_key_set.mjs"]):
            (tmp_path / "all").write_bytes(every)
            memory = tmp_path / program[1]
            old = KeySet.remembered(next(split(every))).current.public_key.hex()
            command = [program[0], EXAMPLES / program[1], old, memory, tmp_path / "all"]
            for _ in range(2):  # the second time from its memory
                done = await to_thread(run, command, capture_output=True, text=True, check=False, timeout=60)
                assert done.stdout == f"my-rollup 3 {vault.manager.public_key.hex()}\n", done.stderr


async def refuses_what_no_set_has_the_digest_of(manager, folder, options, capfdbinary):
    """The rows of evidence and of sets have no seal."""
    key_id = await manager.get_current_key_id()
    genuine = (folder / "evidence.json").read_bytes()
    other = {**json.loads(genuine), "says": {"CKA_LOCAL": "true", "CKA_NEVER_EXTRACTABLE": "true"}}
    note = manager.key_set().decode()

    def changed(table, column, before, after):
        with closing(sqlite3.connect(folder / "state.db")) as database, database:
            done = database.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (after, before))  # noqa: S608
            assert done.rowcount == 1

    async def refused():
        capfdbinary.readouterr()
        assert await to_thread(cli, ["keys", "attest", key_id, *options]) == 1
        return capfdbinary.readouterr().err

    changed("key_evidence", "document", genuine.decode(), json.dumps(other))
    assert b"not what the set of keys has the digest of" in await refused()
    changed("key_evidence", "document", json.dumps(other), genuine.decode())
    thief = SigningKey.generate()
    theirs = KeyEntry(9, "ed25519", bytes(thief.verify_key), "current", 0, None, None)
    digest = sha256(json.dumps(other).encode()).digest()
    own = replace(KeySet.remembered(manager.key_set()).current, state="next", evidence=digest)
    text = text_of("my-rollup", 3, 0, ["raw"], [theirs, own])
    forged = text + b"\n" + signature_line(signer("my-rollup", theirs.public_key), thief.sign(text).signature)
    assert KeySet.remembered(forged).entry(manager.public_key) == own
    changed("key_evidence", "document", genuine.decode(), json.dumps(other))
    changed("key_set", "note", note, forged.decode())
    assert b"not what the set of keys has the digest of" in await refused(), "no key of the ring has signed the set"
    changed("key_evidence", "document", json.dumps(other), genuine.decode())
    changed("key_set", "note", forged.decode(), note)
    capfdbinary.readouterr()


async def test_what_cannot_have_sets_is_refused(world, tmp_path):
    config = config_of(world, tmp_path)
    del config["sequencer"]["keyManager"]["keyRotation"]
    with pytest.raises(ConfigurationError, match="keyRotation is not enabled"):
        hsmcore.create_key_manager(config)
    config = config_of(world, tmp_path)
    config["sequencer"]["keyManager"]["policy"]["domain"] = "a b"
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        hsmcore.create_key_manager(config)
    config = config_of(world, tmp_path, kinds=["raw"], keySetGoodForHours=1)
    with pytest.raises(ConfigurationError, match=r"keySetGoodForHours, but policy\.kinds does not list"):
        hsmcore.create_key_manager(config)
    for hours in (0, -1, 1.5, 10**9):
        with pytest.raises(ConfigurationError, match=r"keyRotation\.keySetGoodForHours"):
            hsmcore.create_key_manager(config_of(world, tmp_path, keySetGoodForHours=hours))
    config = config_of(world, tmp_path, key="ecdsa-p256")
    with pytest.raises(AlgorithmUnsupported, match="Ed25519"):
        await hsmcore.create_key_manager(config).initialize()
