"""Rows that an attacker writes into the state store of a running key manager: no key is destroyed for them, and
signing goes on. A forged row is reported in the log, in the history and in a notice."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from itertools import product

import pytest
from nacl.signing import SigningKey
from tests.integration.test_rotation import Handover, M, rules, stored
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start
from tests.support.size import each

import hsmcore
from hsmcore.errors import HsmError
from hsmcore.manager.rotation import service

pytestmark = [pytest.mark.integration, one_loop]
BOB, CAROL = SigningKey(bytes(range(32))), SigningKey(bytes(range(1, 33)))
APPROVERS = [{"name": name, "publicKey": bytes(key.verify_key).hex()} for name, key in (("bob", BOB), ("carol", CAROL))]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.02)


@pytest.fixture
def token(fresh_token):
    """The key that signs, one of another program, and one whose label looks like a rotation's."""
    names = ("ed25519", "unrelated", "ed25519-key-0a1b2c3d")
    return fresh_token(*({"name": name, "kind": "ed25519", "label": f"{name}-key"} for name in names[:2]),
                       {"name": "lookalike", "kind": "ed25519", "label": names[2]})  # fmt: skip


class Forger:
    """Write the store as any process can that may write its file."""

    def __init__(self, tmp_path):
        self.path = tmp_path / "state.db"

    def write(self, statement, *values):
        with closing(sqlite3.connect(self.path, timeout=10)) as connection, connection:
            return connection.execute(statement, values).lastrowid

    def key(self, key, state, *, public_key="", key_id=None, activated=None, algorithm="ed25519"):
        """A row of the key ring. Returns its version."""
        identity = key.id if key_id is None else key_id
        return self.write(
            "INSERT INTO key_version (key_id, public_key, algorithm, label, members, origin, state, created_ns,"
            " activated_ns, note) VALUES (?, ?, ?, ?, '[]', 'rotation', ?, 0, ?, '')",
            *(identity, public_key, algorithm, key.label, state, activated),
        )

    def rotation(self, old, new, status, step, *, begun=0, scratch=None):
        """A rotation at a step. Returns its number."""
        number = self.write(
            "INSERT INTO rotation (cause, reason, begun_ns, old_version, new_version, status, step, step_begun,"
            " wait_ns, tries, aborted, error) VALUES ('manual', '', ?, ?, ?, ?, ?, ?, 9000000000000000000, 0, 0, '')",
            *(time.time_ns(), old, new, status, step, begun),
        )
        if scratch is not None:
            self.write(
                "INSERT INTO rotation_step (rotation_id, time_ns, step, outcome, details) VALUES (?, 0, ?, 'begun', ?)",
                *(number, step, f'{{"scratch": "{scratch}"}}'),
            )
        self.write("UPDATE rotation SET wait_ns = 0 WHERE id = ?", number)  # now that all rows are there
        return number


def undone(forger, key):
    """The rows of finding 4: the key as one that is pending, and a rotation that replaces another one."""
    other = forger.key(key, "deactivated", public_key="aa" * 32, key_id="bb" * 8)
    return forger.rotation(other, forger.key(key, "pending"), "undoing", "generate")


def undone_of_current(forger, key):
    """The same with the key that signs as the one that is replaced."""
    return forger.rotation(1, forger.key(key, "pending"), "undoing", "generate")


def undone_by_label(forger, key):
    return forger.rotation(1, forger.key(key, "pending", key_id=""), "undoing", "generate")


def undone_while_active(forger, key):
    """The ring's own row of the key that signs."""
    other = forger.key(key, "deactivated", public_key="aa" * 32, key_id="bb" * 8)
    return forger.rotation(other, 1, "undoing", "generate")


def made_room_for(forger, key):
    """The key as an incomplete one, which is cleared away before the new one is made."""
    return forger.rotation(1, forger.key(key, "pending", algorithm="ecdsa-p256"), "running", "generate", begun=1)


def scratch(forger, key):
    """The key as what a drill has left."""
    return forger.rotation(1, forger.key(key, "pending", key_id=""), "undoing", "drill", scratch=key.id)


def expired(forger, key):
    """The key as one that was replaced long ago."""
    return forger.rotation(forger.key(key, "deactivated", public_key=key.public_key.hex()), 1, "overlap", "destroy")


def expired_after_signing(forger, key):
    version = forger.key(key, "deactivated", public_key=key.public_key.hex(), activated=1)
    return forger.rotation(version, 1, "overlap", "destroy")


FORGERIES = (undone, undone_of_current, undone_by_label, undone_while_active, made_room_for, scratch, expired,
             expired_after_signing)  # fmt: skip


