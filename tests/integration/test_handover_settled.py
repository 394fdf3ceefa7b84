"""The chain is asked which key it obeys before the new key signs, and before it is destroyed; "unknown" waits."""

from __future__ import annotations

import asyncio
import json

import pytest
from tests.integration.test_rotation import Handover, M, rules, stored
from tests.support.loops import one_loop
from tests.support.managers import becomes, start
from tests.support.rotation import cancel_rotation_at, is_rotating

import hsmcore
from hsmcore.cli.app import run as run_command
from hsmcore.errors import BadArgument, HsmError
from hsmcore.manager.rotation import service
from hsmcore.manager.rotation.steps import handover as step

pytestmark = pytest.mark.integration
NO_ANSWERS = ("unknown", None, "NEW", ["new"], HsmError("the node is away"), RuntimeError("a mistake"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(step, "ASK_AGAIN_NS", 20_000_000)


class Chain(Handover):
    """`answer`: what `settled` answers or raises; None: the truth. `moves`: whether a handover has an effect."""

    def __init__(self, answer="truth", *, fails=0, moves=True):
        super().__init__(fails)
        self.answer, self.moves, self.asked = answer, moves, 0

    async def handover(self, old, new, km):
        before = self.obeys
        try:
            return await super().handover(old, new, km)
        finally:
            self.obeys = self.obeys if self.moves else before

    async def settled(self, old, new):
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return await super().settled(old, new) if self.answer == "truth" else self.answer


async def cut_off(token, tmp_path, monkeypatch, chain, point):
    """A rotation that ends with its process at a point. Returns the configuration."""
    config = token.config(**rules(tmp_path, overlapDays=1, requireHandover=True))
    with monkeypatch.context() as patch:
        reached = cancel_rotation_at(patch, point)
        manager = hsmcore.create_key_manager(config)
        manager.on_rotation(chain)
        async with manager:
            rotating = start(manager.rotate_key())

            async def ended():
                return bool(reached) and not is_rotating(manager)

            await becomes(ended)
        await asyncio.wait({rotating})
        assert rotating.exception() is not None
    return config


async def waiting(tmp_path):
    return [step["outcome"] for step in (await stored(tmp_path))[2][-1:]] == ["waiting"]


async def ended(tmp_path):
    return (await stored(tmp_path))[1][-1].run.status not in ("running", "undoing")


async def on_token(manager):
    return {record.id for record in await manager._path.member.control.list_keys()}


@one_loop
@pytest.mark.parametrize(("point", "again"), [("do:handover:begun", True), ("do:handover:effect", False)])
async def test_a_handover_that_was_called_is_called_again_only_if_the_chain_obeys_the_old_key(
    fresh_token, tmp_path, monkeypatch, point, again
):
    chain = Chain()
    config = await cut_off(fresh_token(), tmp_path, monkeypatch, chain, point)
    assert len(chain.calls) == (0 if again else 1)
    manager = hsmcore.create_key_manager(config)
    manager.on_rotation(chain)
    async with manager:
        await becomes(lambda: ended(tmp_path))
        assert [call[0] for call in chain.calls] == ["handover"]
        assert manager.public_key == chain.obeys


@one_loop
@pytest.mark.parametrize("answer", NO_ANSWERS)
async def test_while_the_chain_does_not_say_which_key_it_obeys_nothing_is_done_or_destroyed(
    fresh_token, tmp_path, monkeypatch, caplog, capsys, answer
):
    chain, token = Chain(), fresh_token()
    config = await cut_off(token, tmp_path, monkeypatch, chain, "do:handover:effect")
    chain.answer = answer
    (tmp_path / "hsm.json").write_text(json.dumps(config))
    manager = hsmcore.create_key_manager(config)
    manager.on_rotation(chain)
    async with manager:
        await becomes(lambda: waiting(tmp_path))
        asked = chain.asked

        async def asked_again():
            return chain.asked > asked + 2

        await becomes(asked_again)
        assert len(chain.calls) == 1
        assert manager.public_key == token.keys["ed25519"].public_key
        assert len(await on_token(manager)) == 2
        assert caplog.text.count("a rotation waits for its chain") == 1, "said once"
        await asyncio.to_thread(run_command, ["rotate", "status", "--config", str(tmp_path / "hsm.json")])
        assert "it waits for the chain to obey one key" in capsys.readouterr().out
        chain.answer = "truth"
        await becomes(lambda: ended(tmp_path))
        assert manager.public_key == chain.obeys
        assert await manager.verify(M, await manager.sign(M))
    assert [call[0] for call in chain.calls] == ["handover"]


@one_loop
@pytest.mark.parametrize("fails", [0, 1])
async def test_the_new_key_is_kept_until_the_chain_obeys_the_old_one(fresh_token, tmp_path, fails):
    """The handover raises, or an operator aborts a rotation that waits; then the chain says nothing for a while."""
    config = fresh_token().config(**rules(tmp_path))
    (tmp_path / "hsm.json").write_text(json.dumps(config))
    manager, chain = hsmcore.create_key_manager(config), Chain("unknown", fails=fails)
    manager.on_rotation(chain)
    async with manager:
        old = await manager.get_current_key_id()
        rotating = start(manager.rotate_key())
        await becomes(lambda: waiting(tmp_path))
        if not fails:
            assert (
                await asyncio.to_thread(run_command, ["rotate", "abort", "--config", str(tmp_path / "hsm.json")]) == 0
            )

        async def reverted():
            return [call[0] for call in chain.calls][:2] == ["handover", "revert"]

        await becomes(reverted)
        for answer in ("unknown", "new"):
            chain.answer, asked = answer, chain.asked

            async def asked_again(asked=asked):
                return chain.asked > asked + 2

            await becomes(asked_again)
            assert len(await on_token(manager)) == 2
            assert manager.public_key == manager.keys()[0].public_key
        chain.answer = "truth"
        await asyncio.wait({rotating})
        assert rotating.exception() is not None
        assert await on_token(manager) == {old}
        assert (await stored(tmp_path))[1][0].run.status == ("failed" if fails else "aborted")


class Older:
    """A handover for an earlier version."""

    def __init__(self, fails=0):
        self.fails, self.calls = fails, []

    async def handover(self, old, new, km):
        self.calls.append("handover")
        if len(self.calls) <= self.fails:
            raise RuntimeError("refused")

    async def revert(self, old, new, km):
        self.calls.append("revert")


@one_loop
async def test_a_handover_that_cannot_be_asked_is_taken_at_its_word_and_costs_no_key(fresh_token, tmp_path, caplog):
    config = fresh_token().config(**rules(tmp_path, overlapDays=1, requireHandover=True))
    chain = Older(fails=1)
    manager = hsmcore.create_key_manager(config)
    manager.on_rotation(chain)
    assert "cannot say which key the chain obeys" in caplog.text
    async with manager:
        first = manager.keys()[0].id
        with pytest.raises(HsmError, match="refused"):
            await manager.rotate_key()
        assert chain.calls == ["handover", "revert"]
        kept = await on_token(manager) - {first}
        assert len(kept) == 1, "the key that the chain may still obey"
        assert await manager.get_current_key_id() == first
        new = await manager.rotate_key()
        assert chain.calls[2:] == ["handover"]
        assert await on_token(manager) == {first, *kept, new}


@pytest.mark.parametrize("method", ["handover", "revert"])
def test_a_handover_that_lacks_half_is_refused(fresh_token, tmp_path, method):
    manager = hsmcore.create_key_manager(fresh_token().config(**rules(tmp_path)))
    half = type("Half", (), {method: Older.revert})()
    with pytest.raises(BadArgument, match="has no `"):
        manager.on_rotation(half)
