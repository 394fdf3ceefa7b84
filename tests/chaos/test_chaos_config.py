"""A bad configuration is refused, and the reason names its path in the file."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.cloudhsm import Cluster
from tests.support.paths import CHAOS, PROFILES
from tests.support.pkcs11_client import CKR_GENERAL_ERROR, Module
from tests.support.scenarios import Bench, random_schedule, scenario_initialize
from tests.support.size import each

GOOD_FAULT = {"function": "C_Sign", "nth": 1, "action": "return", "ckr": "CKR_DEVICE_ERROR"}


def faulty(**changes: Any) -> dict[str, Any]:
    return {"faults": [GOOD_FAULT, {k: v for k, v in {**GOOD_FAULT, **changes}.items() if v is not None}]}


@pytest.mark.parametrize(
    ("fields", "reason"),
    each(4, [
        ({"modul": "x"}, "$.modul: unknown field"),
        ({"module": None}, "$.module: must be a string, not null"),
        ({"module": 3}, "$.module: must be a string, not an integer"),
        ({"module": ""}, "$.module: is empty"),
        ({"module": "/no/such.so"}, "$.module: can't load /no/such.so"),
        ({"module": "libsodium.so.23"}, "is no PKCS #11 module"),
        ({"module": str(CHAOS)}, "is this module itself"),
        ({"seed": -1}, "$.seed: must be 0 to"),
        ({"seed": "1"}, "$.seed: must be an integer, not a string"),
        ({"profile": "nothing"}, '$.profile: no profile "nothing"'),
        ({"profile": "../x"}, "is not a profile's name"),
        ({"socket": "/" + "x" * 200}, "$.socket: is longer than 107 bytes"),
        ({"socket": "/no/such/folder/s"}, "$.socket: can't bind"),
        ({"log": "/no/such/folder/l"}, "$.log: can't open"),
        ({"log": 1}, "$.log: must be a string"),
        ({"faults": {}}, "$.faults: must be an array"),
        ({"faults": [1]}, "$.faults[0]: must be an object"),
        (faulty(function="C_Nothing"), '$.faults[1].function: unknown function "C_Nothing"'),
        (faulty(function=None), "$.faults[1].function: is missing"),
        (faulty(function="C_Initialize"), "$.faults[1].function: C_Initialize can't be struck"),
        (faulty(action="explode"), '$.faults[1].action: unknown action "explode"'),
        (faulty(ckr="CKR_NOTHING"), '$.faults[1].ckr: unknown CKR "CKR_NOTHING"'),
        (faulty(ckr=-1), "$.faults[1].ckr: must be 0 to"),
        (faulty(ckr=None), "$.faults[1].ckr: is missing"),
        (faulty(often=2), "$.faults[1].often: unknown field"),
        (faulty(milliseconds=2), "$.faults[1].milliseconds: unknown field"),
        (faulty(nth=0), "$.faults[1].nth: must be 1 to"),
        (faulty(nth=1.5), "$.faults[1].nth: must be an integer, not a number"),
        (faulty(nth=None), '$.faults[1]: needs one of "nth", "every" and "probability"'),
        (faulty(every=2), '$.faults[1]: needs one of "nth"'),
        (faulty(count=2), '$.faults[1].count: has no meaning with "nth"'),
        (faulty(nth=None, probability=1.5), "$.faults[1].probability: must be 0 to 1"),
        (faulty(slot="0"), "$.faults[1].slot: must be an integer"),
        (faulty(function="C_GetInfo", slot=0), "$.faults[1].slot: C_GetInfo has no slot"),
        (faulty(action="hang", ckr=None), '$.faults[1]: hang needs either "milliseconds" or "forever"'),
        (faulty(action="hang", ckr=None, milliseconds=1, forever=True), "$.faults[1]: hang needs either"),
        (faulty(action="hang", ckr=None, milliseconds="1"), "$.faults[1].milliseconds: must be a number"),
        (faulty(action="hang", ckr=None, forever=False), "$.faults[1].forever: must be true"),
        (faulty(action="exit", ckr=None, code=256), "$.faults[1].code: must be 0 to 255"),
        (faulty(action="wrong-signature", ckr=None, function="C_Login"), "wrong-signature can't strike C_Login"),
        (faulty(action="kill-session", ckr=None, function="C_GetTokenInfo"), "kill-session can't strike"),
        ({"latency": []}, "$.latency: must be an object of functions"),
        ({"latency": {"C_Nothing": {}}}, '$.latency.C_Nothing: unknown function "C_Nothing"'),
        ({"latency": {"C_Sign": 5}}, "$.latency.C_Sign: must be an object"),
        ({"latency": {"C_Sign": {"kind": "gamma"}}}, '$.latency.C_Sign.kind: unknown kind "gamma"'),
        ({"latency": {"C_Sign": {"kind": "constant"}}}, "$.latency.C_Sign.microseconds: is missing"),
        ({"latency": {"C_Sign": {"kind": "constant", "microseconds": -1}}}, "$.latency.C_Sign.microseconds: must be"),
        ({"latency": {"C_Sign": {"kind": "none", "microseconds": 1}}}, "$.latency.C_Sign.microseconds: unknown field"),
        ({"latency": {"C_Sign": {"kind": "uniform", "minMicroseconds": 2, "maxMicroseconds": 1}}}, "maxMicrose"),
        ({"latency": {"C_Sign": {"kind": "lognormal", "sigma": 1}}}, "needs one of"),
        (
            {"latency": {"C_Login": {"kind": "constant", "microseconds": 1, "perByteMicroseconds": 1}}},
            "$.latency.C_Login.perByteMicroseconds: only C_Sign",
        ),
        ({"capacity": {}}, "$.capacity.servers: is missing"),
        ({"capacity": {"servers": 0}}, "$.capacity.servers: must be 1 to"),
        ({"capacity": {"servers": 1, "overflow": "X"}}, '$.capacity.overflow: unknown CKR "X"'),
        ({"capacity": {"servers": 1, "functions": ["C_X"]}}, '$.capacity.functions[0]: unknown function "C_X"'),
        ({"random": {"probability": 1}}, "$.random.functions: is missing"),
        ({"random": random_schedule(1) | {"functions": []}}, "$.random.functions: must be a non-empty array"),
        ({"random": random_schedule(1) | {"actions": ["hang"]}}, "$.random.actions[0]: hang needs either"),
        ({"random": random_schedule(1) | {"actions": ["x"]}}, '$.random.actions[0].action: unknown action "x"'),
        ({"random": random_schedule(1) | {"functions": ["C_Login"], "actions": ["crash", "long-signature"]}},
         "$.random.actions[1]: long-signature can't strike any"),
        ({"random": random_schedule(1) | {"seed": 1.5}}, "$.random.seed: must be an integer"),
    ]),
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_bad_configuration_is_refused_with_its_place(bench: Bench, fields: dict[str, Any], reason: str) -> None:
    config = bench.config(**{"log": str(bench.log), "profileDir": str(PROFILES), **fields})
    run = bench.run(scenario_initialize, config)
    assert run.checked() == {"rv": CKR_GENERAL_ERROR, "again": None}
    assert reason in run.stderr
    assert str(config) in run.stderr
    if "log" not in fields:
        assert reason in bench.log.read_text()


def test_no_configuration_at_all(bench: Bench) -> None:
    run = bench.run(scenario_initialize)
    assert run.checked()["rv"] == CKR_GENERAL_ERROR
    assert "HSMCORE_CHAOS_CONFIG" in run.stderr
    run = bench.run(scenario_initialize, reserved="config=/no/such/file.json")
    assert run.checked()["rv"] == CKR_GENERAL_ERROR
    assert "/no/such/file.json" in run.stderr


@pytest.mark.parametrize("text", ["", "{", '{"module": "a", "module": "b"}', "[]", "\x00", '{"module": "\\ud800"}'])
def test_files_that_are_no_configuration(bench: Bench, text: str) -> None:
    path = bench.folder / "bad.json"
    path.write_text(text)
    run = bench.run(scenario_initialize, reserved=f"config={path}")
    assert run.checked()["rv"] == CKR_GENERAL_ERROR
    assert str(path) in run.stderr


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"denied": []}, "$.denied: must be an object of functions"),
        ({"denied": {"C_Sing": "CKR_OK, Module"}}, '$.denied.C_Sing: unknown function "C_Sing"'),
        ({"denied": {"C_Sign": "CKR_NO"}}, '$.denied.C_Sign: unknown CKR "CKR_NO"'),
        ({"denied": {"C_Initialize": 5}}, "$.denied.C_Initialize: C_Initialize can't be struck"),
        ({"sessions": {"limit": 0}}, "$.sessions.limit: must be 1 to"),
        ({"sessions": {"most": 1}}, "$.sessions.most: unknown field"),
        ({"attributes": {"known": ["CKA_NO"]}}, '$.attributes.known[0]: unknown name "CKA_NO"'),
        ({"attributes": {"known": [-1]}}, "$.attributes.known[0]: must be a name or a number"),
        ({"attributes": {"known": list(range(65))}}, "$.attributes.known: must be an array of at most 64"),
        ({"attributes": {"fixed": {"CKA_PRIVATE": 1}}}, "$.attributes.fixed.CKA_PRIVATE: must be true or false"),
        ({"curves": {"refused": ["0"]}}, "$.curves.refused[0]: must be 1 to 64 bytes"),
        ({"curves": {"refused": ["zz"]}}, "$.curves.refused[0]: must be 1 to 64 bytes"),
        ({"curves": {"rawPoints": False}}, "$.curves.rawPoints: must be true"),
        ({"mechanisms": [{"as": 1}]}, "$.mechanisms[0].mechanism: is missing"),
        ({"mechanisms": [{"mechanism": 1}]}, '$.mechanisms[0]: needs either "as" or "absent"'),
        ({"mechanisms": [{"mechanism": "CKM_X", "as": 1}]}, '$.mechanisms[0].mechanism: unknown name "CKM_X"'),
        ({"library": {"manufacturer": "x" * 33}}, "$.library.manufacturer: is longer than 32 bytes"),
        ({"slots": [{"label": "x"}]}, "$.slots[0].token: is missing"),
        ({"users": [{"pin": "x"}]}, "$.users[0].tokenPin: is missing"),
        ({"users": [{"pin": "x" * 256, "tokenPin": "x"}]}, "$.users[0].pin: is longer than 255 bytes"),
        ({"users": [{"pin": "x", "tokenPin": "y", "denied": {"C_X": 1}}]}, "$.users[0].denied.C_X: unknown function"),
        ({"handlesPerSession": 1}, "$.handlesPerSession: must be true"),
        ({"profile": 5}, "$.profile: must be a profile's name or an array of names"),
        ({"profile": ["cloudhsm", "no"]}, '$.profile: no profile "no"'),
    ],
)
@pytest.mark.chaos
@pytest.mark.integration
def test_what_is_wrong_is_named_with_its_path(cluster: Cluster, fields: dict[str, Any], reason: str) -> None:
    cluster.write(**fields)
    module = Module(CHAOS)
    assert module.initialize(reserved=cluster.args.encode()) == CKR_GENERAL_ERROR
    assert reason in cluster.log.read_text()
