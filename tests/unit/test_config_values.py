"""A wrong value is refused, and the fault names its JSON path."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.configs import CLOUD, OTHER, SOFT, YUBI, faults, manager, only


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
        ({"warmMicros": 500}, "", "warmMicros is gone: no thread"),
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


def test_a_fault_in_the_cache_size_is_the_only_one() -> None:
    # singleFlight's default depends on it, and must not be reported as a second fault.
    assert only(manager(maxCacheSize="2"))[0] == "$.keyManager.maxCacheSize"
