"""Errors of a batch: each says which message it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from hsmcore.errors import HsmError, InvalidMessageType

E = TypeVar("E", bound=BaseException)
T = TypeVar("T")


def of_batch(error: E, index: int) -> E:
    """Return an error that says, if it is an HsmError, which message of a batch it is about: in `index` and below its
    traceback."""
    if isinstance(error, HsmError):
        error.index = index
        error.__notes__ = [f"message {index} of the batch"]  # instead of its place in a part of the batch
    return error


def batch_of(messages: Iterable[T]) -> list[T]:
    """Return the messages of a batch as a list. Raises InvalidMessageType for what has none, as one message alone."""
    if isinstance(messages, bytes | bytearray | memoryview | str) or not isinstance(messages, Iterable):
        error = InvalidMessageType(
            f"a batch must be an iterable of messages, not {type(messages).__name__}",
            hint="Give a list of messages; one alone is signed by the method without _many.",
        )
        error.index = 0  # no message is good
        raise error
    return list(messages)


def each(check: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Return `check` of each item of a batch. Raises the error of the first one that it refuses, with its `index`."""
    found: list[T] = []
    try:
        found.extend(map(check, items))  # what was appended before an error stays
    except HsmError as error:
        of_batch(error, len(found))
        raise
    return found
