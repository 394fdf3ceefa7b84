"""PKCS#11 URIs (RFC 7512): built, parsed, and refused. Whatever is given, a PIN in it is in no error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from hsmcore.base.uri import build_uri
from hsmcore.config import GenericPkcs11Settings, Secret, load
from hsmcore.config.pkcs11 import locate_module
from hsmcore.config.uri import parse_uri
from hsmcore.errors import ConfigurationError

printable = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1, max_size=40)
texts = printable.filter(str.isprintable)
ids = st.binary(min_size=1, max_size=64)
slots = st.integers(0, 2**63 - 1)
PATH: dict[str, Any] = {
    "token": texts,
    "serial": texts,
    "manufacturer": texts,
    "model": texts,
    "slot-id": slots,
    "object": texts,
    "id": ids,
    "type": st.just("private"),
}
FIELD = {
    "token": "token_label",
    "serial": "token_serial",
    "manufacturer": "token_manufacturer",
    "model": "token_model",
    "slot-id": "slot_id",
    "object": "key_label",
}


def settings_of(config: dict[str, Any]) -> GenericPkcs11Settings:
    settings = load({"keyManager": {"type": "pkcs11", "config": config}}).key_manager.config
    assert isinstance(settings, GenericPkcs11Settings)
    return settings


@given(st.fixed_dictionaries({}, optional=PATH), st.one_of(st.none(), texts.map(lambda text: f"/{text}")))
def test_what_was_built_is_parsed(path, module):
    parts = parse_uri(build_uri(path, {"module-path": module}))
    for name, field in FIELD.items():
        assert getattr(parts, field) == path.get(name)
    assert parts.key_id == (path["id"].hex() if "id" in path else None)
    assert parts.module_path == module
    assert parse_uri(parts.text) == parts


@given(texts)
def test_a_pin_value_survives_and_is_in_nothing_that_is_shown(pin):
    parts = parse_uri(build_uri({"object": "k"}, {"pin-value": pin, "module-path": "/m.so"}))
    assert parts.pin == Secret.plain(pin)
    assert parts.text == "pkcs11:object=k?module-path=/m.so"
    assert "pin-value" not in repr(parts)


@given(st.text(max_size=60))
@example("pkcs11:")
@example("pkcs11:?&&")
@example("pkcs11:;;;")
@example("pkcs11:id=%")
@example("pkcs11:id=%4")
@example("pkcs11:token=%ff")
@example("pkcs11:slot-id=٣")
@example("PKCS11:object=k")
def test_whatever_is_given_parses_or_is_refused(text):
    for uri in (text, f"pkcs11:{text}", f"pkcs11:object=k?{text}"):
        try:
            parts = parse_uri(uri)
        except PydanticCustomError:
            continue
        assert parse_uri(parts.text).key_label == parts.key_label


def refusal(uri: str) -> str:
    """What a URI is refused with."""
    with pytest.raises(PydanticCustomError) as caught:
        parse_uri(uri)
    return str(caught.value)


@given(st.binary(min_size=4, max_size=12).map(bytes.hex))
@pytest.mark.parametrize(
    "form",
    [
        "pkcs11:{}",
        "{}:object=k",
        "pkcs11:object=k;{}=1",
        "pkcs11:object=k?pin-value=1%&{}=1",
        "pkcs11:object=k?pin-value=%{}%",
        "pkcs11:object=k?pin-value=12&{}=1",
        "pkcs11:object=k?pin-value=12&{}",
        "pkcs11:object=k?{0}=1&{0}=2",
        "pkcs11:object=k?{}=%",
        "pkcs11:object=k?pin-source={}",
        "pkcs11:object=k?pin-source=/{0}&pin-value={0}",
        "pkcs11:slot-id=a{}",
        "pkcs11:type={}",
        "pkcs11:?module-name=/{}",
    ],
)
def test_no_refusal_repeats_what_it_refuses(form, secret):
    assert secret not in refusal(form.format(secret))


@pytest.mark.parametrize("name", ["token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type"])
def test_an_attribute_of_the_path_may_be_given_once(name):
    value = "private" if name == "type" else "1"
    parse_uri(f"pkcs11:{name}={value}")
    with pytest.raises(PydanticCustomError, match=f"gives {name} twice"):
        parse_uri(f"pkcs11:{name}={value};{name}={value}")


@pytest.mark.parametrize("name", ["module-path", "module-name", "pin-source", "pin-value", "x-vendor"])
def test_an_attribute_of_the_query_may_be_given_once(name):
    value = "/m" if name != "module-name" else "m"
    parse_uri(f"pkcs11:?{name}={value}")
    shown = "an attribute" if name == "x-vendor" else name
    with pytest.raises(PydanticCustomError, match=f"gives {shown} twice"):
        parse_uri(f"pkcs11:?{name}={value}&{name}={value}")


@pytest.mark.parametrize(
    "path",
    ["library-version=3", "library-manufacturer=m", "slot-description=s", "slot-manufacturer=m", "x-y=z", "Token=a"],
)
def test_an_unknown_attribute_of_the_path_matches_nothing(path):
    with pytest.raises(PydanticCustomError, match="not supported here"):
        parse_uri(f"pkcs11:token=a;{path}")


def test_an_unknown_attribute_of_the_query_is_ignored():
    parts = parse_uri("pkcs11:object=k?x-vendor=1&module-path=/m.so&other=2")
    assert (parts.ignored, parts.module_path) == (2, "/m.so")


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("/run/pin", "/run/pin"),
        ("file:/run/pin", "/run/pin"),
        ("file:///run/pin", "/run/pin"),
        ("file://localhost/run/a%20b", "/run/a b"),
        ("pin", None),
        ("file:pin", None),
        ("file://elsewhere/pin", None),
        ("%7c/bin/cat", None),
        ("https://h/pin", None),
        ("env:HOME", None),
        ("", None),
    ],
)
def test_pin_source_is_a_file_and_nothing_else(source, path):
    uri = f"pkcs11:object=k?pin-source={source}"
    if path is None:
        with pytest.raises(PydanticCustomError):
            parse_uri(uri)
    else:
        assert parse_uri(uri).pin == Secret.file(path)


def test_a_module_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "libvendor.so").touch()
    (tmp_path / "other").touch()
    assert locate_module("vendor", str(tmp_path)) == str(tmp_path / "libvendor.so")
    assert locate_module("libvendor.so", str(tmp_path)) == str(tmp_path / "libvendor.so")
    assert locate_module("other", str(tmp_path)) == str(tmp_path / "other")
    assert locate_module("absent", str(tmp_path)) == str(tmp_path / "libabsent.so")
    uri = f"pkcs11:object=k?module-path={tmp_path}&module-name=vendor"
    assert settings_of({"uri": uri}).module_path == str(tmp_path / "libvendor.so")
    # A path that is a file is the module, whatever it is called.
    uri = f"pkcs11:object=k?module-path={tmp_path}/other&module-name=vendor"
    assert settings_of({"uri": uri}).module_path == str(tmp_path / "other")


def test_manufacturer_and_model_are_settings_too() -> None:
    settings = settings_of({"uri": "pkcs11:object=k;manufacturer=A%20B;model=C?module-path=/m.so"})
    assert (settings.token_manufacturer, settings.token_model) == ("A B", "C")
    with pytest.raises(ConfigurationError, match="tokenModel contradicts what uri says"):
        settings_of({"uri": "pkcs11:object=k;model=C?module-path=/m.so", "tokenModel": "D"})
