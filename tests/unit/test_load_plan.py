"""What a load test plans: when requests start and what they say, in Python and in C alike."""

from __future__ import annotations

import itertools
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.size import share

from hsmcore_bench.harness.locate import native
from hsmcore_bench.load.generator import PROGRAM
from hsmcore_bench.load.mix import ENTRIES, RECENT, SMALLEST, Messages, kinds_of, largest_of, table_of
from hsmcore_bench.load.problems import UsageProblem
from hsmcore_bench.load.shapes import SHAPES, Segment, segments_of, shared, starts

MOST = 3_000
rates = st.floats(min_value=0.1, max_value=5_000)
segments = st.lists(
    st.builds(Segment, st.floats(min_value=0.01, max_value=3.0), rates, rates), min_size=1, max_size=4
).filter(lambda parts: sum(part.requests for part in parts) < MOST)
seeds = st.integers(min_value=0, max_value=2**64 - 1)
MIX = "transactions=0.7:180-300,blocks=0.1:32,repeats=0.2"


def integral(parts: list[Segment], until: float) -> float:
    """How many starts the rates ask for up to a moment, in seconds."""
    total = began = 0.0
    for part in parts:
        t = min(max(until - began, 0.0), part.seconds)
        total += part.start * t + (part.end - part.start) / part.seconds * t * t / 2
        began += part.seconds
    return total


@given(segments, st.floats(min_value=0.0, max_value=0.999))
def test_each_start_lies_where_the_integral_of_the_rate_says(parts, phase):
    planned = list(starts(parts, phase=phase))
    assert planned == sorted(planned)
    for number, at in enumerate(planned):
        assert integral(parts, at / 1e9) == pytest.approx(number + phase, abs=1e-4)
    assert len(planned) == pytest.approx(sum(part.requests for part in parts) - phase, abs=1.001)


@given(segments, st.integers(min_value=1, max_value=5))
def test_processes_share_a_plan_without_a_gap_or_a_crowd(parts, processes):
    """All of them together start when one alone would."""
    alone = list(starts(parts))
    share = shared(parts, processes)
    together = sorted(
        itertools.chain.from_iterable(starts(share, phase=number / processes) for number in range(processes))
    )
    assert abs(len(together) - len(alone)) <= processes
    for one, other in zip(alone, together, strict=False):
        assert one == pytest.approx(other, abs=2e3)


@given(seeds)
@settings(max_examples=share(15))
def test_poisson_arrivals_are_as_many_and_as_irregular_as_they_should_be(seed):
    planned = list(starts([Segment(2.0, 1000.0, 1000.0)], poisson=True, seed=seed))
    gaps = [(b - a) / 1e6 for a, b in itertools.pairwise(planned)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert len(planned) == pytest.approx(2000, abs=6 * 2000**0.5)
    assert deviation == pytest.approx(mean, rel=0.25)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    peak = 500.0 if SHAPES[name].needs_peak else None
    parts = segments_of(name, 100.0, peak, 10.0)
    assert sum(part.seconds for part in parts) == pytest.approx(10.0)
    assert parts[0].start == 100.0
    assert max(max(part.start, part.end) for part in parts) == (peak or 100.0)
    with pytest.raises(UsageProblem):
        segments_of(name, 100.0, None if peak else 500.0, 10.0)


@given(seeds)
@settings(max_examples=share(20))
def test_shares_of_a_mix_are_exact_and_no_repeat_leads_to_another_one(seed):
    kinds = kinds_of(MIX)
    table = table_of(kinds, seed)
    assert len(table) == ENTRIES
    counts = {
        "transactions": sum(180 <= row <= 300 for row in table),
        "blocks": table.count(32),
        "repeats": sum(row < 0 for row in table),
    }
    assert counts == {kind.name: pytest.approx(kind.share * ENTRIES, abs=1) for kind in kinds}
    assert all(table[(index + row) % ENTRIES] > 0 for index, row in enumerate(table) if row < 0)
    assert all(-row <= RECENT + 64 for row in table if row < 0)


@given(seeds)
@settings(max_examples=share(8))
def test_only_repeats_are_repeated(seed):
    table = table_of(kinds_of(MIX), seed)
    messages = Messages(table, 300, seed)
    seen: dict[bytes, int] = {}
    for number in range(ENTRIES + 500):
        message = messages.message(number)
        assert len(message) >= SMALLEST
        row = table[number % ENTRIES]
        if row < 0 <= number + row:
            assert message in seen
        else:
            assert message not in seen
        seen[message] = number


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "expected"),
        ("transactions", "expected"),
        ("transactions=0.5:200", "add up to 0.5"),
        ("transactions=1", "how many bytes"),
        ("repeats=1", "to be repeated"),
        ("a=0.5:10,repeats=0.5:20", "what they repeat"),
        ("a=0.5:10,a=0.5:20", "once"),
        ("a=1:300-200", "sizes"),
        ("a=1:4", "sizes"),
        ("a=1:2000000", "sizes"),
        ("a=-1:20,b=2:20", "expected"),
    ],
)
def test_a_mix_that_cannot_be_meant(text, part):
    with pytest.raises(UsageProblem, match=part):
        kinds_of(text)


