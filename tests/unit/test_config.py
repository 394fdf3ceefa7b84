"""What the customer gives loads as it stands; what is wrong is said by its JSON path, all of it at once."""

from __future__ import annotations

import copy
import datetime
import difflib
import json
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hsmcore.config import (
    AwsCloudHsmSettings,
    AwsKmsSettings,
    Config,
    EphemeralSettings,
    Failover,
    GenericPkcs11Settings,
    KeyRotation,
    Secret,
    SoftHsmSettings,
    YubiHsmSettings,
    load,
)
from hsmcore.config.base import Model, child_path
from hsmcore.errors import ConfigFault, ConfigurationError

# The customer's configuration, to the letter.
SEED = """
{
  "sequencer": {
    "keyManager": {
      "type": "aws-cloudhsm",
      "config": {
        "clusterEndpoint": "<cluster-ip>",
        "username": "sequencer-user",
        "password": "password",
        "keyHandle": "<key-handle>",
        "region": "us-east-1"
      },
      "maxCacheSize": 10000,
      "auditLogFile": "audit/audit.log",
      "failover": {
        "enabled": true,
        "primaryRetryIntervalMs": 5000,
        "maxPrimaryRetries": 3,
        "secondaryRetryIntervalMs": 10000,
        "maxSecondaryRetries": 3,
        "emergencyModeEnabled": true,
        "emergencyModeRestrictions": {
          "maxTransactions": 1000,
          "maxTimeSeconds": 3600,
          "allowedOperations": ["sign"]
        }
      },
      "keyRotation": {
        "enabled": true,
        "intervalDays": 30,
        "overlapDays": 2,
        "rotationTime": "00:00:00",
        "timeZone": "UTC",
        "backupEnabled": true,
        "backupLocation": "s3://layer2-key-backups"
      }
    }
  }
}
"""
SOFTHSM = """
{"sequencer": {"keyManager": {"type": "softhsm", "config": {"modulePath": "/usr/lib/softhsm/libsofthsm2.so",
  "tokenLabel": "sequencer", "pin": {"env": "HSM_PIN"}, "keyLabel": "sequencer-key", "sessions": 2},
  "maxCacheSize": 10000}}}
"""


SOFT = {"keyLabel": "k", "pin": {"env": "P"}}
CLOUD = {"keyLabel": "k", "username": "u", "password": {"env": "P"}}
YUBI = {"keyLabel": "k", "authKeyId": 1, "password": {"env": "P"}}
OTHER = {"keyLabel": "k", "modulePath": "/m.so"}


def everything() -> dict[str, Any]:
    """A valid document that has every kind of object in it."""
    document: dict[str, Any] = json.loads(SEED)
    manager = document["sequencer"]["keyManager"]
    softhsm = json.loads(SOFTHSM)["sequencer"]["keyManager"]
    manager["cloudWatchLogs"] = {"logGroup": "/hsm/audit", "logStream": "sequencer-1", "region": "eu-west-1"}
    manager["config"]["password"] = {"awsSecretsManager": {"secretId": "prod/hsm", "key": "password"}}
    manager["failover"]["primary"] = [{"type": "softhsm", "config": softhsm["config"]}]
    manager["failover"]["secondary"] = [
        {"type": "yubihsm", "config": {"authKeyId": 1, "password": {"file": "/run/yubihsm"}, "keyId": "0001"}},
        {"type": "pkcs11", "config": {"uri": "pkcs11:object=k?module-path=/m.so"}},
        {"type": "aws-kms", "config": {"keyId": "alias/sequencer", "region": "eu-west-1"}},
    ]
    manager["failover"]["emergency"] = [{"type": "ephemeral", "config": {}}]
    return document


def manager(type_: str = "softhsm", config: Any = None, **keys: Any) -> dict[str, Any]:
    if config is None:
        config = {"tokenLabel": "sequencer", "pin": {"env": "HSM_PIN"}, "keyLabel": "sequencer-key"}
    return {"keyManager": {"type": type_, "config": config, **keys}}


