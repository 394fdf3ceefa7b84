"""Settings of providers: PKCS#11 URIs, key handles, pinned public keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.support.configs import CLOUD, SOFT, manager, only
from tests.support.paths import ROOT

from hsmcore.config import GenericPkcs11Settings, Secret, load
from hsmcore.config.registry import BUILT_IN, descriptor_of
from hsmcore.providers.cloudhsm.settings import AwsCloudHsmSettings
from hsmcore.providers.ephemeral.settings import EphemeralSettings
from hsmcore.providers.softhsm.settings import SoftHsmSettings


def test_a_uri_sets_the_same_settings_as_keys(tmp_path: Path) -> None:
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


def test_credentials_for_kms_are_hidden_from_children() -> None:
    config = load(manager("softhsm", SOFT))
    assert "AWS_SECRET_ACCESS_KEY" not in config.secret_variables
    assert "AWS_SECRET_ACCESS_KEY" in load(manager("aws-kms", {"keyId": "alias/a"})).secret_variables


def test_what_stands_above_the_members_names_no_provider() -> None:
    """docs/ARCHITECTURE.md promises it. A quirk or a known issue may have a provider's name, a key manager not."""
    types = [name for name in BUILT_IN if name != "pkcs11"]
    settings = [descriptor_of(name).settings.__name__ for name in types]
    word = re.compile(rf'\b({"|".join(settings)})\b|"({"|".join(types)})"')
    rooms = ("failover", "fleet", "gateway", "handover", "manager", "metrics", "policy", "rotation", "serve")
    files = [path for room in rooms for path in (ROOT / "core" / "hsmcore" / room).rglob("*.py")]
    assert len(files) > 100
    assert {path.name: found[0] for path in files if (found := word.search(path.read_text()))} == {}
