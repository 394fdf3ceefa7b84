"""Random faults: a seed determines a schedule."""

from __future__ import annotations

from tests.support.pkcs11_client import CKR_DEVICE_ERROR, CKR_FUNCTION_FAILED, CKR_OK, CKR_SESSION_HANDLE_INVALID
from tests.support.scenarios import Bench, random_schedule, scenario_schedule


def test_a_seed_gives_the_same_faults_each_time(bench: Bench) -> None:
    only_returns = random_schedule(7) | {"actions": random_schedule(7)["actions"][:2]}
    runs = [bench.noop(scenario_schedule, {"count": 1000}, random=only_returns) for _ in range(2)]
    other = bench.noop(scenario_schedule, {"count": 1000}, random=only_returns | {"seed": 8})
    assert runs[0] == runs[1] != other
    struck = [rv for rv in runs[0] if rv != CKR_OK]
    assert 140 <= len(struck) <= 260, "2,000 calls at 10 %"
    assert set(struck) == {CKR_DEVICE_ERROR, CKR_FUNCTION_FAILED}
    assert 0.3 < struck.count(CKR_DEVICE_ERROR) / len(struck) < 0.7


def test_probability_is_seeded_too(bench: Bench) -> None:
    fault = {"function": "C_Sign", "probability": 0.2, "action": "return", "ckr": "CKR_DEVICE_ERROR"}
    first, second = (bench.noop(scenario_schedule, {"count": 500}, faults=[fault], seed=3) for _ in range(2))
    third = bench.noop(scenario_schedule, {"count": 500}, faults=[fault], seed=4)
    assert first == second != third
    assert 70 <= first.count(CKR_DEVICE_ERROR) <= 130


def test_actions_are_drawn_from_those_that_fit_the_function(bench: Bench) -> None:
    rvs = bench.noop(scenario_schedule, {"count": 300}, random=random_schedule(1, 1.0) | {"actions": ["kill-session"]})
    assert set(rvs) == {CKR_SESSION_HANDLE_INVALID}
    rvs = bench.noop(
        scenario_schedule, {"count": 50}, random=random_schedule(1, 1.0) | {"actions": ["wrong-signature"]}
    )
    assert set(rvs) == {CKR_OK}
