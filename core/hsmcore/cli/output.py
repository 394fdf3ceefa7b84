"""The output of the command line: results on standard output, errors with the next step on standard error."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

from hsmcore.errors import ConfigurationError, HsmError, SecretUnavailable

FAILED: Final = 1
BAD_USAGE: Final = 2
DERIVED: Final = 3
"""Of `audit verify`: the records are whole and sealed; a file that is derived from them is wrong."""
NO_USE_AGAIN: Final = 78
"""EX_CONFIG of sysexits.h: a service's start has failed, and another attempt would fail likewise."""
INTERRUPTED: Final = 130


_LONGEST_DURATION_NS: Final = 10**17
"""Three years: what is longer is a time since 1970."""
_MINE: Final = "Run the command as the user that owns it: what `init` makes is its maker's alone."
_SYSTEM_HINTS: Final = {
    errno.EACCES: _MINE,
    errno.EPERM: _MINE,
    errno.ENOSPC: "Make room where the output or the files go.",
    errno.EROFS: "Name a folder that can be written.",
}


class BadUsage(Exception):
    """The command line is wrong in a way that its parser cannot detect; the text says how."""


class StartFailed(Exception):
    """A service cannot start for this error; its supervisor goes by the exit code."""

    def __init__(self, error: HsmError, code: int) -> None:
        super().__init__(str(error))
        self.error, self.code = error, code


@contextmanager
def starting() -> Iterator[None]:
    """Surround a service's start. Raises StartFailed, whose code says whether another attempt may mend it."""
    from hsmcore.base.log import prepare

    prepare(lasts=True)
    try:
        yield
    except HsmError as error:
        raise StartFailed(error, _code_of_start(error)) from error


def _code_of_start(error: HsmError) -> int:
    # A secret may be mounted late, or AWS be away. Another process may find the room or the lock that this one lacks.
    if isinstance(error, SecretUnavailable) or error.may_pass or error.error_class == "PROCESS_FATAL":
        return FAILED
    return BAD_USAGE if isinstance(error, ConfigurationError) else NO_USE_AGAIN


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    import orjson

    sys.stdout.write(orjson.dumps(value).decode() + "\n")


def plain(text: str) -> str:
    """Return a text without what a terminal would obey: tokens, databases and paths hold what others wrote."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell: nothing is cut off, in a pipe either."""
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print names and values, one pair a line; a time in nanoseconds as a time."""
    width = max(map(len, fields))
    for name, value in fields.items():
        shown: str | None = _shown(value)
        if name.endswith(("Ns", "_ns")) and isinstance(value, int) and value > _LONGEST_DURATION_NS:
            name, shown = name.removesuffix("Ns").removesuffix("_ns"), when(value)  # noqa: PLW2901
        print(f"{plain(name):<{width}}  {plain(shown or '-')}")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        value = [f"{name} {_shown(one)}" for name, one in value.items()]
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(_shown, value))
    return "-" if value in (None, "") else str(value)


def when(time_ns: int | None, timespec: str = "seconds") -> str | None:
    """Return Unix nanoseconds as ISO 8601 in UTC; None for None."""
    return None if time_ns is None else datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec=timespec)


def cells(record: Mapping[str, Any], *names: str) -> list[str]:
    """Return fields of a record as cells of a table: "-" for a missing value, a time for nanoseconds."""
    found = [when(record.get(name)) if name.endswith(("Ns", "_ns")) else record.get(name) for name in names]
    return ["-" if value is None else str(value) for value in found]


def note(text: str) -> None:
    """Print a line on standard error: for the terminal, not for the reader of a pipe. One that cannot be printed is
    dropped: the exit code says the rest."""
    with suppress(OSError):
        print("\n".join(map(plain, text.split("\n"))), file=sys.stderr)


def problem(what: str, next_step: str = "") -> None:
    """Print on standard error what is wrong, and the next step."""
    note(f"hsmcore: {what}")
    if next_step:
        note(f"  next: {next_step}")


def report(error: HsmError, otherwise: str, *, as_json: bool, code: int | None = None) -> int:
    """Print an expected error and return the exit code. `otherwise`: the next step if the error has no hint."""
    what = str(error).removesuffix(error.hint).rstrip()
    code = code or (BAD_USAGE if isinstance(error, ConfigurationError) else FAILED)
    fault: dict[str, Any] = {
        "type": type(error).__name__,
        "message": what,
        "hint": error.hint or otherwise,
        "retryable": error.retryable,
        "exitCode": code,
    }
    if error.ckr is not None:
        fault |= {"ckr": error.ckr, "ckrName": error.ckr_name}
    if isinstance(error, ConfigurationError):
        fault["faults"] = [{"path": item.path, "problem": item.problem} for item in error.faults]
    _print_error(fault, as_json=as_json)
    return code


def report_system(error: OSError, *, as_json: bool) -> int:
    """Print what the operating system refused and return the exit code."""
    reason = error.strerror or type(error).__name__
    what = reason if error.filename is None else f"{error.filename}: {reason}"
    hint = _SYSTEM_HINTS.get(error.errno or 0, "HSMCORE_LOG=DEBUG shows where it happened.")
    fault = {"type": "SystemFailure", "message": what, "hint": hint, "retryable": False, "exitCode": FAILED}
    _print_error(fault, as_json=as_json)
    return FAILED


def report_usage(what: str, next_step: str, *, as_json: bool) -> int:
    """Print that the command line itself is wrong and return the exit code."""
    fault = {"type": "UsageError", "message": what, "hint": next_step, "retryable": False, "exitCode": BAD_USAGE}
    _print_error(fault, as_json=as_json)
    return BAD_USAGE


def _print_error(fault: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        import orjson

        with suppress(OSError):  # JSON escapes by itself
            print(orjson.dumps({"error": fault}).decode(), file=sys.stderr)
    else:
        problem(fault["message"], fault["hint"])