@pytest.mark.parametrize(("approvals", "forge"), [*product([0], FORGERIES), *each(4, product([2], FORGERIES))])
async def test_no_key_is_destroyed_for_a_forged_row(token, tmp_path, forge, approvals):
    block = {"overlapDays": 0, "destroyAfterDays": 0, "approvals": approvals, "approvers": APPROVERS}
    forger = Forger(tmp_path)
    async with opened(token.config(**rules(tmp_path, **block))) as manager:
        before = {record.id for record in await manager._path.member.control.list_keys()}
        assert len(before) == 3
        for name in ("unrelated", "lookalike", "ed25519"):  # the key that signs comes last
            number = forge(forger, token.keys[name])

            async def ended(number=number):
                return (await manager._background.rotation.rotations.get(number)).run.status in ("failed", "done")

            await becomes(ended)
            assert {record.id for record in await manager._path.member.control.list_keys()} == before, name
            assert await manager.verify(M, await manager.sign(M), key_id=token.keys["ed25519"].id)
            steps = await manager._background.rotation.rotations.steps(number)
            assert any("kept" in step["details"] or step["outcome"] == "failed" for step in steps), "told"
        assert await manager.get_current_key_id() == token.keys["ed25519"].id


async def test_the_key_that_signs_is_not_deactivated_for_a_forged_row(token, tmp_path):
    forger, key = Forger(tmp_path), token.keys["ed25519"]
    async with opened(token.config(**rules(tmp_path))) as manager:
        version = forger.key(key, "deactivated", public_key=key.public_key.hex())
        number = forger.rotation(version, 1, "overlap", "deactivate")

        async def waits():
            steps = await manager._background.rotation.rotations.steps(number)
            return any(step["outcome"] in ("waiting", "done") for step in steps)

        await becomes(waits)
        assert len(await manager.sign(M)) == 64


async def test_a_rotation_that_replaces_another_key_than_the_one_that_signs_makes_none(token, tmp_path):
    """A rotation that would make a real key, so that later it could pass for the one that has replaced `old`."""
    forger, key = Forger(tmp_path), token.keys["unrelated"]
    async with opened(token.config(**rules(tmp_path, destroyAfterDays=0))) as manager:
        old = forger.key(key, "deactivated", public_key=key.public_key.hex())
        number = forger.rotation(old, forger.key(key, "pending", key_id=""), "running", "approve")

        async def ended():
            return (await manager._background.rotation.rotations.get(number)).run.status in ("failed", "done")

        await becomes(ended)
        assert len(await manager._path.member.control.list_keys()) == 3


async def test_a_key_is_not_destroyed_while_a_handover_to_it_was_called(token, tmp_path):
    """The row says that the new key is to be undone; the history says that a handover was called."""
    forger, given = Forger(tmp_path), token.config(**rules(tmp_path, overlapDays=1))
    manager = hsmcore.create_key_manager(given)
    manager.on_rotation(Handover())
    async with manager:
        new = await manager.rotate_key()
    forger.write("UPDATE rotation SET status = 'undoing', step = 'generate', step_begun = 0, wait_ns = 0")
    async with opened(given) as other:

        async def looked():
            return other._background.rotation.seen is not None

        await becomes(looked)
        assert (await other._background.rotation.rotations.get(1)).run.status == "undoing"
        assert new in {record.id for record in await other._path.member.control.list_keys()}


@pytest.mark.parametrize("given", [0, 1, 2])
async def test_an_undo_asks_for_the_approvals_again(token, tmp_path, given):
    """Approved by two, then `given` of the approvals are left in the store when it fails."""
    from hsmcore.manager.rotation.approvals import by_signature, statement

    forger, config = Forger(tmp_path), rules(tmp_path, approvals=2, approvers=APPROVERS)
    manager = hsmcore.create_key_manager(token.config(**config))

    class Fails(Handover):
        async def handover(self, old, new, km):
            forger.write("DELETE FROM approval WHERE id > ?", given)
            raise ValueError("the chain says no")

    manager.on_rotation(Fails())
    async with manager:
        rotation = manager._background.rotation
        rotating = start(manager.rotate_key())

        async def waits():
            return any(entry.run.step == "approve" for entry in await rotation.rotations.open())

        await becomes(waits)
        [entry], [old, _] = await rotation.rotations.open(), await rotation.keys.all()
        text = statement(entry, old)
        for approver, key in zip(rotation._rules.approvers, (BOB, CAROL), strict=True):
            await rotation._approvals.add(1, by_signature(approver, text, key.sign(text).signature))
        with pytest.raises(HsmError, match="the chain says no"):
            await rotating
        assert len(await manager._path.member.control.list_keys()) == (3 if given == 2 else 4)
    keys, _, steps = await stored(tmp_path)
    assert keys[1].state == ("destroyed" if given == 2 else "deactivated")
    assert keys[1].activated_ns is None
    [details] = [s["details"] for s in steps if (s["step"], s["outcome"]) == ("generate", "undone")]
    assert ("kept" in details) == (given < 2)