def native_plan(parts, *, phase, poisson, seed, mix):
    """What the generator in C plans: offset and message of each request."""
    program = native(PROGRAM)
    if program is None:
        pytest.skip(f"{PROGRAM} was not built")
    kinds = kinds_of(mix)
    lines = [
        "module ", "workers 1", "slots 1", "timeout-ns 1", "interval-ns 1", f"seed {seed}", f"poisson {int(poisson)}",
        f"phase {phase!r}", f"max-message {largest_of(kinds)}", "mix " + " ".join(map(str, table_of(kinds, seed))),
        *(f"segment {part.seconds!r} {part.start!r} {part.end!r}" for part in parts), "ready\n",
    ]  # fmt: skip
    ran = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True, timeout=20)
    rows = [line.split() for line in ran.stdout.splitlines()]
    return [(int(offset), bytes.fromhex(message)) for offset, message in rows]


@given(segments, st.floats(min_value=0.0, max_value=0.999), st.booleans(), seeds)
@settings(max_examples=share(25))
def test_the_generator_in_c_plans_the_same(parts, phase, poisson, seed):
    planned = native_plan(parts, phase=phase, poisson=poisson, seed=seed, mix=MIX)
    kinds = kinds_of(MIX)
    messages = Messages(table_of(kinds, seed), largest_of(kinds), seed)
    expected = list(starts(parts, phase=phase, poisson=poisson, seed=seed))
    assert [offset for offset, _ in planned] == pytest.approx(expected, abs=1)
    assert [message for _, message in planned] == [messages.message(number) for number in range(len(expected))]


def test_the_generator_in_c_refuses_what_it_does_not_know():
    program = native(PROGRAM)
    if program is None:
        pytest.skip(f"{PROGRAM} was not built")
    good = ["module ", "workers 1", "slots 1", "timeout-ns 1", "interval-ns 1", "max-message 300", "segment 1 1 1"]
    mix = "mix " + " ".join(["100"] * ENTRIES)
    for lines in (
        ["pin 31zz"], ["volume 11"], ["workers -1"], ["segment 1 1"], ["segment 0 1 1"], ["mix 1 2 3"], [*good],
        [*good, mix, "max-message 50"], [*good, "mix " + " ".join(["-1"] * ENTRIES)],
    ):  # fmt: skip
        ran = subprocess.run(
            [program], input="\n".join([*lines, "ready\n"]), capture_output=True, text=True, check=False, timeout=20
        )
        assert (ran.returncode, ran.stdout) == (2, ""), lines
        assert "31zz" not in ran.stderr
        assert ran.stderr.startswith("hsmcore-load: the setting")
