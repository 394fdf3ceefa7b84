"""Relative paths in a configuration file start at the file's folder, whatever names them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.configs import SOFT
from tests.support.paths import ROOT

from hsmcore.config import load
from hsmcore.config.base import Model
from hsmcore.config.loading import load_each
from hsmcore.errors import ConfigurationError

TLS = {"certificateFile": "tls/c.pem", "keyFile": "tls/k.pem"}
DOCUMENT = {
    "keyManager": {
        "type": "softhsm",
        "config": {**SOFT, "pin": {"file": "pin"}},
        "auditLogFile": "audit.log",
        "audit": {"signingKey": {"file": "audit.key"}},
        "stateBackup": {"location": "s3://states"},
        "keyRotation": {"backupEnabled": True, "backupLocation": "backups"},
        "batching": {"keepLeaves": "leaves"},
        "policy": {"kinds": ["raw", "batch-root"], "domain": "d"},
        "notices": {"targets": [{"file": "target"}]},
        "monitoring": {"listen": "0.0.0.0:1", "tls": TLS, "viewerToken": {"file": "/run/token"}},
    },
    "stateSecret": {"file": "state-secret"},
    "gateway": {"listen": ["tls:0.0.0.0:2"], "tls": {**TLS, "clientCaFile": "tls/ca.pem"},
                "clients": {"a": {"names": ["dns:a"], "keys": ["default"]}}},
}  # fmt: skip


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    path = Path("../place/hsmcore.json")
    path.write_text(json.dumps(DOCUMENT))
    return path


def strings(value):
    if isinstance(value, dict):
        return [each for part in value.values() for each in strings(part)]
    if isinstance(value, list):
        return [each for part in value for each in strings(part)]
    return [value] if isinstance(value, str) else []


def test_every_path_is_made_absolute(file, tmp_path):
    place = tmp_path / "place"
    config = load(file)
    said = strings(config.redacted())
    for name in ("pin", "audit.log", "audit.key", "backups", "leaves", "target", "state-secret", "tls/ca.pem"):
        assert str(place / name) in said, name
        assert name not in said, name
    assert said.count(str(place / "tls/c.pem")) == said.count(str(place / "tls/k.pem")) == 2
    assert {"s3://states", "/run/token"} <= {*said}
    (place / "pin").write_text("1234")
    (place / "pin").chmod(0o600)
    pin = config.key_manager.config.pin
    assert (bytes(pin.resolve()), pin.where) == (b"1234", "$.keyManager.config.pin")
    assert load(DOCUMENT).key_manager.config.pin.path == "pin", "a dict has no folder"


@pytest.mark.parametrize("source", ["pin", "./pin", "file:pin"])
def test_a_pin_source_is_absolute_in_a_file_and_in_a_dict(file, source):
    uri = f"pkcs11:object=k?module-path=/m.so&pin-source={source}"
    document = {"keyManager": {"type": "pkcs11", "config": {"uri": uri}}}
    file.write_text(json.dumps(document))
    Path("pin").write_text("1234")
    (file.parent / "pin").write_text("1234")
    for form in (file, document):
        with pytest.raises(ConfigurationError, match="pin-source must be the absolute path of a file"):
            load(form)
    [row] = [line for line in (ROOT / "docs/EMBEDDING.md").read_text().splitlines() if "| `pin-source` of" in line]
    assert "| must be absolute" in row


@pytest.mark.parametrize("name", ["pin", "backups", "audit.key", "log"])
def test_what_stands_in_the_working_directory_is_of_another_service(file, name, tmp_path):
    Path(name).mkdir()
    rules = load(file).key_manager
    assert rules.config.pin.path == str(tmp_path / "place" / "pin")
    assert rules.key_rotation.backup_location == str(tmp_path / "place" / "backups")


def test_a_provider_of_a_level_and_one_of_several_are_no_exception(file, tmp_path):
    listed = {"failover": {"primary": [{"type": "softhsm", "config": {**SOFT, "pin": {"file": "pin"}}}]}}
    file.write_text(json.dumps({"keyManager": listed}))
    pins = [member.config.pin.path for _, member in load(file).key_manager.members()]
    assert pins == [load(file).key_manager.own.config.pin.path] == [str(tmp_path / "place" / "pin")]
    block = {key: DOCUMENT["keyManager"][key] for key in ("type", "config")}
    file.write_text(
        json.dumps({"keyManagers": {"a": block}, "auditLogFile": "log", "audit": {"signingKey": {"file": "k"}}})
    )
    rules = load_each(file)["a"].key_manager
    assert rules.audit.signing_key.file == str(tmp_path / "place" / "k")
    assert rules.config.pin.path == str(tmp_path / "place" / "pin")


def models(known):
    for model in known.__subclasses__():
        yield model
        yield from models(model)


def test_every_field_that_names_a_file_says_so():
    assert load(DOCUMENT)
    found = {(model, name) for model in models(Model) for name in model.model_fields}
    named = {(model, name) for model, name in found if name.endswith("_file") or name == "file"}
    said = {(model, name) for model in models(Model) for name in model.PATHS}
    assert said <= found
    # Those of the first become secrets, those of the second are given to each key manager.
    without = {model.__name__ for model, _ in named - said}
    assert without == {"SecretReference", "KeyManagersConfig"}
