"""Standard output and error as they are given: in any encoding, closed, full, or with no reader."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Final

# What the commands print beyond ASCII, for a terminal or a file that cannot hold it.
_PLAIN: Final = {
    "✔": "+", "✘": "x", "–": "-", "—": "-", "→": "->", "…": "...", "·": "|", "×": "x", "µ": "u", "≥": ">=", "≤": "<=",
}  # fmt: skip
_ERRORS: Final = "hsmcore-plain"


def prepare() -> None:
    """Let the standard streams take any text: what their encoding lacks is written in ASCII. A stream that was closed
    takes it and drops it."""
    codecs.register_error(_ERRORS, _in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  # for good
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def silence_broken() -> None:
    """Drop what a standard stream cannot write: the interpreter would try again when it ends, and change the exit
    code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode() for one in lacking), error.end
