"""A key binds positions in the domain and by the formats in which it did before, whatever the configuration says."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.support.commands import commands
from tests.support.loops import one_loop
from tests.support.managers import opened

from hsmcore.cli.output import NO_USE_AGAIN, StartFailed, starting
from hsmcore.errors import DoubleSign
from hsmcore.state import DomainMismatch

pytestmark = [pytest.mark.integration]
FORMAT = {"kind": "block", "prefix": "4c32424b", "length": 76}
LITTLE, BIG = ({**FORMAT, "position": {"offset": 4, "bytes": 8, "order": order}} for order in ("little", "big"))
ROOTS = {**LITTLE, "kind": "state-root"}
LONGER = {**LITTLE, "length": 80}
POLICY = {"kinds": ["block"], "domain": "my-rollup", "formats": [LITTLE]}


def block(position: int, content: bytes) -> bytes:
    """A layer 2's own block."""
    return b"L2BK" + position.to_bytes(8, "little") + content * 64


@pytest.fixture
def lives(fresh_token, tmp_path):
    """Makes configurations of one key, store, log and seal."""
    token = fresh_token()

    def config(policy=POLICY, **more):
        named = {
            "stateFile": str(tmp_path / "state.db"),
            "auditLogFile": str(tmp_path / "audit.log"),
            "maxCacheSize": 0,
        }
        rules = {name: value for name, value in {**named, "policy": policy, **more}.items() if value is not None}
        made = token.config(**rules)
        made["sequencer"]["stateSecret"] = "s" * 32
        (tmp_path / "config.json").write_text(json.dumps(made))
        return made

    return config


async def begun(config):
    """Bind block A at position 7. Returns the key."""
    async with opened(config) as manager:
        await manager.sign(block(7, b"A"))
        with pytest.raises(DoubleSign):
            await manager.sign(block(7, b"B"))
        return manager.public_key


async def refused(config):
    """The error of a start, which is refused for good."""
    with pytest.raises(StartFailed) as caught, starting():
        async with opened(config):
            pass
    error = caught.value.error
    assert (type(error), caught.value.code) == (DomainMismatch, NO_USE_AGAIN)
    return error


EDITS = {
    "a capital": ({"domain": "My-rollup"}, "domain My-rollup"),
    "a letter that looks alike": ({"domain": "my-rolIup"}, "domain my-rolIup"),
    "no domain": ({"domain": "default"}, "domain default"),
    "byte order": ({"formats": [BIG]}, "8 bytes big at 4"),
    "kind": ({"kinds": ["state-root"], "formats": [ROOTS]}, "state-root 4c32424b"),
    "another format": ({"formats": [LONGER]}, "of 80 bytes"),
    "no formats, raw": ({"kinds": ["block", "raw"], "formats": []}, "with block"),
    "raw alone": ({"kinds": ["raw"], "formats": []}, "no kind with a position"),
    "no policy": (None, "no kind with a position"),
}


@one_loop
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("logged", [True, False], ids=["log", "no log"])
async def test_no_edit_makes_a_key_forget_what_it_has_bound(edit, logged, lives, tmp_path, capfdbinary):
    """Each was signed: another block at a bound position."""
    changed, says = EDITS[edit]
    more = {} if logged else {"auditLogFile": None}
    key = await begun(lives(**more))
    config = lives(None if changed is None else {**POLICY, **changed}, **more)
    error = await refused(config)
    said = str(error)
    assert "domain my-rollup with block, block 4c32424b of 76 bytes, position 8 bytes little at 4" in said
    assert says in said.partition("$.sequencer.keyManager.policy has")[2]
    assert f"hsmcore policy rebind {key.hex()} --reason TEXT" in error.hint
    await begun(lives(**more))
    lives(None if changed is None else {**POLICY, **changed}, **more)
    with commands(tmp_path, capfdbinary, "policy") as command:
        code, done, _ = await asyncio.to_thread(command, "rebind", key.hex(), "--reason", "another chain")
    assert code == 0
    [rebound] = done["rebound"]
    assert (rebound["publicKey"], rebound["before"]["domain"]) == (key.hex(), "my-rollup")
    async with opened(config) as manager:
        assert manager.public_key == key
        if changed is None or "raw" in changed.get("kinds", ()):
            await manager.sign(block(7, b"B"))
        if logged:
            [found] = [one async for one in manager.audit.query(match={"command": "policy rebind"})]
            assert (found["reason"], found["public_key"], found["previous"]) == (
                "another chain",
                [key.hex()],
                ["my-rollup"],
            )
    if changed is not None and changed.get("formats", True):
        await refused(lives(**more))  # the way back is another rebind, unless it adds forms only


@one_loop
async def test_forms_are_added_and_not_taken_away(lives):
    """What an added form makes of a message, it had no position before: nothing that was bound changes."""
    for policy in (
        {**POLICY, "kinds": ["raw", "block"]},
        {**POLICY, "kinds": ["block", "state-root", "batch-root"], "formats": [LONGER, LITTLE]},
        {**POLICY, "kinds": ["state-root", "block"], "formats": [LITTLE, LONGER]},
    ):
        await begun(lives(policy))
    for fewer in (POLICY, {**POLICY, "kinds": ["block", "state-root"]}):
        assert "of 80 bytes" in str(await refused(lives(fewer)))
