"""The members of the failover levels, and a provider that stands in failover.primary alone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.configs import SOFT, faults, listed, manager, only

from hsmcore.config import load
from hsmcore.providers.softhsm.settings import SoftHsmSettings


def test_a_member_may_stand_in_the_levels_once() -> None:
    own = manager()["keyManager"]
    provider = {"type": own["type"], "config": own["config"]}
    other = {"type": "softhsm", "config": {**own["config"], "tokenLabel": "another"}}
    for block, there in (
        ({"primary": [provider]}, "failover.primary[0] is the same member as the key manager itself"),
        ({"secondary": [other, provider]}, "failover.secondary[1] is the same member as the key manager itself"),
        ({"primary": [other], "secondary": [other]}, "failover.secondary[0] is the same member as failover.primary[0]"),
    ):
        path, problem = only(manager(failover=block))
        assert path == "$.keyManager"
        assert there in problem
    assert load(manager(failover={"primary": [other]})).key_manager.failover is not None


def test_failover_primary_alone_names_the_provider() -> None:
    config = load(listed("a", "b"))
    km = config.key_manager
    assert (km.type, km.name, km.has_levels) == ("softhsm", "softhsm:a", True)
    assert isinstance(km.config, SoftHsmSettings)
    assert [member.name for member in km.primary] == ["softhsm:a", "softhsm:b"]
    place = "$.keyManager.failover.primary[0]"
    assert (km.own.where, km.own.config.where, km.config.where) == (place, f"{place}.config", f"{place}.config")
    assert config.redacted()["keyManager"].keys() & {"type", "config"} == set()
    assert load(config.redacted()) == config
    assert load(manager()).redacted()["keyManager"]["type"] == "softhsm"


def test_failover_primary_names_the_provider_also_where_failover_is_off() -> None:
    km = load(listed("a", "b", enabled=False)).key_manager
    assert (km.has_levels, km.own.name) == (False, "softhsm:a")


def test_secrets_and_placeholders_of_a_listed_provider_are_found_once(caplog: pytest.LogCaptureFixture) -> None:
    document = listed("<label>")
    document["keyManager"]["failover"]["primary"][0]["config"]["pin"] = "1234"
    config = load(document)
    place = "$.keyManager.failover.primary[0].config"
    assert config.placeholders == (f"{place}.tokenLabel",)
    assert caplog.text.count(".pin'") == caplog.text.count(f"{place}.pin'") == 1
    assert load(listed("a")).secret_variables == {"P"}


@pytest.mark.parametrize(
    ("document", "path", "problem"),
    [
        ({"keyManager": {"failover": {}}}, "$.keyManager.type", "is required"),
        ({"keyManager": {"failover": {"secondary": []}}}, "$.keyManager.type", "is required"),
        ({"keyManager": {"failover": {"primary": []}}}, "$.keyManager.type", "is required"),
        ({"keyManager": {"config": SOFT, **listed("a")["keyManager"]}}, "$.keyManager.type", "is required"),
        ({"keyManager": {"type": None, **listed("a")["keyManager"]}}, "$.keyManager.type", "null was given"),
        ({"keyManager": {"maxCachSize": 1, **listed("a")["keyManager"]}}, "$.keyManager.maxCachSize", "did you mean"),
        (listed("a", primary=[1]), "$.keyManager.failover.primary[0]", "must be an object; a number was given"),
        (listed("a", primary=[{"type": "x"}]), "$.keyManager.failover.primary[0].type", "must be 'softhsm', "),
        (listed("a", primary=[{}]), "$.keyManager.failover.primary[0].type", "is required"),
        (listed("a", primary=[{"type": "softhsm", "config": {"keyLabel": "k"}}]),
         "$.keyManager.failover.primary[0].config.pin", "is required"),
        (listed("a", primary=[{"type": "ephemeral"}]), "$.keyManager.failover.primary", "allowEphemeralPrimary"),
        (listed("a", "a"), "$.keyManager", "failover.primary[1] is the same member as failover.primary[0]"),
        (listed("a", acceptOtherKeys=["primary"]), "$.keyManager", "failover.primary lists only one member"),
    ],
)  # fmt: skip
def test_a_missing_or_wrong_provider_is_reported_at_its_place(
    document: dict[str, Any], path: str, problem: str
) -> None:
    found = {fault.path: fault.problem for fault in faults(document)}
    assert problem in found.pop(path)
    assert found.keys() <= {"$.keyManager.failover.primary", "$.keyManager.failover.secondary"}, "one fault, said once"
