"""What steps of a rotation decide, each by one row of a real store at a time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.loops import one_loop

from hsmcore.base.keyring import KeyVersion
from hsmcore.base.places import PlaceError
from hsmcore.config import KeyRotation
from hsmcore.errors import BadArgument, KeyDeactivated, MemberDown
from hsmcore.manager.rotation.context import Context, Done
from hsmcore.manager.rotation.machine import Run
from hsmcore.manager.rotation.steps import backups, destruction, handover, telling
from hsmcore.manager.rotation.store import Rotations
from hsmcore.state import Approvals, Keys, Store, StoreBusy

pytestmark = one_loop
NOW = 1_000_000_000_000
OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))


class Site:
    """A store whose ring has a key that signs and one that a rotation has made."""

    def __init__(self, store: Store) -> None:
        self.store, self.keys, self.rotations = store, Keys(store), Rotations(store, lambda: NOW)
        self.notices: list[tuple[str, ...]] = []

    async def begin(self) -> None:
        old = await self.keys.begin("01" * 8, OLD, "ed25519", "key", ["softhsm:primary"], "as configured")
        rotation = await self.rotations.begin("manual", old.version, "key-00000001", None)
        await self.keys.change(rotation.new, key_id="02" * 8, public_key=NEW)

    async def context(self, *, signing: bytes = OLD, **rules: Any) -> Context:
        """What a step gets. `signing`: the public key that this process signs with."""
        [rotation] = await self.rotations.open()
        old, new = await self.keys.all()
        version = KeyVersion("01" * 8 if signing == OLD else "03" * 8, "key", "ed25519", signing, 0)
        port: Any = SimpleNamespace(signing=lambda: [version])

        async def announce(*notice: str) -> None:
            self.notices.append(notice)

        nothing: Any = None
        return Context(
            KeyRotation.model_validate(rules),
            *(nothing, port, self.keys, self.rotations, rotation, old, new, Approvals(self.store), announce),
            *(None, {}, frozenset(), None, frozenset(), 0, lambda: NOW, lambda: NOW),
        )


@pytest.fixture
def site(run, tmp_path):
    async def opened() -> Site:
        site = Site(await Store.open(tmp_path / "state.db"))
        await site.begin()
        return site

    site = run(opened())
    yield site
    run(site.store.close())


# ---- which key may be destroyed ----


async def test_a_key_that_a_rotation_made_and_nothing_speaks_for_may_be_destroyed(site):
    assert await destruction.why_not_new(await site.context()) is None


@pytest.mark.parametrize(
    ("change", "signing", "rules", "why"),
    [
        ({"state": "overlap"}, OLD, {}, "the ring has it as overlap"),
        ({"activated_ns": 1}, OLD, {}, "the ring has it as pending"),
        ({}, OTHER, {}, "replaces another key"),
        ({"key_id": "01" * 8}, OLD, {}, "it signs"),
        ({"public_key": OLD}, OLD, {}, "it signs"),
        ({}, OLD, {"approvals": 1, "approvers": [{"name": "bob", "publicKey": "04" * 32}]}, "0 of 1 approvals"),
    ],
)
async def test_any_one_reason_keeps_a_key_that_a_rotation_made(site, change, signing, rules, why):
    [rotation] = await site.rotations.open()
    await site.keys.change(rotation.new, **{"note": "", **change})
    assert why in (await destruction.why_not_new(await site.context(signing=signing, **rules)) or "")


async def test_a_key_that_was_handed_over_to_is_kept_until_the_chain_has_said_otherwise(site):
    ctx = await site.context()
    await site.rotations.note(ctx.rotation.id, "handover", "begun", {"handover": True})
    assert "which key the chain obeys" in (await destruction.why_not_new(ctx) or "")
    await site.rotations.note(ctx.rotation.id, "handover", "undone", {"settled": "old"})
    assert await destruction.why_not_new(ctx) is None


# ---- a chain that does not say which key it obeys ----


@pytest.mark.parametrize(
    ("steps", "waits"),
    [
        ([], True),  # the beginning was lost: a handover may have been called
        ([("begun", {})], True),
        ([("begun", {"handover": True}), ("waiting", {})], True),
        ([("begun", {"handover": False})], False),
        ([("begun", {"handover": False}), ("waiting", {})], False),
        ([("begun", {"handover": False}), ("begun", {"handover": True})], True),
    ],
)
async def test_a_rotation_waits_for_the_process_whose_handover_may_have_been_called(site, steps, waits):
    [rotation] = await site.rotations.open()
    await site.rotations.record(rotation.id, Run("running", "handover", begun=True), "notify", "done", {})
    for outcome, details in steps:
        await site.rotations.note(rotation.id, "handover", outcome, details)
    assert (await handover.waiting(site.rotations) is not None) == waits


async def test_failures_are_counted_since_the_last_success(site):
    [rotation] = await site.rotations.open()
    counted = []
    for status in ("failed", "failed", "done", "failed"):
        await site.rotations.record(rotation.id, Run(status, "generate"), "generate", status, {})
        counted.append(await site.rotations.failures_in_a_row())
        rotation = await site.rotations.begin("schedule", rotation.old, "key", None)
    assert counted == [(1, NOW), (2, NOW), (0, 0), (1, NOW)]


# ---- before the switch ----


async def test_verifiers_are_told_of_a_key_once_the_set_of_keys_lists_it(site):
    answers: list[Any] = [False, MemberDown("away"), BadArgument("no set can have it"), True]

    async def introduce(public_key: bytes) -> bool:
        assert public_key == NEW
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ctx = await site.context()
    ctx.port.introduce = introduce
    for _ in range(2):  # the error passes: the step waits
        assert (await telling.do(ctx)).details == {"waitsFor": "a signed set of keys that lists the new key"}
    with pytest.raises(BadArgument):
        await telling.do(ctx)
    assert site.notices == []
    assert isinstance(await telling.do(ctx), Done)
    assert [notice[1] for notice in site.notices] == [f"rotation {ctx.rotation.id}: about to switch"]


# ---- the backup of the new key ----


@pytest.fixture
def unreadable(tmp_path):
    """A place of backups that is a file."""
    path = tmp_path / "backups"
    path.write_bytes(b"")
    return {"backupEnabled": True, "backupLocation": str(path)}


async def test_a_backup_that_cannot_be_read_stops_the_rotation_that_requires_one(site, unreadable):
    for step in (backups.plan_drill, backups.drill):
        with pytest.raises(PlaceError):
            await step(await site.context(**unreadable))
        assert isinstance(await step(await site.context(**unreadable, backupPolicy="warn")), Done)


async def test_without_a_backup_there_is_no_drill(site, unreadable, tmp_path):
    """Also where the place of former backups is named still."""
    for rules in ({}, unreadable | {"backupEnabled": False}, unreadable | {"backupLocation": str(tmp_path)}):
        assert (await backups.drill(await site.context(**rules))).details == {"skipped": "there is no backup"}


# ---- a key that an operator makes current ----


async def test_a_key_that_is_chosen_signs_and_the_former_one_ends_as_after_a_rotation(site):
    [rotation] = await site.rotations.open()
    first, made = await site.keys.all()

    async def choose(public_key: bytes, key_id: str = "04" * 8) -> Any:
        return await site.rotations.choose("chosen", key_id, public_key, "ed25519", "k", ["m"], NOW + 7)

    for status in ("running", "undoing"):
        await site.rotations.record(rotation.id, replace(rotation.run, status=status), "generate", "begun", {})
        with pytest.raises(StoreBusy, match="under way"):
            await choose(OTHER)
    await site.rotations.record(rotation.id, Run("failed", "generate"), "generate", "failed", {})

    chosen = await choose(OTHER)
    assert (chosen.state, chosen.public_key, chosen.members, chosen.activated_ns) == ("active", OTHER, ("m",), NOW)
    [ending] = await site.rotations.open()
    assert (ending.cause, ending.old, ending.new) == ("chosen", first.version, chosen.version)
    assert (ending.run.status, ending.run.step, ending.run.wait_ns) == ("overlap", "deactivate", NOW + 7)
    former = (await site.keys.all())[0]
    assert (former.state, former.retire_ns, f"version {chosen.version} was chosen" in former.note) == (
        *("overlap", NOW + 7),
        True,
    )

    assert (await choose(OTHER)).version == chosen.version, "the key that signs: nothing is displaced"
    assert len(await site.rotations.open()) == 1
    assert (await choose(OLD)).version == first.version, "one of the ring: it keeps its version"
    assert len(await site.keys.all()) == 3
    await site.keys.deactivate(OLD)
    waiting = len(await site.rotations.open())
    assert (await choose(bytes(32), "05" * 8)).state == "active"
    assert len(await site.rotations.open()) == waiting, "none signed: nothing is displaced"
    with pytest.raises(KeyDeactivated):
        await choose(NEW)
    assert (await site.keys.all())[1].state == "destroyed"
    assert made.version == 2
