"""What a keyRotation or notices block may not say."""

from __future__ import annotations

import pytest

from hsmcore.config import load
from hsmcore.errors import ConfigurationError

KEY = "3d" * 32
ALICE = {"name": "alice", "publicKey": KEY}


def loaded(rotation=None, **rules):
    provider = {"type": "softhsm", "config": {"tokenLabel": "t", "pin": {"env": "PIN"}, "keyLabel": "k"}}
    return load({"keyManager": {**provider, "keyRotation": rotation or {}, **rules}})


@pytest.mark.parametrize(
    ("rotation", "where", "says"),
    [
        ({"intervalDays": 2, "overlapDays": 3}, "keyRotation", "longer than intervalDays"),
        ({"timeZone": "Europe/Zurch"}, "keyRotation.timeZone", "Europe/Zurich"),
        ({"rotationTime": "24:00:00"}, "keyRotation.rotationTime", "HH:MM:SS"),
        ({"rotationTime": "0:00:00"}, "keyRotation.rotationTime", "HH:MM:SS"),
        ({"backupEnabled": True}, "keyRotation", "backupLocation is missing"),
        ({"backupLocation": "ftp://x"}, "keyRotation.backupLocation", "s3://"),
        ({"backupEndpointUrl": "http://s3.example"}, "keyRotation.backupEndpointUrl", "https"),
        ({"backupPolicy": "maybe"}, "keyRotation.backupPolicy", "require"),
        ({"keyCeremony": {"recoveryPublicKey": KEY}}, "keyRotation", "backupEnabled is false"),
        ({"keyCeremony": {"recoveryPublicKey": "aa"}}, "keyRotation.keyCeremony.recoveryPublicKey", "32 bytes"),
        ({"approvals": 1}, "keyRotation", "approvers names 0"),
        ({"approvals": 2, "approvers": [ALICE, ALICE]}, "keyRotation", "different names"),
        (
            {"approvals": 2, "approvers": [ALICE, ALICE | {"name": "bob", "publicKey": KEY.upper()}]},
            "keyRotation",
            "different publicKeys",
        ),
        ({"approvers": [ALICE | {"totp": {"env": "CODES"}}]}, "keyRotation.approvers[0]", "Name publicKey instead"),
        ({"approvers": [{"name": "x", "totp": "JBSWY3DP"}]}, "keyRotation.approvers[0]", "`hsmcore rotate approve`"),
        ({"approvers": [{"name": "x"}]}, "keyRotation.approvers[0].publicKey", "is required"),
        ({"destroyAfterDays": -1}, "keyRotation.destroyAfterDays", "whole number"),
    ],
)
def test_it_is_refused_with_its_place(rotation, where, says):
    with pytest.raises(ConfigurationError) as caught:
        loaded(rotation)
    assert caught.value.path == f"$.keyManager.{where}"
    assert says in str(caught.value)
    assert "JBSWY3DP" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "label", "key_id"),
    [
        ({"tokenLabel": "t"}, "hsmcore-drill", None),
        ({"tokenLabel": "t", "keyId": "02"}, None, "02"),
        ({"uri": "pkcs11:token=t"}, "hsmcore-drill", None),
        ({"uri": "pkcs11:token=t;object=mine"}, "mine", None),
        ({"uri": "pkcs11:token=t;id=%02"}, None, "02"),
    ],
)
def test_a_token_for_drills_need_name_no_key_and_is_given_no_second_name(settings, label, key_id):
    common = {"modulePath": "/none.so", "pin": {"env": "NONE"}}
    rules = loaded({"drill": {"type": "pkcs11", "config": common | settings}}).key_manager.key_rotation
    drill = rules.drill.config
    assert (drill.key_label, drill.key_id) == (label, key_id)


def test_notices_need_a_target_and_show_none():
    with pytest.raises(ConfigurationError, match="at least one target"):
        loaded(notices={"targets": []})
    config = loaded(notices={"targets": ["jsons://u:hunter2@127.0.0.1:9/", {"env": "MAIL_URL"}]})
    assert "hunter2" not in repr(config) + str(config.redacted())
    assert "MAIL_URL" in config.secret_variables


@pytest.mark.parametrize("place", ["s3://bucket/keys", "/var/backups"])
def test_credentials_of_an_object_store_are_hidden_from_children(place):
    config = loaded({"enabled": True, "intervalDays": 90, "backupEnabled": True, "backupLocation": place})
    assert ("AWS_SECRET_ACCESS_KEY" in config.secret_variables) == place.startswith("s3:")
