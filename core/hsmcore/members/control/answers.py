"""How a child answers the process that started it (process.py), whatever it is asked."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import IO, Any

import orjson

from hsmcore.errors import HsmError, InternalError
from hsmcore.members.control.wire import error_to_json

Work = Callable[[str, Any, list[bytearray]], Any]
"""Does what a request asks for, by its name, arguments and secrets. Returns what JSON can carry."""


def respond(requests: io.FileIO, answers: IO[bytes], work: Work) -> None:
    """Answer each line of `requests` with one of `answers`, until the last or the request to close. The secrets of a
    request follow it on the same stream, and are wiped when it is answered."""
    while line := requests.readline():
        request = orjson.loads(line)
        call = request.pop("call")
        if call == "close":
            return
        try:
            answer: dict[str, Any] = {"result": _done(requests, work, call, **request)}
        except HsmError as error:
            answer = {"error": error_to_json(error)}
        except Exception as error:  # noqa: BLE001  # the parent gets every error
            answer = {"error": error_to_json(InternalError(f"{call}: {type(error).__name__}: {error}"))}
        send(answers, answer)


def _done(requests: io.FileIO, work: Work, call: str, arguments: Any, secrets: list[int]) -> Any:
    given = [_read_exactly(requests, size) for size in secrets]
    try:
        return work(call, arguments, given)
    finally:
        for secret in given:
            secret[:] = bytes(len(secret))


def send(answers: IO[bytes], answer: Mapping[str, Any]) -> None:
    """Write an answer, or a note."""
    answers.write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))
    answers.flush()


def _read_exactly(requests: io.FileIO, size: int) -> bytearray:
    """The next `size` bytes, straight into memory that the caller wipes."""
    data = bytearray(size)
    read = 0
    with memoryview(data) as view:
        while read < size:
            count = requests.readinto(view[read:])
            if not count:
                raise EOFError("the input ended within a secret")
            read += count
    return data
