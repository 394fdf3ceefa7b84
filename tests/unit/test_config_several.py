"""Several key managers in one document: their names, what they have once, and what only one of them may have."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from tests.support.configs import only
from tests.unit.test_config_documents import ANY_JSON

from hsmcore import create_key_manager, create_key_managers
from hsmcore.config import load, load_each
from hsmcore.config.base import child_path
from hsmcore.errors import ConfigurationError

BLOCKS = {"kind": "block", "prefix": "424c4b53", "length": 40, "position": {"offset": 4}}


def one(key: str = "a", **rules: Any) -> dict[str, Any]:
    """A key manager of its own key."""
    settings = {"tokenLabel": "t", "keyLabel": key, "pin": {"env": f"PIN_{key.upper()}"}}
    return {"type": "softhsm", "config": settings, **rules}


def both(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None, **beside: Any) -> dict[str, Any]:
    managers = {"blocks": one("a", **(first or {})), "transactions": one("b", **(second or {}))}
    return {"keyManagers": managers, **beside}


@pytest.mark.parametrize("inside", [False, True], ids=["bare", "sequencer"])
def test_each_has_the_document_s_log_and_secret_and_a_store_of_its_own(inside, tmp_path):
    beside = {"auditLogFile": str(tmp_path / "audit.log"), "audit": {"retainDays": 3}, "stateSecret": {"env": "S"}}
    document = both(**beside)
    configs = load_each({"sequencer": document} if inside else document)
    assert list(configs) == ["blocks", "transactions"]
    root = "$.sequencer" if inside else "$"
    for name, config in configs.items():
        rules = config.key_manager
        assert (config.where, rules.where, rules.manager) == (root, f"{root}.keyManagers.{name}", name)
        assert rules.audit_log_file == beside["auditLogFile"]
        assert rules.audit is not None
        assert (rules.audit.retain_days, rules.audit.where) == (3, f"{root}.audit")
        assert config.state_secret is not None
        assert rules.state_path.parent == tmp_path
        assert rules.state_path.name.startswith(f"hsmcore-state-{name}-softhsm-t-")
        # A child process of one must not inherit the PIN of another.
        assert config.secret_variables == {"PIN_A", "PIN_B", "S"}
    assert load(document, "blocks").redacted()["keyManager"]["config"]["keyLabel"] == "a"
    assert len({config.sha256() for config in configs.values()}) == 2
    assert list(create_key_managers(document)) == ["blocks", "transactions"]
    assert create_key_manager(configs["blocks"]).config is configs["blocks"]


def test_a_store_of_the_name_that_all_shared_is_not_used(tmp_path):
    (tmp_path / "hsmcore-state.db").touch()
    document = both(auditLogFile=str(tmp_path / "audit.log"))
    assert {config.key_manager.state_path.exists() for config in load_each(document).values()} == {False}
    alone = {"keyManager": one(auditLogFile=str(tmp_path / "audit.log"))}
    assert load_each(alone)["default"].key_manager.state_path.exists()


@pytest.mark.parametrize(
    ("document", "path", "says"),
    [
        ({"keyManagers": {}}, "$.keyManagers", "holds no key manager"),
        ({"keyManagers": []}, "$.keyManagers", "must be an object; a list was given"),
        ({"keyManagers": {"a": 5}}, "$.keyManagers.a", "must be an object"),
        ({"keyManagers": {"a": one(), "b": {"type": "softhsn"}}}, "$.keyManagers.b.type", 'did you mean "softhsm"?'),
        ({"keyManagers": {"a": one()}, "keyManager": one()}, "$.keyManagers", "beside keyManager"),
        (
            both(zzz=1),
            "$.zzz",
            "unknown key; allowed here: audit, auditLogFile, cloudWatchLogs, gateway, keyManagers, ",
        ),
        (both(audit={}), "$", "has audit, but no auditLogFile"),
        (both(second={"auditLogFile": "a"}), "$.keyManagers.transactions.auditLogFile", "stands once, beside"),
        (both(second={"audit": {}}), "$.keyManagers.transactions.audit", "stands once, beside keyManagers"),
        (both(second={"cloudWatchLogs": 1}), "$.keyManagers.transactions.cloudWatchLogs", "stands once, beside"),
        (
            both({"policy": {"kinds": ["block", "raw"]}}, {"policy": {"kinds": ["tx-v0", "raw"]}}),
            "$.keyManagers.transactions.policy.kinds",
            "lists raw, as $.keyManagers.blocks.policy.kinds does",
        ),
        (
            both(
                {"policy": {"kinds": ["block"], "formats": [BLOCKS]}},
                {"policy": {"kinds": ["state-root"], "formats": [{**BLOCKS, "kind": "state-root"}]}},
            ),
            "$.keyManagers.transactions.policy.formats[0]",
            "a message could be of $.keyManagers.blocks.policy.formats[0], too",
        ),
        (
            both({"stateFile": "/s/x.db"}, {"stateFile": "/s/../s/x.db"}),
            "$.keyManagers.transactions.stateFile",
            "is the store of $.keyManagers.blocks.stateFile, too",
        ),
        (
            {"keyManagers": {"a": one(), "b": one()}},
            "$.keyManagers.b",
            "has the key of $.keyManagers.a: each key manager has keys of its own",
        ),
    ],
)
def test_a_fault_of_several_is_named(document, path, says):
    where, problem = only_each(document)
    assert where == path
    assert says in problem


def only_each(document: object) -> tuple[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        load_each(document)  # type: ignore[arg-type]
    [fault] = caught.value.faults
    return fault.path, fault.problem


@pytest.mark.parametrize("name", ["", "A", "1a", "-a", "a_b", "a" * 33, "a\n", "ä", 5, None], ids=repr)
def test_a_name_that_is_none_is_refused(name):
    where, problem = only_each({"keyManagers": {"a": one(), name: one("b")}})
    assert where == child_path("$.keyManagers", str(name))
    assert problem.startswith("is no name: ")


@pytest.mark.parametrize("name", ["a", "a-1", "a" * 32])
def test_a_name_has_letters_digits_and_hyphens(name):
    assert list(load_each({"keyManagers": {name: one()}})) == [name]


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigurationError) as caught:
        load_each({"keyManagers": {"A": one(), "b": one(audit={}, queueSiz=1), "c": one("c", queueSize=0)}})
    assert {fault.path for fault in caught.value.faults} == {
        "$.keyManagers.A",
        "$.keyManagers.b.audit",
        "$.keyManagers.b.queueSiz",
        "$.keyManagers.c.queueSize",
    }


def test_one_of_several_must_be_named():
    """A document of several is none for one, and the reverse."""
    where, problem = only(both())
    assert where == "$.keyManagers"
    assert problem.startswith("one of them must be named; there are blocks, transactions. Name one: ")
    with pytest.raises(ConfigurationError, match="create_key_managers"):
        create_key_manager(both())
    with pytest.raises(ConfigurationError, match="there is no 'zzz'; there are blocks, transactions"):
        load(both(), "zzz")
    alone = {"keyManager": one()}
    assert list(create_key_managers(alone)) == list(load_each(alone)) == ["default"]
    assert load(alone, "default").key_manager.manager is None
    with pytest.raises(ConfigurationError, match="stands alone: there is no key manager 'zzz'"):
        load(alone, "zzz")
    assert list(load_each(load(alone))) == ["default"]
    assert list(load_each(load(both(), "blocks"))) == ["blocks"]


def test_relative_paths_start_at_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Path("place")
    place.mkdir()
    file = place / "hsm.json"
    file.write_text(json.dumps(both({"stateFile": "s.db"}, auditLogFile="log/audit.log")))
    blocks, transactions = (config.key_manager for config in load_each(file).values())
    assert blocks.audit_log_file == transactions.audit_log_file == str(tmp_path / "place/log/audit.log")
    assert blocks.state_path == tmp_path / "place/s.db"
    assert transactions.state_path.parent == tmp_path / "place/log"
    os.symlink("s.db", place / "other.db")  # noqa: PTH211
    file.write_text(json.dumps(both({"stateFile": "s.db"}, {"stateFile": "other.db"})))
    assert only(file) == (
        "$.keyManagers.transactions.stateFile",
        "is the store of $.keyManagers.blocks.stateFile, too: a store holds one key ring",
    )
    Path("log").mkdir()
    Path("log/audit.log").touch()  # of another service
    file.write_text(json.dumps(both(auditLogFile="log/audit.log")))
    found = {one.key_manager.audit_log_file for one in load_each(file).values()}
    assert found == {str(tmp_path / "place/log/audit.log")}


def test_a_placeholder_is_named_where_it_stands():
    document = both(auditLogFile="<audit-log>")
    document["keyManagers"]["blocks"]["config"]["tokenLabel"] = "<token>"
    blocks, transactions = load_each(document).values()
    assert set(blocks.placeholders) == {"$.keyManagers.blocks.config.tokenLabel", "$.auditLogFile"}
    assert transactions.placeholders == ("$.auditLogFile",)


@settings(deadline=None)
@given(ANY_JSON)
def test_any_json_gives_configurations_or_a_configuration_error(value: Any) -> None:
    several = one("b", audit=value, stateFile=value)
    for managers in (value, {"a": value}, {"a": one(policy=value), "b": one("b")}, {"a": one(), "b": several}):
        for document in ({"keyManagers": managers}, {"keyManagers": {"a": one()}, "audit": value}):
            with suppress(ConfigurationError):
                assert load_each(document)
