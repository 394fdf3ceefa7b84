"""The benchmark's arithmetic: percentiles, ratios within a round, verdicts on targets, selected contenders."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmcore_bench.harness.environment import ProcessorTimes
from hsmcore_bench.suite.contenders import MEMORY, blocks, contenders, events, select
from hsmcore_bench.suite.failover import FAILOVER
from hsmcore_bench.suite.model import Contender, Memory, Percentiles, Sample
from hsmcore_bench.suite.resilience import RECOVERY
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.stats import LEAST_ROUNDS, percentile, percentiles, spread, usable
from hsmcore_bench.suite.summary import summarise
from hsmcore_bench.suite.targets import TARGETS, judge

EVERYONE = {contender.name for contender in contenders(2)} | {MEMORY, RECOVERY}


def sample(
    name: str,
    number: int,
    rate: float,
    p50: float = 1000.0,
    p99: float = 2000.0,
    lag_p99: float | None = None,
    cpu: float | None = None,
    others: float = 0.0,
    ceiling: float | None = None,
) -> Sample:
    lag = None if lag_p99 is None else Percentiles(p50=0, p99=lag_p99, p999=lag_p99, mean=0)
    latency = Percentiles(p50=p50, p99=p99, p999=2 * p99, mean=p50)
    return Sample(
        name,
        number,
        signatures=int(rate),
        seconds=1.0,
        latency_ns=latency,
        lag_ns=lag,
        cpu_seconds=cpu,
        others=others,
        ceiling=ceiling,
    )


def result_of(samples: list[Sample], chosen: list[Contender]) -> Result:
    return Result("2026-01-02T03:04:05+00:00", {}, 3, 0.5, 200, chosen, samples=samples)


class TestPercentile:
    def test_of_one_value_is_that_value(self):
        assert [percentile([7.0], share) for share in (0.0, 0.5, 0.999, 1.0)] == [7.0] * 4

    def test_lies_between_neighbours(self):
        assert percentile([10.0, 20.0], 0.25) == 12.5
        assert percentile(list(range(101)), 0.99) == 99.0
        assert percentile(list(range(1001)), 0.999) == pytest.approx(999.0)

    def test_ends_are_the_extremes(self):
        values = sorted(random.Random(3).sample(range(10_000), 500))
        assert (percentile(values, 0.0), percentile(values, 1.0)) == (values[0], values[-1])

    @pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
    def test_refuses_what_has_no_answer(self, values, share):
        with pytest.raises(ValueError, match=r"values|share"):
            percentile(values, share)

    def test_of_unordered_values_with_their_mean(self):
        assert percentiles([3, 1, 2]) == Percentiles(p50=2.0, p99=2.98, p999=2.998, mean=2.0)
        assert percentiles([]) is None


def test_processor_time_of_others_excludes_our_own():
    before, after = (
        ProcessorTimes(total=100.0, busy=50.0, stolen=1.0),
        ProcessorTimes(total=102.0, busy=51.6, stolen=1.1),
    )
    assert before.others_share(after, own_seconds=1.2) == pytest.approx(0.2)
    assert before.others_share(after, own_seconds=1.7) == 0.0, "ticks are coarse"
    assert before.others_share(before, own_seconds=0.0) == 0.0
    assert before.stolen_share(after) == pytest.approx(0.05)
    now = ProcessorTimes.read()
    assert now.total > now.busy > 0


def test_spread_keeps_the_extremes_and_the_middle():
    found = spread([5.0, 1.0, 9.0, 4.0])
    assert found is not None
    assert (found.median, found.low, found.high) == (4.5, 1.0, 9.0)
    assert spread([]) is None


class TestDisturbance:
    def rounds(self, *others: float) -> list[dict[str, Sample]]:
        """`raw` is never disturbed, `ours` by these shares."""
        return [
            {"raw": sample("raw", number, 1000), "ours": sample("ours", number, 900 + number, others=share)}
            for number, share in enumerate(others)
        ]

    def test_disturbed_slices_are_set_aside(self):
        rounds = self.rounds(0.0, 0.06, 0.05, 0.5, 0.01)
        assert usable(rounds, {"ours"}) == [rounds[0], rounds[2], rounds[4]]
        assert usable(rounds, {"raw", "ours"}) == [rounds[0], rounds[2], rounds[4]]
        assert usable(rounds, {"raw"}) == rounds

    def test_all_count_when_too_few_are_undisturbed(self):
        rounds = self.rounds(0.0, 0.06, 0.4, 0.5, 0.01)
        assert usable(rounds, {"ours"}) == rounds

    def test_rounds_that_lack_one_never_count(self):
        rounds = self.rounds(0.0, 0.0)
        del rounds[0]["ours"]
        assert usable(rounds, {"raw", "ours"}) == [rounds[1]]


class TestSummary:
    chosen = (Contender("raw", "raw", "raw", "g", None), Contender("ours", "ours", "sign", "g", "raw"))

    def test_ratio_is_formed_within_each_round(self):
        # The machine slowed down by half in round 1 for both: unpaired medians would say 0.75.
        rates = [
            ("raw", 0, 1000),
            ("ours", 0, 900),
            ("raw", 1, 500),
            ("ours", 1, 450),
            ("raw", 2, 600),
            ("ours", 2, 540),
        ]
        ours = summarise(result_of([sample(*row) for row in rates], list(self.chosen)))[1]
        assert ours.ratio is not None
        assert (ours.ratio.low, ours.ratio.median, ours.ratio.high) == pytest.approx((0.9, 0.9, 0.9))
        assert ours.rate.median == 540

    def test_rounds_without_the_reference_do_not_count(self):
        samples = [sample("raw", 0, 1000), sample("ours", 0, 800), sample("ours", 1, 100)]
        ours = summarise(result_of(samples, list(self.chosen)))[1]
        assert ours.ratio is not None
        assert (ours.ratio.low, ours.ratio.high) == (0.8, 0.8)
        assert (ours.rate.low, ours.rate.high) == (100, 800)

    def test_one_that_was_not_measured_is_left_out(self):
        assert [s.contender for s in summarise(result_of([sample("raw", 0, 10)], list(self.chosen)))] == ["raw"]

    def test_the_share_of_what_a_device_can_do(self):
        samples = [sample("raw", number, rate, ceiling=1000) for number, rate in enumerate((970, 980, 990))]
        raw = summarise(result_of(samples, [self.chosen[0]]))[0]
        assert raw.of_ceiling is not None
        assert (raw.of_ceiling.low, raw.of_ceiling.median, raw.of_ceiling.high) == pytest.approx((0.97, 0.98, 0.99))

    def test_processor_time_is_per_signature(self):
        raw = summarise(
            result_of([sample("raw", 0, 1000, cpu=0.05), sample("raw", 1, 1000, cpu=0.07)], [self.chosen[0]])
        )
        assert raw[0].cpu_ns == pytest.approx(60_000)


class TestTargets:
    def round_of(self, **rates: float) -> dict[str, Sample]:
        return {name.replace("_", "-"): sample(name.replace("_", "-"), 0, rate) for name, rate in rates.items()}

    def verdict(self, name, rounds, memory=None):
        return next(v for v in judge(rounds, memory, EVERYONE) if v.name == name)

    def steady(self, name, **samples):
        """The verdict on rounds that are all the same."""
        own = {key.replace("_", "-"): sample(key.replace("_", "-"), 0, **fields) for key, fields in samples.items()}
        return self.verdict(name, [own] * LEAST_ROUNDS)

    @pytest.mark.parametrize(
        ("rates", "call"),
        [
            ([996, 997, 996, 995, 999], "met"),
            ([990, 991, 992, 993, 994], "missed"),
            ([990, 994, 996, 998, 999], "undecided"),  # the median is good, by chance
            ([990, 993, 994, 996, 999], "undecided"),
            ([999] * 4, "undecided"),  # too few
        ],
    )
    def test_a_verdict_stands_where_chance_could_not_have_made_the_other(self, rates, call):
        rounds = [self.round_of(device_5ms_ours_256=rate, device_5ms_raw=1000) for rate in rates]
        found = self.verdict("device-5ms-256-rate", rounds)
        assert (found.call, found.met) == (call, {"met": True, "missed": False, "undecided": None}[call])
        assert (found.interval is None) == (len(rates) < LEAST_ROUNDS)

    def test_the_verdict_on_the_same_rounds_is_the_same(self):
        dice = random.Random(1)
        rounds = [self.round_of(device_5ms_ours_256=990 + 10 * dice.random(), device_5ms_raw=1000) for _ in range(15)]
        assert judge(rounds, None, EVERYONE) == judge(rounds, None, EVERYONE)

    def test_a_share_of_what_fills_the_processors_is_shown_and_not_judged(self):
        found = self.steady("sign-64-rate", sign_64={"rate": 500}, raw={"rate": 1000})
        assert (found.reached, found.interval, found.call) == (0.5, (0.5, 0.5), "")

    def test_latency_is_measured_in_queue_lengths_of_raw_c(self):
        # 64 in flight at 16,000/s wait 4 ms on average.
        own = {"sign_64": {"rate": 16_000, "p50": 4.2e6, "p99": 8.8e6}, "raw": {"rate": 16_000}}
        for name, value in (("sign-64-p50", 1.05), ("sign-64-p99", 2.2)):
            found = self.steady(name, **own)
            assert (found.reached, found.call) == (pytest.approx(value), "met")

    @pytest.mark.parametrize(("p50", "above", "call"), [(140_000.0, 2.0, "met"), (142_000.0, 2.1, "missed")])
    def test_one_in_flight_is_held_against_the_hand_over_of_its_round(self, p50, above, call):
        times = {"sign_1": p50, "raw_1": 100_000.0, "hand_over": 20_000.0}
        found = self.steady("sign-1-above", **{name: {"rate": 1, "p50": time} for name, time in times.items()})
        assert (found.reached, found.call) == (pytest.approx(above), call)

    @pytest.mark.parametrize(("p50", "call"), [(620e3, "met"), (624e3, "missed"), (460e3, "met"), (458e3, "missed")])
    def test_one_in_flight_pays_one_flush_for_its_record_and_two_hand_overs(self, p50, call):
        """Neither more nor less: a record that costs less than a flush is not on the disk."""
        times = {"audit_1_fsync": p50, "audit_1_none": 200e3, "flush": 300e3, "audit_hand_over": 20e3}
        found = self.steady("audit-1", **{name: {"rate": 1, "p50": time} for name, time in times.items()})
        assert found.call == call

    @pytest.mark.parametrize(("p50", "call"), [(1400e3, "met"), (1404e3, "missed")])
    def test_a_block_pays_four_flushes(self, p50, call):
        times = {"policy_1_blocks": p50, "policy_1_none": 200e3, "policy_flush": 300e3}
        assert self.steady("policy-bind", **{n: {"rate": 1, "p50": t} for n, t in times.items()}).call == call

    @pytest.mark.parametrize(("p50", "call"), [(190e3, "met"), (191e3, "missed")])
    def test_a_lone_caller_of_the_gateway_pays_four_hand_overs_and_40_microseconds(self, p50, call):
        times = {"gateway_1": p50, "gateway_1_none": 70e3, "gateway_hand_over": 20e3}
        assert self.steady("gateway-1-adds", **{n: {"rate": 1, "p50": t} for n, t in times.items()}).call == call

    @pytest.mark.parametrize(("cpu", "call"), [(0.9, "met"), (0.92, "missed")])
    def test_processor_time_is_what_a_layer_adds_to_one_signature(self, cpu, call):
        bare = {"rate": 100_000, "cpu": 0.4}
        found = self.steady("audit-noop-added", audit_noop_fsync={"rate": 100_000, "cpu": cpu}, audit_noop_none=bare)
        assert (found.reached, found.call) == (pytest.approx((cpu - 0.4) * 10), call)

    @pytest.mark.parametrize(("cpu", "call"), [(1.8, "met"), (1.7, "missed")])
    def test_processors_in_use_are_held_against_those_of_the_bare_member(self, cpu, call):
        own = {"stack_64": {"rate": 900, "cpu": cpu}, "stack_64_bare": {"rate": 1000, "cpu": 1.8}}
        assert self.steady("stack-64-used", **own).call == call

    @pytest.mark.parametrize(("cpu", "call"), [(0.0005, "met"), (0.0006, "missed")])
    def test_who_asks_for_nothing_has_a_share_of_a_processor(self, cpu, call):
        found = self.steady("idle", idle={"rate": 0, "cpu": cpu})
        assert (found.reached, found.call) == (pytest.approx(cpu * 100), call)

    @pytest.mark.parametrize(("cpu", "call"), [(0.33, "met"), (0.34, "missed")])
    def test_verifying_costs_a_verification(self, cpu, call):
        own = {"verify_always": cpu, "verify_never": 0.2, "verify_one": 0.1}
        found = self.steady("verify-always-added", **{n: {"rate": 1000, "cpu": used} for n, used in own.items()})
        assert found.call == call

    def test_switches_and_calls_are_those_of_one_signature(self):
        one = replace(sample("", 0, 1000), switches=1500, calls=4000)
        rounds = [{"gateway-1": one, "device-5ms-ours": one}] * LEAST_ROUNDS
        found = {name: self.verdict(name, rounds) for name in ("gateway-1-calls", "device-5ms-switches")}
        assert [(v.reached, v.call) for v in found.values()] == [(4.0, "met"), (1.5, "met")]
        assert self.verdict("gateway-1-switches", [{"gateway-1": sample("", 0, 1)}]).call == "not measured"

    def test_what_was_too_short_to_have_a_figure_has_no_value(self):
        short = replace(sample("", 0, 0), latency_ns=None, cpu_seconds=None)
        names = {need for target in TARGETS for need in target.needs}
        timed = [target for target in TARGETS if "rate(" not in target.formula]
        assert len(timed) > 30
        assert {target.value(dict.fromkeys(names, short)) for target in timed} == {None}

    def test_loop_lag_is_in_milliseconds(self):
        found = self.steady("loop-lag", sign_64_lag={"rate": 1, "lag_p99": 2.9e6})
        assert (found.reached, found.call) == (2.9, "met")

    @pytest.mark.parametrize(("rate", "call"), [(2970, "met"), (2969, "missed")])
    def test_a_device_is_held_against_its_ceiling(self, rate, call):
        found = self.steady("device-x2-rate", device_x2_ours={"rate": rate, "ceiling": 3000})
        assert (found.reached, found.call) == (pytest.approx(0.99, abs=0.001), call)

    @pytest.mark.parametrize(("p99", "call"), [(1.1e6, "met"), (1.2e6, "missed")])
    def test_a_tail_is_held_against_raw_c(self, p99, call):
        own = {"device_x2_ours": {"rate": 1, "p99": p99}, "device_x2_raw": {"rate": 1, "p99": 1e6}}
        assert self.steady("device-x2-tail", **own).call == call

    @pytest.mark.parametrize(
        ("rate", "percent", "call"), [(981, 1.9, "met"), (979, 2.1, "missed"), (1001, -0.1, "met")]
    )
    def test_spare_sessions_verify_for_nearly_nothing(self, rate, percent, call):
        found = self.steady("verify-spare-cost", verify_spare_always={"rate": rate}, verify_spare_never={"rate": 1000})
        assert (found.reached, found.call) == (pytest.approx(percent), call)

    @pytest.mark.parametrize(("p99", "call"), [(287e6, "met"), (289e6, "missed")])
    def test_a_batch_is_answered_after_its_interval_and_the_device(self, p99, call):
        found = self.steady("batched-yubihsm2-p99", batched_yubihsm2={"rate": 1, "p99": p99, "ceiling": 8.7})
        assert found.call == call

    @pytest.mark.parametrize(("grown", "call"), [(2**20, "met"), (2**20 + 4096, "missed"), (-4096, "met")])
    def test_memory_is_what_the_second_million_added(self, grown, call):
        found = self.verdict("memory", [], Memory((1_000_000, 2_000_000), (50 << 20, (50 << 20) + grown)))
        assert (found.reached, found.call) == (grown / 2**20, call)

    def test_what_was_not_measured_has_no_verdict(self):
        assert {verdict.met for verdict in judge([self.round_of(raw=1)], None, EVERYONE)} == {None}

    def test_what_was_not_asked_for_is_not_judged(self):
        found = judge([self.round_of(raw=1, sign_64=1)], None, {"raw", "sign-64", "noop-256"})
        asked = ["sign-64-rate", "sign-64-used", "sign-64-p50", "sign-64-p99", "noop-loop"]
        assert [v.name for v in found] == asked
        assert judge([], None, {"raw"}) == []

    def test_every_target_needs_contenders_that_exist(self):
        names = {contender.name for contender in contenders(2)}
        assert {need for target in TARGETS for need in target.needs} <= names


class TestSelection:
    everyone = contenders(2)

    def names(self, only):
        return [contender.name for contender in select(self.everyone, only)]

    def test_names_and_references_are_unique_and_known(self):
        names = [contender.name for contender in self.everyone]
        assert len(set(names)) == len(names)
        assert {c.reference for c in self.everyone} - {None} <= set(names)

    def test_everybody_by_default(self):
        assert self.names(None) == [contender.name for contender in self.everyone]

    def test_a_name_is_that_one_and_a_beginning_is_all_after_its_dash(self):
        assert self.names("pykcs11") == ["raw", "pykcs11"]
        noop = ["noop-1", "noop-256", "noop-many-1024", "noop-executor", "noop-pykcs11"]
        noop += ["noop-256-again", "noop-process-256"]
        assert self.names("noop") == noop

    def test_patterns_bring_their_references(self):
        assert self.names("sign-p256, sign-6?") == ["raw", "sign-64", "raw-p256", "sign-p256"]

    def test_references_of_references_come_too(self):
        assert self.names("ours") == ["raw", "sign-64", "ours-process-64"]

    def test_a_group_is_a_word_for_several_patterns(self):
        found = self.names("resilience")
        assert {"ours-process-64", "noop-process-256", "device-x2-ours", "device-5ms-raw", "verify-always"} <= set(
            found
        )
        assert not {"pykcs11", "cache-hit", "noop-1"} & set(found)
        assert events("resilience") == {RECOVERY}

    def test_nobody(self):
        assert self.names("nothing-like-it") == []
        assert self.names("") == []

    @pytest.mark.parametrize(
        ("only", "wanted"),
        [
            (None, {MEMORY, RECOVERY, FAILOVER}),
            ("failover", {FAILOVER}),
            ("memory", {MEMORY}),
            ("raw,mem*", {MEMORY}),
            ("memory,recovery", {MEMORY, RECOVERY}),
            ("raw", set()),
        ],
    )
    def test_events_are_asked_for_like_the_others(self, only, wanted):
        assert events(only) == wanted

    def test_a_scenario_is_a_word_for_its_contenders(self):
        assert self.names("audit") == [c.name for c in self.everyone if c.scenario == "audit"]
        assert self.names("cache,verify") == ["cache-hit", "cache-lookup"] + [
            c.name for c in self.everyone if c.scenario == "verify"
        ]

    @given(st.sets(st.sampled_from([c.name for c in everyone])))
    def test_what_is_compared_is_measured_in_one_block(self, wanted):
        chosen = select(self.everyone, ",".join(wanted))
        found = blocks(chosen)
        assert sorted(c.name for block in found for c in block) == sorted(c.name for c in chosen)
        place = {c.name: number for number, block in enumerate(found) for c in block}
        for contender in chosen:
            assert contender.reference is None or place[contender.reference] == place[contender.name]
        for scenario in {c.scenario for c in chosen}:
            assert len({place[c.name] for c in chosen if c.scenario == scenario}) == 1
        for target in TARGETS:
            if target.needs[0] in place and set(target.needs) <= place.keys():
                assert len({place[name] for name in target.needs}) == 1, f"{target.name} needs them in one round"

    def test_a_quick_run_has_what_the_targets_need(self):
        quick = {c.name for c in contenders(2, quick=True)}
        without = {target.name for target in TARGETS if not set(target.needs) <= quick}
        assert without == {"over-executor-5ms", "open-80-tail", "idle", "idle-watched"}, "which take long"
        assert len(quick) < len(self.everyone) * 0.6
