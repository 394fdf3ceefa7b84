"""Files of an audit log, as another writer of its folder may leave them: a log whose records were changed is never
called whole, and whatever the files hold, the verification ends with a report."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.fuzz.engine import main
from tests.support.audit_logs import keys_of, write_log

from hsmcore.audit.check.trust import Trust
from hsmcore.audit.check.verify import verify

_FOLDER = tempfile.TemporaryDirectory(prefix="hsmcore-fuzz-")
_LOG = asyncio.run(write_log(Path(_FOLDER.name) / "audit.log", 260))
_TRUST = Trust(keys=keys_of(_LOG))
_FILES = sorted(
    path for path in Path(_FOLDER.name).rglob("*") if path.is_file() and path.suffix not in (".key", ".lock")
)
_HEAD = 4
"""Bytes before what is written: the file, how, and where (two bytes)."""
_EVIDENCE = (".log", ".zst", ".jsonl")


def seeds() -> list[bytes]:
    """Each file, written over, inserted into and cut off, at its beginning and in its middle."""
    ways = ((0, b"\0"), (0, b"9"), (1, b"{}\n"), (2, b""))
    return [bytes((file, how, 0, at)) + text for file in range(len(_FILES)) for how, text in ways for at in (0, 128)]


def one(data: bytes) -> str:
    """Change a file, and verify the log."""
    if len(data) < _HEAD:
        return "short"
    path = _FILES[data[0] % len(_FILES)]
    whole = path.read_bytes()
    at = int.from_bytes(data[2:_HEAD], "little") * len(whole) >> 16
    text = data[_HEAD:]
    behind = {0: whole[at + len(text) :], 1: whole[at:]}.get(data[1] % 3, b"")
    changed = whole[:at] + text + behind
    path.write_bytes(changed)
    try:
        report = verify(_LOG, _TRUST)
    except OSError as error:
        return f"{path.name} {error}"
    finally:
        path.write_bytes(whole)
    assert changed == whole or path.suffix not in _EVIDENCE or report.status == "failed", (path.name, report.as_dict())
    return f"{path.suffix} {','.join(sorted({finding.kind for finding in report.findings}))}"


if __name__ == "__main__":
    main(seeds, one)
