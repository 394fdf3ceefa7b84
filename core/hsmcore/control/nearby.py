"""Hints when a token or key is not found: the ones that are there, and the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from hsmcore.control.records import TokenRecord, TokenSelector

_MOST = 5


def near_tokens(wanted: TokenSelector, present: Sequence[TokenRecord]) -> str:
    """A hint from the tokens that are there."""
    if not present:
        return "No initialized token is there: initialize one, or check that the module sees this user's tokens."
    labels = [token.label for token in present]
    near = difflib.get_close_matches(wanted.label or "", labels, 1, cutoff=0.7)
    listed = ", ".join(f"{token.label!r} (serial {token.serial})" for token in present[:_MOST])
    return (f'Did you mean tokenLabel "{near[0]}"? ' if near else "") + f"Present: {_cut(listed, len(present))}."


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
