"""The output of the command line: results on standard output, errors with the next step on standard error."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import typer

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
        if name.endswith(("Ns", "_ns")) and isinstance(value, int) and value > _LONGEST_DURATION_NS:
            name, value = name.removesuffix("Ns").removesuffix("_ns"), when(value)  # noqa: PLW2901
        print(f"{plain(name):<{width}}  {plain(_shown(value))}")


View = Callable[[Any], object]
"""How people see a document that programs get as JSON: it prints it."""


def fields(columns: str) -> View:
    """Return a view of some values of a document: "label place, label place:form", as of `table`."""
    return lambda document: print_fields(dict(_cells(columns, document)))


def table(columns: str, of: str = "") -> View:
    """Return a view of a list of records, or of the one that a document has as `of`, with columns such as
    "HEADER key, NEXT HEADER outer.inner:form". A form is one of `_FORMS`, or the word for a value that is missing; what
    ends in Ns is a time."""

    def print_records(document: Any) -> None:
        header = [label for label, _ in _cells(columns, {})]
        records = document[of] if of else document
        print_table(header, [[value for _, value in _cells(columns, record)] for record in records])

    return print_records


def when(time_ns: int | None, timespec: str = "seconds") -> str | None:
    """Return Unix nanoseconds as ISO 8601 in UTC; None for None."""
    return None if time_ns is None else datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec=timespec)


_FORMS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "ago": lambda seconds: None if seconds is None else f"{seconds:.0f} s ago",
    "ms": lambda time_ns: when(time_ns, "milliseconds"),
    "position": lambda number: None if number is None or number < 0 else number,
}


def _cells(columns: str, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the label of each column and its value in a record."""
    for column in columns.split(", "):
        label, _, place = column.rpartition(" ")
        place, _, form = place.partition(":")
        value: Any = record
        for name in place.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if form in _FORMS:
            value = _FORMS[form](value)
        elif place.endswith(("Ns", "_ns")):
            value = when(value)
        yield label or place, _shown(form if form not in _FORMS and value in (None, "") else value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        value = [f"{name} {_shown(one)}" for name, one in value.items()]
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(_shown, value))
    return "-" if value in (None, "") else str(value)


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


def fail(problems: Iterable[str], next_step: str = "") -> None:
    """Print on standard error what is wrong. Raises typer.Exit if there is anything."""
    code = 0
    for one in problems:
        problem(one, next_step)
        code = FAILED
    if code:
        raise typer.Exit(code)


def report(error: HsmError, otherwise: str, *, as_json: bool, code: int | None = None) -> int:
    """Print an expected error and return the exit code. `otherwise`: the next step if the error has no hint."""
    what = str(error).removesuffix(error.hint).rstrip()
    code = code or (BAD_USAGE if isinstance(error, ConfigurationError) else FAILED)
    more: dict[str, Any] = {} if error.ckr is None else {"ckr": error.ckr, "ckrName": error.ckr_name}
    if isinstance(error, ConfigurationError):
        more["faults"] = [{"path": item.path, "problem": item.problem} for item in error.faults]
    fault = _fault(type(error).__name__, what, error.hint or otherwise, code) | {"retryable": error.retryable}
    return _report(fault | more, as_json=as_json)


def report_system(error: OSError, *, as_json: bool) -> int:
    """Print what the operating system refused and return the exit code."""
    reason = error.strerror or type(error).__name__
    what = reason if error.filename is None else f"{error.filename}: {reason}"
    hint = _SYSTEM_HINTS.get(error.errno or 0, "HSMCORE_LOG=DEBUG shows where it happened.")
    return _report(_fault("SystemFailure", what, hint, FAILED), as_json=as_json)


def report_usage(what: str, next_step: str, *, as_json: bool) -> int:
    """Print that the command line itself is wrong and return the exit code."""
    return _report(_fault("UsageError", what, next_step, BAD_USAGE), as_json=as_json)


def _fault(kind: str, what: str, hint: str, code: int) -> dict[str, Any]:
    return {"type": kind, "message": what, "hint": hint, "retryable": False, "exitCode": code}


def _report(fault: Mapping[str, Any], *, as_json: bool) -> int:
    if as_json:
        import orjson

        with suppress(OSError):  # JSON escapes by itself
            print(orjson.dumps({"error": fault}).decode(), file=sys.stderr)
    else:
        problem(fault["message"], fault["hint"])
    code: int = fault["exitCode"]
    return code


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show progress on standard error while the block runs; it gets None if `quiet`, or if that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)
