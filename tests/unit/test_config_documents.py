"""Documents of the wrong shape, unknown keys, and any JSON at all."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.configs import SOFTHSM, everything, faults, known_keys, manager, objects, only

from hsmcore.config import Config, load
from hsmcore.config.base import child_path
from hsmcore.errors import ConfigFault, ConfigurationError

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
        "unknown key; allowed here: audit, auditLogFile, batching, cacheNonDeterministic, cloudWatchLogs, config, "
    )


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
        (b"// what it is for\n{}", "$", "not JSON at line 1, column 1: JSON has no comments"),
        (b"# what it is for\n{}", "$", "not JSON at line 1, column 1: JSON has no comments"),
        (b'{"keyManager": /* mine */ {}}', "$", "JSON has no comments"),
        (b'{"keyManager": {},\n}', "$", "JSON has no comma behind the last member"),
        (b'{"keyManager": [1, ]}', "$", "JSON has no comma behind the last member"),
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
