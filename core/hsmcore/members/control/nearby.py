"""Hints when a token or key is not found: the ones that are there, and the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

from hsmcore.members.control.advice import advice
from hsmcore.members.control.records import TokenRecord, TokenSelector

_MOST = 5


_KEYS: Final = {
    "label": "tokenLabel",
    "serial": "tokenSerial",
    "slot_id": "slotId",
    "manufacturer": "tokenManufacturer",
    "model": "tokenModel",
}
"""The selectors of a token, and the configuration's keys."""


def near_tokens(
    wanted: TokenSelector, present: Sequence[TokenRecord], module_path: str = "", module_args: str | None = None
) -> str:
    """A hint from the tokens that are there; without any, from the module."""
    if not present:
        where = advice("empty", module_path, module_args) or "Check that the module sees this user's tokens."
        return f"No initialized token is there: initialize one, or look where the module looks. {where}"
    listed = ", ".join(f"{token.label!r} (serial {token.serial})" for token in present[:_MOST])
    meant = _differing(wanted, present)
    if not meant:
        near = difflib.get_close_matches(wanted.label or "", [token.label for token in present], 1, cutoff=0.7)
        meant = f'tokenLabel "{near[0]}"' if near else ""
    return (f"Did you mean {meant}? " if meant else "") + f"Present: {_cut(listed, len(present))}."


def _differing(wanted: TokenSelector, present: Sequence[TokenRecord]) -> str:
    """The settings that would select the token that matches most; "" if no token matches in any setting."""
    given = [name for name in _KEYS if getattr(wanted, name) is not None]
    wrong = [[name for name in given if getattr(wanted, name) != getattr(token, name)] for token in present]
    least = min(range(len(present)), key=lambda index: len(wrong[index]))
    if not 0 < len(wrong[least]) < len(given):
        return ""
    values = {name: getattr(present[least], name) for name in wrong[least]}
    said = {name: value if isinstance(value, int) else f'"{value}"' for name, value in values.items()}
    return " and ".join(f"{_KEYS[name]} {value}" for name, value in said.items())


def near_keys(label: str | None, key_id: str | None, present: Iterable[tuple[str, str]]) -> str:
    """A hint from the (label, id) of the private keys that are there."""
    keys = list(present)
    if not keys:
        return (
            "The token shows no private key at all: make one with `hsmcore keys generate`, or check whose token it is."
        )
    near = difflib.get_close_matches(label or "", [name for name, _ in keys], 1, cutoff=0.7)
    same_id = [name for name, identity in keys if key_id is not None and identity == key_id.lower()]
    meant = ""
    if same_id and label is not None:
        meant = f"A key with that id has the label {same_id[0]!r}. "
    elif near and near[0] == label:
        meant = f"A key with that label has the id {next(i for n, i in keys if n == label)}. "
    elif near:
        meant = f'Did you mean keyLabel "{near[0]}"? '
    listed = ", ".join(f"{name!r} (id {identity or '-'})" for name, identity in keys[:_MOST])
    return f"{meant}Present: {_cut(listed, len(keys))}."


def _cut(listed: str, count: int) -> str:
    return listed if count <= _MOST else f"{listed} and {count - _MOST} more"
