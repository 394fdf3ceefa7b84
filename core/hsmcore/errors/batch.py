"""Errors of a batch: each says which message it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from hsmcore.errors import HsmError

E = TypeVar("E", bound=BaseException)
T = TypeVar("T")


def of_batch(error: E, index: int) -> E:
    """Return an error that says, if it is an HsmError, which message of a batch it is about: in `index` and below its
    traceback."""
    if isinstance(error, HsmError):
        error.index = index
        error.__notes__ = [f"message {index} of the batch"]  # instead of its place in a part of the batch
    return error


def each(check: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Return `check` of each item of a batch. Raises the error of the first one that it refuses, with its `index`."""
    found: list[T] = []
    try:
        found.extend(map(check, items))  # what was appended before an error stays
    except HsmError as error:
        of_batch(error, len(found))
        raise
    return found
