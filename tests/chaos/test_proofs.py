"""A key is proved by a signature that verifies: a token that errs for a moment loses no key, and one that signs with
another key than its public half says is found out, whatever `verifySignatures` is."""

from __future__ import annotations

import asyncio

import pytest
from tests.chaos.load import signs, until_it_signs
from tests.support.chaos import Chaos, engine_of, replace_private_half, supervisor_of, wrap
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, until
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.errors import DeadlineExceeded, KeyMismatch, MemberDown, SignatureInvalid

pytestmark = [pytest.mark.integration]

BOTH = pytest.mark.parametrize("isolation", ["thread", "process"])
MOST_WRONG = 4  # HSM_MAX_WRONG


def wrong(count: int) -> list[dict[str, object]]:
    """The next signatures have a bit flipped."""
    return [{"function": "C_Sign", "action": "wrong-signature", "every": 1, "count": count}]


@one_loop
@BOTH
async def test_a_token_whose_first_signatures_are_wrong_starts(world, tmp_path, isolation):
    chaos = Chaos(tmp_path, wrap(world))
    chaos.write(faults=wrong(MOST_WRONG - 1))
    async with opened(chaos.config(settings={"isolation": isolation})) as manager:
        assert chaos.calls("C_Sign") == MOST_WRONG
        await signs(manager, b"started")


@one_loop
@BOTH
async def test_a_key_that_never_signed_well_is_another_one(world, tmp_path, isolation):
    chaos = Chaos(tmp_path, wrap(world))
    chaos.write(faults=wrong(MOST_WRONG))
    manager = hsmcore.create_key_manager(chaos.config(settings={"isolation": isolation}))
    with pytest.raises(KeyMismatch, match="does not verify") as caught:
        await manager.initialize()
    assert (caught.value.status, caught.value.call) == ("KEY_MISMATCH", "C_Sign")


@one_loop
async def test_a_key_is_not_lost_to_a_restart_while_its_token_signs_wrongly(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"isolation": "process"})) as manager:
        await signs(manager, b"before")
        chaos.write(faults=wrong(MOST_WRONG))  # for each process anew
        engine_of(manager).kill_host()
        with pytest.raises((MemberDown, DeadlineExceeded)):
            await manager.sign(b"nobody signs", 1.0)
        assert supervisor_of(manager).restarts == 0
        chaos.write(faults=[])
        await until_it_signs(manager)
        await until(lambda: supervisor_of(manager).restarts > 0)  # an answer may come before
        assert supervisor_of(manager).restarts == 1
        assert counters(manager)["wrong"] == 0, "no request was signed by a token that signs wrongly"


@one_loop
async def test_a_restart_in_which_one_key_errs_loses_neither_key(fresh_token, tmp_path):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(chaos.config(settings={"isolation": "process"})) as manager:
        await manager.set_current_key_id(token.keys["other"].id)
        chaos.write(faults=wrong(MOST_WRONG))
        engine_of(manager).kill_host()
        await until(lambda: supervisor_of(manager).restarts == 1)
        for name in ("ed25519", "other"):
            await manager.set_current_key_id(token.keys[name].id)
            await signs(manager, name.encode(), 10.0)


@one_loop
@BOTH
async def test_another_private_key_behind_the_same_public_key_signs_nothing(fresh_token, tmp_path, isolation):
    """After a new login only public keys are compared, and SoftHSM keeps them in objects of their own."""
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    chaos = Chaos(tmp_path, wrap(token))
    async with opened(
        chaos.config(settings={"isolation": isolation, "verifySignatures": "never"}, maxCacheSize=0)
    ) as manager:
        old = manager.public_key
        await signs(manager, b"before")
        await asyncio.to_thread(replace_private_half, token, "ed25519")
        chaos.fault("C_SignInit", "kill-all-sessions")
        for number in range(20):
            try:
                signature = await manager.sign(message := f"{number}".encode())
            except SignatureInvalid:
                continue
            assert is_good("ed25519", old, message, signature), "made before the sessions were lost"
        assert counters(manager)["wrong"] >= 18
        await manager.set_current_key_id(token.keys["other"].id)
        await signs(manager, b"the other key is none the worse")
