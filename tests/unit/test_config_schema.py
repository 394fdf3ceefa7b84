"""The JSON Schema of a configuration, and the descriptions in it: for editors, and for the reference on the site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hsmcore
from hsmcore.cli.app import run
from hsmcore.config.registry import BUILT_IN
from hsmcore.config.schema import document_schema
from hsmcore.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
TOKEN = {"tokenLabel": "sequencer", "pin": {"env": "HSM_PIN"}, "keyLabel": "key"}
DOCUMENT = {"sequencer": {"keyManager": {"type": "softhsm", "config": TOKEN}}}


def faults(document):
    import jsonschema  # here: it takes more than a second

    return [error.message for error in jsonschema.Draft202012Validator(document_schema()).iter_errors(document)]


def changed(path, value):
    copy = json.loads(json.dumps(DOCUMENT))
    *folders, last = path
    part = copy
    for step in folders:
        part = part[step]
    part[last] = value
    return copy


def test_it_is_a_schema():
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(document_schema())
    assert {"keyManager", "gateway"} <= hsmcore.Config.model_json_schema()["properties"].keys()


def test_every_key_has_a_description_and_numbers_have_a_range():
    bare = []
    for name, part in [("", document_schema()), *document_schema()["$defs"].items()]:
        for key, value in part.get("properties", {}).items():
            forms = value.get("anyOf", [value])
            bare += [f"{name}.{key}"] * (not value.get("description"))
            bare += [f"{name}.{key}" for form in forms if form.get("type") == "integer" and "maximum" not in form]
    assert bare == []


def test_every_type_of_provider_is_in_it():
    kinds = document_schema()["$defs"]["Provider"]["allOf"]
    assert {case["if"]["properties"]["type"]["const"] for case in kinds} >= BUILT_IN.keys()


@pytest.mark.parametrize(
    "document",
    [
        DOCUMENT,
        DOCUMENT["sequencer"],
        {"$schema": "hsmcore.schema.json"} | DOCUMENT,
        {"keyManager": {"failover": {"primary": [DOCUMENT["sequencer"]["keyManager"]]}}},
        {"keyManagers": {"a": DOCUMENT["sequencer"]["keyManager"]}, "auditLogFile": "log"},
    ],
)
def test_what_is_loaded_is_valid(document):
    hsmcore.config.load_each(document)
    assert faults(document) == []


@pytest.mark.parametrize(
    "document",
    [
        {},
        changed(("sequencer", "keyManager", "type"), "soft"),
        changed(("sequencer", "keyManager", "config", "tokenlabel"), "x"),
        changed(("sequencer", "keyManager", "config", "pin"), {"envv": "X"}),
        changed(("sequencer", "keyManager", "queueSize"), 0),
        changed(("sequencer", "keyManager", "failover"), {"mode": "clever"}),
        changed(("sequencer", "$schema"), "inside"),
        {"$schema": 1} | DOCUMENT,
    ],
)
def test_what_is_refused_is_not_valid(document):
    with pytest.raises(ConfigurationError):
        hsmcore.load(document)
    assert faults(document) != []


def test_a_file_may_name_its_schema(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"$schema": "./hsmcore.schema.json"} | DOCUMENT))
    assert hsmcore.load(path).key_manager.type == "softhsm"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_command_prints_it(arguments, capsys):
    assert run(["config", "schema", *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == document_schema()
