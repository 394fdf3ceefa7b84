"""Faults of a configuration from pydantic's errors: the path, the given value, the allowed ones, the nearest one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from hsmcore.base.log import looks_secret
from hsmcore.config.base import CLASH, FAULT, HIDDEN, child_path
from hsmcore.errors import ConfigFault

_EXPECTED = {
    "missing": "is required",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "invalid_key": "is a key that is not a string",
}
_WHOLES = ("tuple_type", "model_type", "model_attributes_type", "dict_type")


def faults_of(
    error: ValidationError, document: object, path: str, known: Mapping[int, Sequence[str]]
) -> list[ConfigFault]:
    """Return the faults of `document`, which stands at `path`. `known` has the allowed keys of each of its objects, by
    identity (see Model)."""
    faults = []
    for item in error.errors(include_url=False):
        location = item["loc"]
        if item["type"] == "default_factory_not_called":
            continue  # follows from another fault, which is listed separately
        where = path
        for step in location:
            where = child_path(where, step)
        faults.append(ConfigFault(where, _problem(item, location, document, known)))
    return faults


def _problem(item: Any, location: tuple[str | int, ...], document: object, known: Mapping[int, Sequence[str]]) -> str:
    kind: str = item["type"]
    given: object = item["input"]
    if kind == "extra_forbidden":
        # The value of an unknown key may be a PIN under a mistyped name: it is never shown.
        return unknown_key(str(location[-1]), known.get(id(_parent(document, location)), ()))
    if kind == "missing":
        return _EXPECTED[kind]
    if kind == "literal_error":
        return _not_one_of(item["ctx"]["expected"], given, location)
    if kind == CLASH:
        return str(item["ctx"]["problem"])
    if kind in (FAULT, HIDDEN):
        text: str = item["ctx"]["problem"]
    else:
        text = _EXPECTED.get(kind, "is not valid here")
    # A string where an object belongs may be anything, also a whole document or a PIN.
    hidden = kind in (HIDDEN, *_WHOLES) or _secret_place(location)
    return f"{text}; {_given(given, hidden)}"


def unknown_key(key: str, allowed: Iterable[str]) -> str:
    """Return the problem of a key that does not exist here."""
    plain = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(key.replace("_", "").replace("-", "").lower(), plain, 1)
    if near:
        return f'unknown key; did you mean "{plain[near[0]]}"?'
    return "unknown key" + (f"; allowed here: {', '.join(sorted(plain.values()))}" if plain else "")


def _not_one_of(expected: str, given: object, location: tuple[str | int, ...]) -> str:
    text = f"must be {expected}"
    if isinstance(given, str):
        near = difflib.get_close_matches(given.lower(), expected.replace(" or ", ", ").replace("'", "").split(", "), 1)
        if near:
            return f'{text}; {_given(given, _secret_place(location))}; did you mean "{near[0]}"?'
    return f"{text}; {_given(given, _secret_place(location))}"


def _secret_place(location: tuple[str | int, ...]) -> bool:
    return any(isinstance(step, str) and looks_secret(step) for step in location)


def _given(value: object, hidden: bool) -> str:
    if value is None:
        return "null was given"
    if isinstance(value, bool):
        shown = "a boolean" if hidden else "true" if value else "false"
    elif isinstance(value, (int, float)):
        shown = "a number" if hidden else f"the number {value!r}" if len(repr(value)) <= 40 else "a very long number"
    elif isinstance(value, str):
        shown = "an empty string" if not value else "a string" if hidden or len(value) > 40 else f"the string {value!r}"
    elif isinstance(value, (list, tuple)):
        shown = "a list"
    elif isinstance(value, dict):
        shown = "an object"
    else:
        shown = f"a Python {type(value).__name__}"
    return f"{shown} was given"


def _parent(document: object, location: tuple[str | int, ...]) -> object:
    parent: Any = document
    for step in location[:-1]:
        try:
            parent = parent[step]
        except (KeyError, IndexError, TypeError):
            return None
    return parent
