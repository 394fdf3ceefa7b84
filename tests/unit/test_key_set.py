"""The signed set of keys: what a verifier makes of it, over rotations, wrong clocks and manipulations."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
from dataclasses import replace
from random import Random

import pytest
from tests.support import batches
from tests.support.key_sets import (
    DOMAIN,
    EXAMPLES,
    START,
    Signer,
    by_hsmcore,
    by_node,
    by_python,
    entry,
    forms,
    good,
    key_of,
    manipulated,
    note_of,
    public,
)

from hsmcore.tlog import batch_proof
from hsmcore.tlog.key_set import KeySet
from hsmcore.tlog.note import NoteError, signature_line

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is missing")
SKEW = 300


@needs_node
@pytest.mark.parametrize("verifier", [by_hsmcore, by_python, by_node])
def test_2000_manipulations_are_refused(verifier):
    cases = list(manipulated(Random(22), 2100))
    assert len(cases) >= 2000
    assert len({case.what for case in cases}) >= 30
    assert [case for case, taken in zip(cases, verifier(cases), strict=True) if taken] == []


@needs_node
@pytest.mark.parametrize("verifier", [by_hsmcore, by_python, by_node])
def test_what_may_follow_does_and_in_one_form_alone(verifier):
    assert [case.what for case, taken in zip(good(), verifier(good()), strict=True) if not taken] == []
    assert [case.what for case, taken in zip(forms(), verifier(forms()), strict=True) if taken] == []


@needs_node
def test_the_examples_verify_signatures_of_a_kind():
    keys = [
        entry(1, "overlap", START, START + 600, 2),
        entry(2, "current", START),
        entry(3, "retired", START, START + 9),
    ]
    note = note_of(7, keys, [1, 2])
    known = KeySet.remembered(note)
    python = runpy.run_path(str(EXAMPLES / "verify_key_set.py"))["KeySet"](note.decode())
    asked = [
        (number, kind, now, wrong)
        for number in (1, 2, 3, 4)
        for kind in ("raw", "tx-v0")
        for now in (START, START + 901)
        for wrong in (False, True)
    ]
    script = f"""
        import {{ KeySet }} from "{EXAMPLES / "verify_key_set.mjs"}";
        import {{ readFileSync }} from "node:fs";
        const [note, asked] = JSON.parse(readFileSync(0));
        const set = new KeySet(note);
        for (const [signature, kind, now] of asked)
          console.log(set.verify(Buffer.from("m"), Buffer.from(signature, "hex"), kind, now));
    """
    given, expected = [], []
    for number, kind, now, wrong in asked:
        signature = key_of(number).sign(b"n" if wrong else b"m").signature
        found = known.verify(b"m", signature, now=now, kind=kind)
        holds = kind == "raw" and not wrong and (number == 2 or (number == 1 and now == START))
        expected.append(public(number) if holds else None)
        assert (None if found is None else found.public_key) == expected[-1]
        assert python.verify(b"m", signature, kind, now) == expected[-1]
        given.append([signature.hex(), kind, now])
    command = ["node", "--input-type=module", "-e", script]
    stdin = json.dumps([note.decode(), given])
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["null" if key is None else key.hex() for key in expected]


LAST = 504
SAYS = [replace(entry(1, "retired", START, START + 600, 2), last_batched=LAST), entry(2, "current", START + 600)]
TEN_YEARS = START + 315_360_000


@needs_node
def test_a_proof_of_before_a_rotation_holds_for_ever():
    """By the last index that the set says, whatever the clock says. Each verifier says the same."""
    messages = [b"message %d" % number for number in range(13)]
    old, new = (batches.of(messages, first=500, domain=DOMAIN, key=key_of(one)) for one in (1, 2))
    other = batches.of(messages, first=500, domain="my-rollup2", key=key_of(1))
    note = note_of(7, SAYS, [2])
    known = KeySet.remembered(note)
    python = runpy.run_path(str(EXAMPLES / "verify_key_set.py"))["KeySet"](note.decode())
    asked, expected = [], []
    for number, made in ((1, old), (2, new)):
        for now in (START, START + 600, TEN_YEARS):
            for message, one in zip(messages, made, strict=True):
                good = one.index <= LAST if number == 1 else now >= START + 600 - SKEW
                found = known.verify_batched(message, one.proof, now)
                assert (None if found is None else found.key.version) == (number if good else None), (number, one.index)
                assert found is None or (found.says.index, found.says.kind) == (one.index, "raw")
                assert python.accepts_batch(public(number), one.index, now) is good
                asked.append([public(number).hex(), one.index, now])
                expected.append(str(good).lower())
    script = f"""
        import {{ KeySet }} from "{EXAMPLES / "verify_key_set.mjs"}";
        import {{ readFileSync }} from "node:fs";
        const [note, asked] = JSON.parse(readFileSync(0));
        const set = new KeySet(note);
        for (const [key, index, now] of asked) console.log(set.acceptsBatch(key, BigInt(index), now));
    """
    command = ["node", "--input-type=module", "-e", script]
    stdin = json.dumps([note.decode(), asked])
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == expected
    proof = old[0].proof
    assert known.verify_batched(messages[0], proof, TEN_YEARS, kind="raw") is not None
    assert known.verify_batched(messages[0], proof, TEN_YEARS, kind="tx-v0") is None
    assert known.verify_batched(messages[1], proof, TEN_YEARS) is None
    assert known.verify_batched(messages[0], other[0].proof, TEN_YEARS) is None, "a batch of another domain"
    assert known.verify(messages[0], key_of(1).sign(messages[0]).signature, START) is None, "it is of no batch"
    wrong = proof + signature_line(batch_proof.signer(f"{DOMAIN}/0\n".encode(), public(2)), bytes(64))
    assert known.verify_batched(messages[0], wrong, TEN_YEARS) is None, "a wrong signature of another key of the set"
    silent = KeySet.remembered(note_of(7, [replace(SAYS[0], last_batched=None), SAYS[1]], [2]))
    assert silent.verify_batched(messages[0], proof, START) is None, "as of a key that may be stolen"


def test_a_verifier_may_demand_a_set_that_is_fresh():
    until = START + 3600
    known = KeySet.remembered(note_of(7, SAYS, [2], until=until))
    endless = KeySet.remembered(note_of(7, SAYS, [2]))
    assert (known.good_until, endless.good_until) == (until, None)
    python = runpy.run_path(str(EXAMPLES / "verify_key_set.py"))["KeySet"]
    assert [python(one.note.decode()).good_until for one in (known, endless)] == [until, -1]
    signature = key_of(2).sign(b"m").signature
    [old], [new] = (batches.of([b"m"], domain=DOMAIN, key=key_of(number)) for number in (1, 2))
    for now, fresh in ((until + SKEW, True), (until + SKEW + 1, False)):
        assert known.is_fresh(now) is known.accepts(public(2), now, fresh=True) is fresh
        assert (known.verify(b"m", signature, now, fresh=True) is not None) is fresh
        for one in (old, new):
            assert (known.verify_batched(b"m", one.proof, now, fresh=True) is not None) is fresh
            assert known.verify_batched(b"m", one.proof, now) is not None
            assert endless.verify_batched(b"m", one.proof, now, fresh=True) is None
        assert known.accepts(public(2), now)
        assert known.verify(b"m", signature, now) is not None
        assert endless.accepts(public(2), now)
        assert not endless.accepts(public(2), now, fresh=True), "it does not say how long it is good"
    assert not known.is_fresh(until + 1, 0)


def test_a_set_renews_only_one_that_says_the_same_with_the_same_signatures():
    keys = [entry(1, "overlap", START, START + 600, 2), entry(2, "current", START)]
    older = KeySet.remembered(note_of(7, keys, [1, 2], until=START))
    assert KeySet.remembered(note_of(8, keys, [1, 2], until=START + 9)).renews(older)
    assert not KeySet.remembered(note_of(8, keys, [2])).renews(older), "who knows the first key alone could not follow"
    assert not KeySet.remembered(note_of(8, [*keys, entry(3, "next")], [1, 2])).renews(older)


def test_a_verifier_has_at_most_140_lines():
    found = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("verify_key_set.*")}
    assert len(found) == 2
    assert {name: lines for name, lines in found.items() if lines > 140} == {}


class Verifier:
    """Keeps the newest set that it has seen. Its clock is wrong by up to five minutes."""

    def __init__(self, signer: Signer, chance: Random) -> None:
        self.signer, self.chance = signer, chance
        self.offset = chance.choice((-SKEW, SKEW, chance.uniform(-SKEW, SKEW)))
        self.known = KeySet.trust(signer.notes[0], public(1), DOMAIN)

    @property
    def now(self) -> float:
        return self.signer.now + self.offset

    def fetch(self) -> None:
        self.known = self.known.follow(self.signer.since(self.known.serial) or self.known.note, self.now, SKEW)

    def accepts(self, number: int) -> bool:
        """With the rule for a key that it does not know: it fetches, and looks again."""
        if self.known.entry(public(number)) is None:
            self.fetch()
        return self.known.accepts(public(number), self.now, SKEW, "raw")


class World:
    """A signer, and verifiers that fetch when they like."""

    def __init__(self, chance: Random) -> None:
        self.chance, self.signer = chance, Signer()
        self.signer.publish()
        self.verifiers = [Verifier(self.signer, chance) for _ in range(3)]

    def pass_time(self, seconds: float) -> None:
        """Let time pass; look at each moment at what must hold."""
        signer = self.signer
        end = signer.now + seconds
        for moment in (self.chance.uniform(signer.now, end), end):
            signer.now = moment
            for verifier in self.verifiers:
                if self.chance.random() < 0.2:
                    verifier.fetch()
                self.check(verifier)

    def check(self, verifier: Verifier) -> None:
        signer = self.signer
        assert verifier.accepts(signer.current), "a gap: the key that signs is refused"
        for number, ends in signer.ends.items():
            if signer.now <= ends and number not in signer.retired:
                assert verifier.accepts(number), "a gap: the key before is refused in its overlap"
            if signer.now > ends + 2 * SKEW and verifier.known.serial == signer.serial:
                assert not verifier.accepts(number), "a key whose overlap is over is accepted"
        for number in self.chance.sample(sorted(signer.retired), min(2, len(signer.retired))):
            listed = verifier.known.entry(public(number))
            if listed is None or listed.state == "retired":
                assert not verifier.known.accepts(public(number), self.chance.uniform(0, 2 * START), SKEW)
        if self.chance.random() < 0.05 and (older := [one for one in signer.notes if one < verifier.known.serial]):
            with pytest.raises(NoteError, match="it is older"):
                verifier.known.follow(signer.notes[self.chance.choice(older)], verifier.now, SKEW)

    def step(self, lost: float) -> None:
        """A new set, at last: its process may have died between the binding of a serial and its signature."""
        while self.chance.random() < lost:
            self.pass_time(self.chance.uniform(0, 60))
            self.signer.serial += 1
        self.signer.publish()

    def rotate(self, lost: float) -> None:
        signer, chance = self.signer, self.chance
        signer.next = signer.current + 1
        self.step(lost)
        if chance.random() < 0.2:  # undone before the switch
            signer.next = None
            self.step(lost)
            signer.next = signer.current + 1
            self.step(lost)
        self.pass_time(chance.choice((0, 1, chance.uniform(0, 600))))
        old, signer.current, signer.next = signer.current, signer.current + 1, None
        signer.begun[signer.current] = int(signer.now)
        signer.ends[old] = -(-int(signer.now + chance.choice((1, 60, 3600, 86_400))) // 1)
        self.pass_time(0)  # the new key signs, and no set says so yet
        self.step(lost)
        self.pass_time(signer.ends[old] - signer.now)
        self.pass_time(chance.uniform(0, 30))
        signer.retired.add(old)
        self.step(lost)
        self.pass_time(chance.choice((1, 3600, 86_400 * 30)))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.deep) for seed in range(2, 60))])
def test_fifty_rotations_leave_no_gap_and_no_retired_key(seed):
    """With verifiers whose clocks are five minutes wrong. In half of the seeds a third of the sets is late."""
    world, lost = World(Random(seed)), 0.3 * (seed % 2)
    for _ in range(50):
        world.rotate(lost)
    assert world.signer.current == 51
    for verifier in world.verifiers:
        verifier.fetch()
        assert verifier.known.serial == world.signer.serial


@pytest.mark.parametrize("broken", ["retired keys", "the clock", "no introduction"])
def test_the_model_sees_what_would_be_wrong(broken, monkeypatch):
    if broken == "retired keys":
        monkeypatch.setattr("hsmcore.tlog.key_set.KeyEntry.accepts", lambda *_: True)
    elif broken == "the clock":
        accepts = KeySet.accepts
        monkeypatch.setattr(
            KeySet, "accepts", lambda self, key, now, _skew, kind=None: accepts(self, key, now, 0, kind)
        )
    else:
        monkeypatch.setattr("hsmcore.tlog.key_set._ENDORSING", ())
    world = World(Random(1))

    def rotate() -> None:
        for _ in range(20):
            world.rotate(0.0)

    with pytest.raises((AssertionError, NoteError)):
        rotate()


def test_what_a_set_says():
    found = KeySet.trust(
        note_of(3, [entry(1, "overlap", START, START + 60, 2), entry(2, "current")], [2, 1]), public(1)
    )
    assert (found.domain, found.serial, found.time, found.kinds) == (DOMAIN, 3, START, ("raw", "key-set"))
    assert found.current.version == 2
    signature = key_of(1).sign(b"m").signature
    assert found.verify(b"m", signature, START + 360).version == 1
    assert found.verify(b"m", signature, START + 361) is None
    assert found.verify(b"m", signature, START + 61, 0) is None
    assert found.verify(b"m", signature, START, kind="block") is None
    assert found.verify(b"n", signature, START) is None
    assert not found.accepts(public(9), START)
    with pytest.raises(NoteError, match="has not signed"):
        KeySet.trust(found.note, public(9))
    with pytest.raises(NoteError, match="not of other"):
        KeySet.trust(found.note, public(1), "other")
    with pytest.raises(NoteError):
        found.follow(b"", START)
    with pytest.raises(NoteError):
        found.follow(b"x" + found.note, START)
