"""The steps of a rotation under every failure and crash there can be, by a model of what they do."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.size import share

from hsmcore.manager.rotation import machine
from hsmcore.manager.rotation.machine import NAMES, Run, next_action

FATE = st.sampled_from(["well"] * 6 + ["fails", "crash-before", "crash-inside", "crash-after", "abort"])


class World:
    """A token with keys, a chain with one authority, a store that survives, and a process that does not."""

    def __init__(self):
        self.token, self.signing, self.authority = {"old"}, "old", "old"
        self.history = []

    def do(self, step):
        if step == "generate":
            self.token.add("new")
        elif step == "handover":
            assert "new" in self.token
            self.authority = "new"
        elif step == "activate":
            assert self.authority == "new"
            self.signing = "new"
        elif step == "deactivate":
            assert self.signing == "new"
        elif step == "destroy":
            self.token.discard("old")

    def undo(self, step):
        if step == "generate":
            assert self.signing == "old"
            assert self.authority == "old", "the chain would be left with a key that is gone"
            self.token.discard("new")
        elif step == "handover":
            assert "new" in self.token, "it has to sign the way back"
            self.authority = "old"

    def check(self):
        assert self.signing in self.token


@settings(max_examples=share(500))
@given(st.lists(FATE, max_size=40), st.booleans())
def test_whatever_happens_one_key_signs_and_no_other_is_left(fates, slow):
    world, run, now = World(), Run(), 1
    fates = iter(fates)
    for _ in range(500):
        action = next_action(run, now)
        if action.kind == "end":
            break
        if action.kind == "wait":
            now = action.until_ns
            continue
        fate = next(fates, "well")
        world.check()
        if fate == "abort":
            before = run
            run = machine.abort(run)
            assert (run == before) == (not machine.can_abort(before))
            continue
        if fate == "crash-before":
            continue
        run = machine.begun(run)
        if fate == "fails":
            run = machine.failed(run, now)
            continue
        (world.do if action.kind == "do" else world.undo)(action.step)
        world.check()
        if fate in ("crash-inside", "crash-after"):
            continue  # it is not recorded: it is done again
        world.history.append((action.kind, action.step))
        run = machine.done(run, now + 5 if slow and action.step == "activate" else 0)
    assert run.status in ("done", "failed", "aborted")
    if run.status == "done":
        assert world.token == {"new"}
        assert world.signing == world.authority == "new"
        assert [step for kind, step in world.history if kind == "do"] == list(NAMES)
    else:
        assert world.token == {"old"}
        assert world.signing == world.authority == "old"


def test_waiting_is_no_failure():
    run = machine.pending(machine.begun(Run()), 500)
    assert next_action(run, 499) == machine.Action("wait", "approve", 500)
    assert next_action(run, 500).kind == "do"
    assert machine.abort(run).status == "aborted"
