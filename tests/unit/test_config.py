"""What the customer gives loads as it stands; what is left out gets its default."""

from __future__ import annotations

import copy
import datetime
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.configs import CLOUD, OTHER, SEED, SOFT, SOFTHSM, YUBI, everything, manager

from hsmcore.config import Failover, GenericPkcs11Settings, KeyRotation, Secret, load
from hsmcore.errors import ConfigurationError
from hsmcore.providers.cloudhsm.settings import AwsCloudHsmSettings
from hsmcore.providers.kms.settings import AwsKmsSettings
from hsmcore.providers.softhsm.settings import SoftHsmSettings
from hsmcore.providers.yubihsm.settings import YubiHsmSettings


def test_the_customers_configuration_loads_as_it_stands() -> None:
    config = load(json.loads(SEED))
    km = config.key_manager
    assert km.type == "aws-cloudhsm"
    assert isinstance(km.config, AwsCloudHsmSettings)
    assert km.config.username == "sequencer-user"
    assert km.config.password.resolve() == b"password"
    assert km.config.cluster_endpoint == "<cluster-ip>"
    assert km.config.module_path == "/opt/cloudhsm/lib/libcloudhsm_pkcs11.so"
    assert (km.max_cache_size, km.single_flight, km.audit_log_file) == (10000, True, "audit/audit.log")
    assert isinstance(km.failover, Failover)
    assert (km.failover.mode, km.failover.primary_retry_interval_ms) == ("smart", 5000)
    assert km.failover.emergency_mode_restrictions.allowed_operations == ("sign",)
    assert isinstance(km.key_rotation, KeyRotation)
    assert km.key_rotation.time_of_day == datetime.time(0, 0)
    assert km.key_rotation.zone.key == "UTC"
    assert km.key_rotation.backup_location == "s3://layer2-key-backups"
    assert "cloudhsm-pkcs11" in km.install_hint


def test_placeholders_of_an_example_load_but_do_not_connect() -> None:
    config = load(json.loads(SEED))
    where = "$.sequencer.keyManager.config."
    assert set(config.placeholders) == {where + "clusterEndpoint", where + "keyHandle"}
    with pytest.raises(ConfigurationError) as caught:
        config.require_complete()
    assert {fault.path for fault in caught.value.faults} == set(config.placeholders)
    assert isinstance(config.key_manager.config, AwsCloudHsmSettings)
    with pytest.raises(ConfigurationError, match=r"config\.keyHandle: is a placeholder"):
        config.key_manager.config.key_handle_number()
    load(manager()).require_complete()


def test_the_softhsm_example_loads_from_every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "hsm.json"
    path.write_text(SOFTHSM)
    config = load(json.loads(SOFTHSM))
    assert load(path) == load(str(path)) == load(config) == config
    assert load(config) is config
    settings = config.key_manager.config
    assert isinstance(settings, SoftHsmSettings)
    assert settings.pin == Secret.env("HSM_PIN")
    assert (settings.token_label, settings.key_label, settings.sessions) == ("sequencer", "sequencer-key", 2)
    assert config.key_manager.name == "softhsm:sequencer"
    assert config.key_manager.primary == (config.key_manager,)


def test_the_key_manager_may_stand_at_the_top() -> None:
    inner = json.loads(SOFTHSM)["sequencer"]
    assert load(inner).key_manager.config.where == "$.keyManager.config"
    assert load({"sequencer": inner}).key_manager.config.where == "$.sequencer.keyManager.config"


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "hsm.json"
    path.write_text(SOFTHSM, encoding="utf-8-sig")
    assert load(path).key_manager.type == "softhsm"


def test_what_is_left_out_gets_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    km = load(manager()).key_manager
    assert (km.max_cache_size, km.single_flight, km.cache_non_deterministic) == (10_000, True, False)
    assert (km.request_timeout_ms, km.queue_size, km.max_message_bytes) == (10_000, 4096, 16_384)
    assert (km.wake_coalesce_micros, km.spin_micros) == (2000, 50)
    assert (km.failover, km.key_rotation, km.audit_log_file, km.cloud_watch_logs) == (None, None, None, None)
    assert isinstance(km.config, SoftHsmSettings)
    assert (km.config.module_path, km.config.sessions) == ("/usr/lib/softhsm/libsofthsm2.so", 6)
    assert (km.config.isolation, km.config.verify_signatures, km.config.quirks) == ("thread", "never", "softhsm")


@pytest.mark.parametrize(
    ("type_", "given", "default"),
    [
        ("softhsm", SOFT, "thread"),
        ("pkcs11", OTHER, "thread"),
        ("aws-cloudhsm", CLOUD, "process"),
        ("yubihsm", YUBI, "process"),
    ],
)
def test_hardware_modules_are_isolated_unless_asked_otherwise(type_: str, given: dict[str, Any], default: str) -> None:
    assert load(manager(type_, given)).key_manager.config.isolation == default  # type: ignore[union-attr]
    for asked in ("thread", "process"):
        settings = load(manager(type_, {**given, "isolation": asked})).key_manager.config
        assert settings.isolation == asked  # type: ignore[union-attr]


