"""The verbs of the control plane on their way to a child process: every one of them, its secrets, hostile JSON."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Literal, get_args, get_origin, get_type_hints

import orjson
import pytest
from pkcs11.mechanisms import Mechanism

from hsmcore.errors import EngineClosed, HsmError, InternalError
from hsmcore.members import control
from hsmcore.members.control import child
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.keys import ListKeys
from hsmcore.members.control.quirks import KeyForm
from hsmcore.members.control.records import Deactivation, KeyRecord, TokenAccess, TokenRecord, TokenSelector
from hsmcore.members.control.sealed import ImportSealed
from hsmcore.members.control.verb import VERBS, Verb
from hsmcore.members.control.wire import pack, unpack

SECRET = "5ec12e75ec12e7aa"
EVERY = pytest.mark.parametrize(
    "kind", [VERBS[name] for name in sorted(VERBS)], ids=sorted(VERBS)
)  # in any order of imports
WRONG = [None, 7, 1.5, True, "zz", [], ["x"], {}, {"x": 1}]


def value_of(kind):
    """A value of a field's type that shows where it comes out again."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return inner[0]
    if origin in (list, Sequence):
        return [value_of(inner[0])]
    if origin is tuple:
        return tuple(map(value_of, inner))
    if inner:
        return value_of(inner[0])
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{field.name: value_of(hints[field.name]) for field in fields(kind)})
    known = {str: SECRET, bytes: bytes.fromhex(SECRET), bytearray: bytearray.fromhex(SECRET)}
    known |= {bool: True, int: 258, Mechanism: int.__new__(Mechanism, 0x8000_0001)}
    return known[kind]


def test_the_child_knows_them_all():
    modules = [import_module(f"hsmcore.members.control.{found.name}") for found in iter_modules(control.__path__)]
    kinds = {kind for module in modules for kind in vars(module).values() if _is_verb(kind)}
    program = "from hsmcore.members.control import child; print(*child.VERBS)"
    known = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert {kind.__name__ for kind in kinds} == set(known)


def _is_verb(kind):
    return isinstance(kind, type) and issubclass(kind, Verb) and kind is not Verb


@EVERY
def test_no_argument_is_in_a_verb_s_text(kind):
    verb = value_of(kind)
    for text in (repr(verb), str(verb), f"{verb}", repr([verb])):
        assert SECRET not in text.lower()
        assert repr(bytes.fromhex(SECRET))[2:-1] not in text


@EVERY
def test_a_verb_survives_the_way_and_its_secret_goes_another(kind):
    verb = value_of(kind)
    sent = orjson.loads(orjson.dumps(verb.to_json()))
    secrets = {field.name for field in fields(kind) if get_type_hints(kind)[field.name] is bytearray}
    assert sent.keys() == {field.name for field in fields(kind)} - secrets
    assert verb.secrets == [bytearray.fromhex(SECRET)] * len(secrets)
    assert kind.of_json(sent, verb.secrets) == verb


@EVERY
def test_arguments_of_another_type_are_refused(kind):
    verb = value_of(kind)
    good = orjson.loads(orjson.dumps(verb.to_json()))
    refused = (TypeError, ValueError)
    for wrong in (None, [], "x", {**good, "more": 1}):
        with pytest.raises(refused):
            kind.of_json(wrong, verb.secrets)
    with pytest.raises(refused):
        kind.of_json(good, [*verb.secrets, bytearray(3)])
    for name in good:
        with pytest.raises(refused):
            kind.of_json({other: value for other, value in good.items() if other != name}, verb.secrets)
        for wrong in WRONG:
            with suppress(*refused):  # else it is of the right type
                read = kind.of_json({**good, name: wrong}, verb.secrets)
                assert read.to_json()[name] == wrong
    for name in good:
        object.__setattr__(verb, name, object())
        with pytest.raises(refused):
            verb.to_json()


@pytest.mark.parametrize(
    "kind",
    [KeyRecord, TokenRecord, Deactivation, KeyForm, list[KeyRecord], tuple[KeyRecord, list[bytes]], str | None, int],
    ids=str,
)
def test_results_survive_the_way_and_others_are_refused(kind):
    value = value_of(kind)
    data = orjson.loads(orjson.dumps(pack(kind, value)))
    assert unpack(kind, data) == value
    for wrong in (1.5, ["x"], {"x": 1}, [[]]):
        with pytest.raises((TypeError, ValueError)):
            unpack(kind, wrong)


def answers_to(tmp_path, request, secret=b""):
    """What a child answers to one request and the secret that follows it."""
    sent = tmp_path / "requests"
    sent.write_bytes(orjson.dumps(request) + b"\n" + secret)
    answers = io.BytesIO()
    with io.FileIO(sent) as requests:
        child.serve(requests, answers)
    return [orjson.loads(line) for line in answers.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"call": "nonsense", "arguments": {}, "secrets": []}, "nonsense: KeyError"),
        ({"call": "ListKeys"}, "ListKeys: TypeError"),
        ({"call": "Destroy", "arguments": {"key_id": 7}, "secrets": []}, "a int is no str"),
        ({"call": "Destroy", "arguments": {"key_id": "00"}, "secrets": [2]}, "ValueError"),
        ({"call": "ImportSealed", "arguments": {}, "secrets": []}, "ImportSealed: TypeError"),
        ({"call": "ListKeys", "arguments": {}, "secrets": [], "more": 1}, "ListKeys: TypeError"),
        ({"call": "ListKeys", "arguments": {}, "secrets": []}, "the token is closed"),
    ],
)
def test_the_child_refuses_what_is_no_verb(tmp_path, request_, said):
    [answer] = answers_to(tmp_path, request_, b"x" * sum(request_.get("secrets", [])))
    assert said in answer["error"]["message"]
    assert answer["error"]["class"] in (InternalError.__name__, EngineClosed.__name__)


def test_the_child_wipes_a_secret_whatever_comes_of_it(tmp_path, monkeypatch):
    seen = []

    def fail(verb, admin):
        assert admin is None or isinstance(admin, TokenAdmin)
        seen.append((bytes(verb.recovery), verb.recovery))
        raise RuntimeError

    monkeypatch.setattr(ImportSealed, "run", fail)
    monkeypatch.setattr(ImportSealed, "needs_token", False)
    verb = value_of(ImportSealed)
    request = {"call": "ImportSealed", "arguments": verb.to_json(), "secrets": [len(one) for one in verb.secrets]}
    [answer] = answers_to(tmp_path, request, b"".join(verb.secrets))
    [(given, left)] = seen
    assert (given, left) == (bytes.fromhex(SECRET), bytearray(len(given)))
    assert answer["error"]["message"] == "ImportSealed: RuntimeError: "


@pytest.mark.parametrize(("times", "ckr", "works"), [(2, 0x05, True), (3, 0x06, False), (1, 0x30, False)])
def test_what_may_be_done_twice_is_tried_again_after_a_passing_error(monkeypatch, times, ckr, works):
    asked = []

    def run(_verb, _admin):
        asked.append(None)
        if len(asked) <= times:
            raise HsmError("busy with its files", status="TOKEN_LOST", ckr=ckr)
        return []

    monkeypatch.setattr(ListKeys, "run", run)
    admin = TokenAdmin(TokenAccess(module_path="none", token=TokenSelector()))
    if works:
        assert ListKeys().perform(admin) == []
    else:
        with pytest.raises(HsmError):
            ListKeys().perform(admin)
    assert len(asked) == (1 if ckr == 0x30 else 3)