def faults(document: object) -> list[ConfigFault]:
    with pytest.raises(ConfigurationError) as caught:
        load(document)  # type: ignore[arg-type]
    assert caught.value.faults
    for fault in caught.value.faults:
        assert str(fault) in str(caught.value)
    assert not caught.value.retryable
    return list(caught.value.faults)


def only(document: object) -> tuple[str, str]:
    (fault,) = faults(document)
    return fault.path, fault.problem


def objects(value: object, path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a document with its path."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from objects(item, child_path(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from objects(item, child_path(path, index))


def known_keys(model: type[Model] = Model) -> set[str]:
    names = {field.alias or name for name, field in model.model_fields.items()}
    return names.union({"sequencer"}, *(known_keys(child) for child in model.__subclasses__()))


# ---- what is right loads ---------------------------------------------------------------------------------------------


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


def test_blanks_of_an_example_load_but_do_not_connect() -> None:
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


# ---- unknown keys ----------------------------------------------------------------------------------------------------

PLACES = [path for path, _ in objects(everything())]
KNOWN = known_keys()


@settings(deadline=None)
@given(place=st.sampled_from(PLACES), key=st.text().filter(lambda key: key not in KNOWN))
def test_one_unknown_key_anywhere_is_named_precisely(place: str, key: str) -> None:
    document = everything()
    dict(objects(document))[place][key] = "zqVALUE"
    path, problem = only(document)
    assert path == child_path(place, key)
    assert problem.startswith("unknown key")
    assert "zqVALUE" not in problem


@settings(deadline=None)
@given(st.data())
def test_a_mistyped_key_is_recognized(data: st.DataObject) -> None:
    document = everything()
    place = data.draw(st.sampled_from([path for path in PLACES if path.startswith("$.sequencer.keyManager")]))
    target = dict(objects(document))[place]
    long = [key for key in target if len(key) > 5]
    if not long:
        return
    key = data.draw(st.sampled_from(long))
    cut = data.draw(st.integers(1, len(key) - 1))
    mistyped = key[:cut] + key[cut + 1 :]
    if mistyped in KNOWN:
        return
    target[mistyped] = target.pop(key)
    path, problem = next((f.path, f.problem) for f in faults(document) if f.problem.startswith("unknown key"))
    assert path == child_path(place, mistyped)
    suggested = problem.partition('did you mean "')[2].removesuffix('"?')
    # The key itself, or one that is at least as near ("maxPrimaryRetries" and "maxSecondaryRetries" are close).
    near = difflib.SequenceMatcher(None, mistyped.lower(), suggested.lower()).ratio()
    assert near >= difflib.SequenceMatcher(None, mistyped.lower(), key.lower()).ratio() - 1e-9


@pytest.mark.parametrize(
    ("key", "meant"),
    [("max_cache_size", "maxCacheSize"), ("MAXCACHESIZE", "maxCacheSize"), ("audit-log-file", "auditLogFile")],
)
def test_another_spelling_is_recognized(key: str, meant: str) -> None:
    assert only({"keyManager": {**manager()["keyManager"], key: 1}}) == (
        child_path("$.keyManager", key),
        f'unknown key; did you mean "{meant}"?',
    )


def test_a_key_like_no_other_is_answered_with_what_there_is() -> None:
    _, problem = only(manager(zzz=1))
    assert problem.startswith(
        "unknown key; allowed here: audit, auditLogFile, cacheNonDeterministic, cloudWatchLogs, config, "
    )


# ---- wrong values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "path", "problem"),
    [
        ({"maxCacheSize": "2"}, "maxCacheSize", "must be a whole number from 0 to 100000000; the string '2' was given"),
        ({"maxCacheSize": True}, "maxCacheSize", "from 0 to 100000000; true was given"),
        ({"maxCacheSize": 2.0}, "maxCacheSize", "the number 2.0 was given"),
        ({"maxCacheSize": -1}, "maxCacheSize", "the number -1 was given"),
        ({"maxCacheSize": None}, "maxCacheSize", "null was given"),
        ({"singleFlight": 1}, "singleFlight", "must be true or false; the number 1 was given"),
        ({"cacheNonDeterministic": "yes"}, "cacheNonDeterministic", "must be true or false; the string 'yes' was"),
        ({"requestTimeoutMs": 0}, "requestTimeoutMs", "must be a whole number from 1 to 86400000; the number 0 was"),
        ({"queueSize": 0}, "queueSize", "must be a whole number from 1 to 65536; the number 0 was given"),
        ({"queueSize": 65537}, "queueSize", "the number 65537 was given"),
        ({"maxMessageBytes": 1 << 20}, "maxMessageBytes", "must be a whole number from 1 to 1048575"),
        ({"wakeCoalesceMicros": -1}, "wakeCoalesceMicros", "from 0 to 1000000"),
        ({"spinMicros": 10**50}, "spinMicros", "a very long number was given"),
        ({"auditLogFile": ""}, "auditLogFile", "must be a string of 1 to 4096 bytes"),
        ({"auditLogFile": ["a"]}, "auditLogFile", "a list was given"),
        ({"auditLogFile": "a\0b"}, "auditLogFile", "without control characters"),
        ({"cloudWatchLogs": []}, "cloudWatchLogs", "must be an object; a list was given"),
        ({"cloudWatchLogs": {"logGroup": "g"}}, "cloudWatchLogs.logStream", "is required"),
        ({"cloudWatchLogs": {"logGroup": "a b", "logStream": "s"}}, "cloudWatchLogs.logGroup", "must be a log group"),
        ({"failover": {"acceptOtherKeys": ["emergency"]}}, "failover.acceptOtherKeys[0]", "'primary' or 'secondary'"),
        ({"failover": {"acceptOtherKeys": ["primary"]}}, "failover", "failover.primary adds no member to that level"),
        ({"failover": {"acceptOtherKeys": ["secondary"]}}, "failover", "there is no secondary level"),
        ({"failover": {"hedging": 1}}, "failover.hedging", "must be true or false"),
        ({"failover": {"failbackRampMs": -1}}, "failover.failbackRampMs", "from 0 to 3600000"),
        ({"failover": {"emergencyDelayMs": "1"}}, "failover.emergencyDelayMs", "whole number"),
        ({"stateFile": ""}, "stateFile", "must be a string of 1 to 4096 bytes"),
        (
            {"failover": {"emergencyModeRestrictions": {"allowedOperations": ["verify"]}}},
            "failover.emergencyModeRestrictions.allowedOperations",
            'must list "sign"',
        ),
        ({"failover": {"mode": "smrt"}}, "failover.mode", "'smart' or 'literal'; the string 'smrt' was given; did you"),
        ({"failover": {"maxPrimaryRetries": 0}}, "failover.maxPrimaryRetries", "from 1 to 1000; the number 0"),
        ({"failover": {"primary": {}}}, "failover.primary", "must be a list; an object was given"),
        ({"failover": {"primary": []}}, "failover.primary", "must list at least one provider"),
        ({"failover": {"primary": [1]}}, "failover.primary[0]", "must be an object; a number was given"),
        ({"failover": {"primary": [{"type": "x"}]}}, "failover.primary[0].type", "must be 'softhsm', "),
        (
            {"failover": {"emergencyModeRestrictions": {"allowedOperations": []}}},
            "failover.emergencyModeRestrictions.allowedOperations",
            "must list at least one operation",
        ),
        (
            {"failover": {"emergencyModeRestrictions": {"allowedOperations": ["sign", "sing"]}}},
            "failover.emergencyModeRestrictions.allowedOperations[1]",
            'did you mean "sign"?',
        ),
        ({"failover": {"secondary": [{"type": "ephemeral"}]}}, "failover.secondary", 'member 0 is of type "ephemeral"'),
        (
            {"failover": {"emergencyModeEnabled": True, "emergency": [manager()["keyManager"]]}},
            "failover.emergency",
            'must list only providers of type "ephemeral"',
        ),
        ({"failover": {"emergency": [{"type": "ephemeral"}]}}, "failover", "emergencyModeEnabled is false"),
        ({"keyRotation": {"rotationTime": "24:00:00"}}, "keyRotation.rotationTime", "HH:MM:SS"),
        ({"keyRotation": {"rotationTime": "1:00:00"}}, "keyRotation.rotationTime", "the string '1:00:00' was given"),
        ({"keyRotation": {"rotationTime": 0}}, "keyRotation.rotationTime", "must be a string; the number 0 was given"),
        ({"keyRotation": {"timeZone": "Europe/Zurch"}}, "keyRotation.timeZone", 'did you mean "Europe/Zurich"?'),
        ({"keyRotation": {"timeZone": "../../etc/passwd"}}, "keyRotation.timeZone", "must be an IANA time zone"),
        ({"keyRotation": {"timeZone": "Europe"}}, "keyRotation.timeZone", "must be an IANA time zone"),
        ({"keyRotation": {"timeZone": ""}}, "keyRotation.timeZone", "must be an IANA time zone"),
        ({"keyRotation": {"timeZone": "a\0"}}, "keyRotation.timeZone", "must be an IANA time zone"),
        ({"keyRotation": {"intervalDays": 0}}, "keyRotation.intervalDays", "from 1 to 3650"),
        ({"keyRotation": {"intervalDays": 1}}, "keyRotation", "overlapDays (2) is longer than intervalDays (1)"),
        ({"keyRotation": {"backupEnabled": True}}, "keyRotation", "backupLocation is missing"),
        ({"keyRotation": {"backupLocation": "ftp://x"}}, "keyRotation.backupLocation", "must be a folder, or s3://"),
        ({"queueSize": 65536, "maxMessageBytes": 1048575}, "", "queueSize times maxMessageBytes"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(keys: dict[str, Any], path: str, problem: str) -> None:
    where, said = only(manager(**keys))
    assert where == ("$.keyManager." + path).removesuffix(".")
    assert problem in said


@pytest.mark.parametrize(
    ("type_", "config", "path", "problem"),
    [
        ("softhsm", {}, ".pin", "is required"),
        ("softhsm", {"pin": {"env": "P"}}, "", "must name the key to sign with: give keyLabel, keyId or keyHandle"),
        ("softhsm", {**SOFT, "sessions": 0}, ".sessions", "must be a whole number from 1 to 1024"),
        ("softhsm", {**SOFT, "sessions": 1025}, ".sessions", "the number 1025 was given"),
        ("softhsm", {**SOFT, "tokenLabel": "x" * 33}, ".tokenLabel", "1 to 32 bytes"),
        ("softhsm", {**SOFT, "tokenLabel": "ü" * 17}, ".tokenLabel", "1 to 32 bytes"),
        ("softhsm", {**SOFT, "slotId": -1}, ".slotId", "must be a whole number from 0"),
        ("softhsm", {**SOFT, "keyId": "abc"}, ".keyId", "hexadecimal, two digits each; the string 'abc' was given"),
        ("softhsm", {**SOFT, "keyId": "00" * 65}, ".keyId", "1 to 64 bytes in hexadecimal"),
        ("softhsm", {**SOFT, "keyHandle": "0xZZ"}, ".keyHandle", "must be an object handle"),
        ("softhsm", {**SOFT, "keyHandle": True}, ".keyHandle", "must be an object handle"),
        ("softhsm", {**SOFT, "keyHandle": 2**63}, ".keyHandle", "must be an object handle"),
        ("softhsm", {**SOFT, "publicKey": "ab"}, ".publicKey", "must be a public key in hexadecimal"),
        ("softhsm", {**SOFT, "publicKey": "ab" * 32, "algorithm": "ecdsa-p256"}, "", "publicKey has not the length"),
        ("softhsm", {**SOFT, "algorithm": "ed448"}, ".algorithm", "'ed25519', 'ecdsa-p256' or 'ecdsa-secp256k1'"),
        ("softhsm", {**SOFT, "isolation": "proces"}, ".isolation", 'did you mean "process"?'),
        ("softhsm", {**SOFT, "verifySignatures": True}, ".verifySignatures", "true was given"),
        ("softhsm", {**SOFT, "quirks": "thales"}, ".quirks", "must be 'softhsm', 'nss'"),
        ("softhsm", {**SOFT, "modulePath": 1}, ".modulePath", "the number 1 was given"),
        ("aws-cloudhsm", {**CLOUD, "username": "a:b"}, ".username", "without a colon"),
        ("aws-cloudhsm", {**CLOUD, "region": "Frankfurt"}, ".region", 'must be an AWS region such as "us-east-1"'),
        ("aws-cloudhsm", {**CLOUD, "clusterId": "c-1"}, ".clusterId", 'such as "cluster-1a2b3c"'),
        ("aws-cloudhsm", {**CLOUD, "pin": "1234"}, ".pin", "unknown key"),
        ("aws-cloudhsm", {**CLOUD, "sessions": 1025}, ".sessions", "must be a whole number from 1 to 1024"),
        ("aws-cloudhsm", {**CLOUD, "adminCredentials": {"username": "u"}}, ".adminCredentials.password", "is required"),
        ("aws-cloudhsm", {**CLOUD, "mechanisms": {"wrap": 1}}, ".mechanisms.wrap", "unknown key"),
        (
            "aws-cloudhsm",
            {**CLOUD, "mechanisms": {"aesKeyWrapZeroPad": "0x123456789"}},
            ".mechanisms.aesKeyWrapZeroPad",
            "must be a mechanism number of 32 bits",
        ),
        ("aws-cloudhsm", {**CLOUD, "clusterHealthIntervalMs": -1}, ".clusterHealthIntervalMs", "from 0 to 86400000"),
        ("softhsm", {**SOFT, "adminCredentials": {}}, ".adminCredentials.pin", "is required"),
        ("yubihsm", {**YUBI, "adminCredentials": {"password": "1"}}, ".adminCredentials.authKeyId", "is required"),
        ("yubihsm", {**YUBI, "authKeyId": 65536}, ".authKeyId", "must be a whole number from 1 to 65535"),
        ("yubihsm", {**YUBI, "connector": "http://a debug"}, ".connector", "must be a connector such as"),
        ("yubihsm", {**YUBI, "connectors": []}, ".connectors", "must list 1 to 64 connectors"),
        ("yubihsm", {**YUBI, "connectors": ["http://a", "http://a"]}, ".connectors", "each once"),
        ("yubihsm", {**YUBI, "connectors": ["http://a", 1]}, ".connectors[1]", "must be a string"),
        ("yubihsm", {**YUBI, "connector": "http://a", "connectors": ["http://b"]}, "", "not both"),
        (
            "pkcs11",
            {"keyLabel": "k"},
            "",
            "must name the module: give modulePath, or say it in uri",
        ),
        ("pkcs11", {**OTHER, "uri": "http://x"}, ".uri", "must be a PKCS#11 URI"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:object=j"}, "", "keyLabel contradicts what uri says"),
        (
            "pkcs11",
            {**OTHER, "uri": "pkcs11:library-version=3"},
            ".uri",
            "not supported here; allowed: id, man",
        ),
        ("pkcs11", {**OTHER, "uri": "pkcs11:1234"}, ".uri", "has a part that is no attribute"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:token=50%"}, ".uri", "must be percent-encoded"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:token=a#b"}, ".uri", "must be percent-encoded"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:?module-name=../m"}, ".uri", "must be a file's name without folder"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:token=a;token=b"}, ".uri", "gives token twice"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:type=public"}, ".uri", "type must be private"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:slot-id=x"}, ".uri", "slot-id must be a decimal number"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:id="}, ".uri", "id must have 1 to 64 bytes"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:token=a b"}, ".uri", "must be percent-encoded"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:token=%00"}, ".uri", "token must be UTF-8 text"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:?pin-source=%7Ccat"}, ".uri", "pin-source cannot be a command"),
        ("pkcs11", {**OTHER, "uri": "pkcs11:?pin-source=pin"}, ".uri", "must be the absolute path of a file"),
        ("aws-kms", {}, ".keyId", "is required"),
        ("aws-kms", {"keyId": "k", "endpointUrl": "kms.example.com"}, ".endpointUrl", "must be an http(s) URL"),
        (
            "aws-kms",
            {"keyId": "k", "endpointUrl": "http://kms.example.com"},
            ".endpointUrl",
            "must begin with https://",
        ),
        ("aws-kms", {"keyId": "k", "endpointUrl": "https://user@host"}, ".endpointUrl", "must be an http(s) URL"),
        ("aws-kms", {"keyId": "k", "concurrency": 0}, ".concurrency", "must be a whole number from 1 to 1024"),
        ("aws-kms", {"keyId": "k", "connectTimeoutMs": 0}, ".connectTimeoutMs", "must be a whole number from 1"),
        (
            "aws-kms",
            {"keyId": "arn:aws:kms:eu-west-1:111122223333:alias/a", "region": "eu-west-2"},
            "",
            "region is eu-west-2, but the ARN in keyId says eu-west-1",
        ),
        ("ephemeral", {"algorithm": "ecdsa-p256"}, ".algorithm", "must be 'ed25519'"),
        ("ephemeral", {}, "!", 'own provider is of type "ephemeral"'),
    ],
)
def test_a_wrong_provider_is_refused_by_its_path(type_: str, config: dict[str, Any], path: str, problem: str) -> None:
    where, said = only(manager(type_, config))
    assert where == ("$.keyManager" if path == "!" else "$.keyManager.config" + path)
    assert problem in said


def test_all_faults_are_listed_at_once() -> None:
    document = manager(config={**SOFT, "sessions": 0, "slotId": "1"}, queueSize=0, maxCachSize=1, failover={"mode": 1})
    assert {fault.path for fault in faults(document)} == {
        "$.keyManager.config.sessions",
        "$.keyManager.config.slotId",
        "$.keyManager.queueSize",
        "$.keyManager.maxCachSize",
        "$.keyManager.failover.mode",
    }


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


def listed(*labels: str, **rules: Any) -> dict[str, Any]:
    """A key manager without a provider of its own: those of failover.primary, by token."""
    members = [{"type": "softhsm", "config": {**SOFT, "tokenLabel": label}} for label in labels]
    return {"keyManager": {"failover": {"primary": members, **rules}}}


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
def test_a_provider_that_is_nowhere_or_wrong_is_said_where_it_should_stand(
    document: dict[str, Any], path: str, problem: str
) -> None:
    found = {fault.path: fault.problem for fault in faults(document)}
    assert problem in found.pop(path)
    assert found.keys() <= {"$.keyManager.failover.primary", "$.keyManager.failover.secondary"}, "one fault, said once"


def test_the_state_file_lies_beside_the_audit_log_or_in_the_user_s_state_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    for rules, path in (
        ({}, "/var/state/hsmcore/hsmcore-state.db"),
        ({"auditLogFile": "audit/audit.log"}, "audit/hsmcore-state.db"),
        ({"auditLogFile": "audit/audit.log", "stateFile": "/s.db"}, "/s.db"),
    ):
        assert load(manager(**rules)).key_manager.state_path == Path(path)
    monkeypatch.delenv("XDG_STATE_HOME")
    assert load(manager()).key_manager.state_path == Path.home() / ".local/state/hsmcore/hsmcore-state.db"


def test_a_fault_in_the_cache_size_is_the_only_one() -> None:
    # singleFlight's default depends on it, and must not be reported as a second fault.
    assert only(manager(maxCacheSize="2"))[0] == "$.keyManager.maxCacheSize"


# ---- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "path", "problem"),
    [
        ({}, "$.keyManager", "is required"),
        ({"sequencer": {}}, "$.sequencer.keyManager", "is required"),
        ({"sequencer": []}, "$.sequencer", "must be an object"),
        ({"keyManager": []}, "$.keyManager", "must be an object; a list was given"),
        ({"keyManager": {}}, "$.keyManager.type", "is required"),
        ({"keyManager": {"type": "SoftHSM"}}, "$.keyManager.type", 'did you mean "softhsm"?'),
        ({"keyManager": {"type": None}}, "$.keyManager.type", "null was given"),
        ({"sequencer": manager(), "keyManager": {}}, "$.keyManager", "unknown key beside sequencer"),
        (5, "$", "must be a dict, a path or a Config, not a int"),
        (None, "$", "not a NoneType"),
        (b"hsm.json", "$", "not a bytes"),
        (SOFTHSM, "$", "is JSON text; give a dict, or the path of a file"),
        ("no\0file", "$", "the path holds a NUL character"),
    ],
)
def test_a_document_of_the_wrong_shape_is_refused(document: object, path: str, problem: str) -> None:
    where, said = only(document)
    assert where == path
    assert problem in said


def test_a_misspelt_key_manager_is_recognized() -> None:
    found = {fault.path: fault.problem for fault in faults({"keymanager": {}})}
    assert found == {"$.keyManager": "is required", "$.keymanager": 'unknown key; did you mean "keyManager"?'}


def test_a_key_that_is_no_string_is_refused() -> None:
    document = manager()
    document["keyManager"][1] = 2
    path, problem = only(document)
    assert path.startswith("$.keyManager")
    assert "key" in problem


@pytest.mark.parametrize(
    ("text", "path", "problem"),
    [
        (b'{"keyManager": {\n  "type": softhsm}}', "$", "not JSON at line 2, column 11: Expecting value"),
        (b"", "$", "not JSON at line 1, column 1"),
        (b'{"a": "\xff"}', "$", "the file is not UTF-8 (byte 7)"),
        (b'{"a": NaN}', "$", "NaN, Infinity and numbers of thousands of digits are not allowed"),
        (b'{"a": ' + b"9" * 5000 + b"}", "$", "numbers of thousands of digits"),
        (b'{"a": [{"b": 1, "b": 2}]}', "$.a[0].b", "is given more than once"),
        (b"[" * 100_000, "$", "the document is nested too deeply"),
        (b"[]", "$", "must be an object"),
        (b" " * ((4 << 20) + 1), "$", "the file is longer than"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text: bytes, path: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "hsm.json"
    file.write_bytes(text)
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert caught.value.path == path
    assert problem in str(caught.value)
    assert f"configuration {file}" in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for place, reason in ((tmp_path / "absent.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigurationError, match=reason) as caught:
            load(place)
        assert str(place) in str(caught.value)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(ANY_JSON)
def test_any_json_gives_a_configuration_or_a_configuration_error(value: Any) -> None:
    for document in ({"keyManager": value}, {"sequencer": value}, manager("softhsm", value), manager(failover=value)):
        with suppress(ConfigurationError):
            assert isinstance(load(document), Config)


@settings(deadline=None)
@given(st.data())
def test_any_value_in_any_place_gives_a_configuration_or_an_error_there(data: st.DataObject) -> None:
    document = everything()
    place, target = data.draw(st.sampled_from([pair for pair in objects(document) if pair[1]]))
    key = data.draw(st.sampled_from(sorted(target)))
    odd: st.SearchStrategy[Any] = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
    )
    target[key] = data.draw(odd)
    found: tuple[ConfigFault, ...] = ()
    try:
        load(document)
    except ConfigurationError as error:
        found = error.faults
    where = child_path(place, key)
    # At the value itself, inside it, or at an object that holds it and contradicts itself now.
    assert all(fault.path.startswith(where) or where.startswith(fault.path) or place in fault.path for fault in found)


# ---- providers -------------------------------------------------------------------------------------------------------


def test_a_uri_says_what_keys_could_have_said(tmp_path: Path) -> None:
    uri = (
        "pkcs11:token=My%20Token;serial=0123;slot-id=7;object=k%C3%BC;id=%01%ff;type=private"
        "?module-path=/usr/lib/m.so&pin-source=file:/run/pin"
    )
    config = load(manager("pkcs11", {"uri": uri}))
    settings = config.key_manager.config
    assert isinstance(settings, GenericPkcs11Settings)
    assert (settings.module_path, settings.quirks) == ("/usr/lib/m.so", None)
    assert (settings.token_label, settings.token_serial, settings.slot_id) == ("My Token", "0123", 7)
    assert (settings.key_label, settings.key_id, settings.key_id_bytes) == ("kü", "01ff", b"\x01\xff")
    assert settings.pin == Secret.file("/run/pin")
    assert settings.pin.where == "$.keyManager.config.uri"
    assert config.key_manager.name == "pkcs11:My Token"


def test_a_uri_and_keys_may_agree() -> None:
    uri = "pkcs11:object=k;id=%ab?module-path=/m.so&pin-source=/run/pin"
    same = {"keyLabel": "k", "keyId": "AB", "modulePath": "/m.so", "pin": {"file": "/run/pin"}}
    load(manager("pkcs11", {"uri": uri, **same}))
    for key, other in {"keyLabel": "l", "keyId": "ac", "modulePath": "/n.so", "pin": {"file": "/x"}}.items():
        assert only(manager("pkcs11", {"uri": uri, key: other})) == (
            "$.keyManager.config",
            f"{key} contradicts what uri says",
        )


def test_a_pin_in_a_uri_is_taken_out_of_it() -> None:
    uri = "pkcs11:object=k?pin-value=zq%2DPIN&module-path=/m.so"
    settings = load(manager("pkcs11", {"uri": uri})).key_manager.config
    assert isinstance(settings, GenericPkcs11Settings)
    assert settings.uri == "pkcs11:object=k?module-path=/m.so"
    assert bytes(settings.resolve_pin() or b"") == b"zq-PIN"


@pytest.mark.parametrize(
    ("given_", "number"), [(262178, 262178), ("262178", 262178), ("0x40022", 262178), ("0X40022", 262178), (0, 0)]
)
def test_a_key_handle_may_be_written_in_several_ways(given_: object, number: int) -> None:
    settings = load(manager("aws-cloudhsm", {**CLOUD, "keyHandle": given_})).key_manager.config
    assert isinstance(settings, AwsCloudHsmSettings)
    assert settings.key_handle_number() == number


def test_an_ephemeral_primary_needs_consent() -> None:
    settings = load(manager("ephemeral", {"allowEphemeralPrimary": True})).key_manager.config
    assert isinstance(settings, EphemeralSettings)
    assert settings.algorithm == "ed25519"


def test_a_pinned_public_key_is_bytes() -> None:
    settings = load(manager(config={**SOFT, "publicKey": "AB" * 32})).key_manager.config
    assert isinstance(settings, SoftHsmSettings)
    assert settings.public_key_bytes == b"\xab" * 32


def test_loading_leaves_the_document_as_it_was() -> None:
    document = everything()
    before = copy.deepcopy(document)
    load(document)
    assert document == before