def test_single_flight_follows_the_cache_unless_it_is_set() -> None:
    assert not load(manager(maxCacheSize=0)).key_manager.single_flight
    assert load(manager(maxCacheSize=0, singleFlight=True)).key_manager.single_flight
    assert not load(manager(maxCacheSize=1, singleFlight=False)).key_manager.single_flight


def test_everything_loads_and_knows_its_path() -> None:
    km = load(everything()).key_manager
    assert km.failover is not None
    assert km.failover.secondary is not None
    assert [type(member.config) for member in km.failover.secondary] == [
        YubiHsmSettings,
        GenericPkcs11Settings,
        AwsKmsSettings,
    ]
    assert km.failover.secondary[1].config.where == "$.sequencer.keyManager.failover.secondary[1].config"
    assert [member.type for member in km.primary] == ["aws-cloudhsm", "softhsm"]
    assert [member.name for member in km.failover.secondary] == [
        "yubihsm:http://127.0.0.1:12345",
        "pkcs11",
        "aws-kms:alias/sequencer",
    ]


def test_a_configuration_cannot_be_changed() -> None:
    config = load(manager())
    with pytest.raises(ValidationError):
        setattr(config.key_manager, "max_cache_size", 1)  # noqa: B010
    assert len({config, load(manager())}) == 1


def test_a_dump_loads_again_to_the_same() -> None:
    for document in (everything()["sequencer"], manager(), json.loads(SOFTHSM)["sequencer"]):
        config = load(document)
        dumped = json.loads(json.dumps(config.redacted()))
        assert load(dumped) == config
        assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301


def test_the_state_file_lies_beside_the_audit_log_or_in_the_user_s_state_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    name = load(manager()).key_manager.state_path.name
    assert re.fullmatch(r"hsmcore-state-softhsm-[A-Za-z0-9._-]+-[0-9a-f]{8}\.db", name)
    for rules, path in (
        ({}, f"/var/state/hsmcore/{name}"),
        ({"auditLogFile": "audit/audit.log"}, f"audit/{name}"),
        ({"auditLogFile": "audit/audit.log", "stateFile": "/s.db"}, "/s.db"),
    ):
        assert load(manager(**rules)).key_manager.state_path == Path(path)
    monkeypatch.delenv("XDG_STATE_HOME")
    assert load(manager()).key_manager.state_path == Path.home() / ".local/state/hsmcore" / name


def test_a_store_beside_the_log_has_one_place_for_a_unit_and_for_commands_from_any_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A unit may set XDG_STATE_HOME; an operator's shell does not; a container's user may have no home at all."""
    logged, found = manager(auditLogFile="/var/log/hsmcore/audit.log"), set()
    for home in ("/var/lib", "/root/.local/state"):
        monkeypatch.setenv("XDG_STATE_HOME", home)
        found.add(load(logged).key_manager.state_path)
    monkeypatch.delenv("XDG_STATE_HOME")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    found.add(load(logged).key_manager.state_path)
    assert [path.parent for path in found] == [Path("/var/log/hsmcore")]


def test_each_token_has_a_state_file_of_its_own_whatever_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")

    def path(**settings: object) -> Path:
        document = manager()
        document["keyManager"]["config"] |= settings
        return load(document).key_manager.state_path

    assert path(tokenLabel="a/b") != path(tokenLabel="a-b")
    assert path(keyLabel="one") == path(keyLabel="another")
    kms = [manager("aws-kms", {"keyId": key, "region": "eu-west-1"}) for key in ("alias/one", "alias/two")]
    assert len({load(document).key_manager.state_path for document in kms}) == 1


def test_a_store_that_all_configurations_shared_is_used_on(tmp_path: Path) -> None:
    rules = load(manager(auditLogFile=str(tmp_path / "audit.log"))).key_manager
    own = rules.state_path
    (tmp_path / "hsmcore-state.db").touch()
    assert rules.state_path == tmp_path / "hsmcore-state.db"
    own.touch()
    assert rules.state_path == own


def test_what_a_configuration_file_keeps_lies_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    file = home / "hsmcore.json"
    file.write_text(json.dumps(manager(auditLogFile="audit/audit.log", stateFile="state.db")))
    for folder in (home, elsewhere, tmp_path):
        monkeypatch.chdir(folder)
        rules = load(os.path.relpath(file)).key_manager
        assert (rules.state_path, rules.audit_log_file) == (home / "state.db", str(home / "audit/audit.log"))
    monkeypatch.chdir(elsewhere)
    (elsewhere / "state.db").touch()  # of another service
    assert load(file).key_manager.state_path == home / "state.db"


def test_loading_leaves_the_document_as_it_was() -> None:
    document = everything()
    before = copy.deepcopy(document)
    load(document)
    assert document == before
