"""One number in a configuration file, changed without a change of anything else."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Final, cast

from hsmcore.base.ownership import sync
from hsmcore.errors import ConfigFault, ConfigurationError

_STEP: Final = re.compile(r"\.(\w+)|\[(\d+)\]")
_SPACE: Final = re.compile(r"[\s\ufeff]*")
_VALUE: Final = json.JSONDecoder()


def with_sessions(text: str, provider: str, sessions: int) -> str:
    """Return a JSON document with `sessions` in the `config` of the provider at the JSON path `provider`, such as
    "$.keyManager.failover.primary[0]". Where there is none, it stands behind the last key."""
    steps: list[str | int] = [name or int(index) for name, index in _STEP.findall(f"{provider}.config")]
    at = _skip(text, 0)
    for step in steps:
        places = _members(text, at)
        at = places[step][1]
    places = _members(text, at)
    if "sessions" in places:
        _, start, end = places["sessions"]
        return f"{text[:start]}{sessions}{text[end:]}"
    key, _, end = max(places.values())
    gap = text[_last_mark(text, key) + 1 : key]
    return f'{text[:end]},{gap}"sessions": {sessions}{text[end:]}'


def _members(text: str, at: int) -> dict[str | int, tuple[int, int, int]]:
    """Return the members of the object or array at `at`: where the key (or item), the value and its end are."""
    found: dict[str | int, tuple[int, int, int]] = {}
    is_object = text[at] == "{"
    at = _skip(text, at + 1)
    while text[at] not in "]}":
        begin, key = at, cast("str | int", len(found))
        if is_object:
            key, at = _VALUE.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        end = _VALUE.raw_decode(text, at)[1]
        found[key] = (begin, at, end)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _last_mark(text: str, before: int) -> int:
    """Return the place of the comma or brace before a key."""
    return max(text.rfind(mark, 0, before) for mark in ",{")


def replace(path: Path, before: bytes, after: bytes, hint: str) -> None:
    """Replace a file's content, if it still is `before`, at once and durably; mode and owner stay. Raises
    ConfigurationError with `hint`."""
    path = path.resolve()
    problem = ""
    try:
        if path.read_bytes() != before:
            problem = "the file was changed while the device was measured; nothing is written"
        elif after != before:
            _replace(path, after)
    except OSError as error:
        problem = f"the file cannot be written: {error.strerror}"
    if problem:
        raise ConfigurationError.of([ConfigFault("$", problem)], source=f"configuration {path}", hint=hint)


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            is_, was = os.fstat(handle), path.stat()
            if (is_.st_uid, is_.st_gid) != (was.st_uid, was.st_gid):
                os.fchown(handle, was.st_uid, was.st_gid)
            os.fchmod(handle, stat.S_IMODE(was.st_mode))
            file.write(content)
            file.flush()
            os.fsync(handle)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    sync(path.parent)
