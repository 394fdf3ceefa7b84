"""What the command line prints: results on standard output, errors on standard error as what and what next."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from hsmcore.errors import ConfigurationError, HsmError

FAILED: Final = 1
BAD_USAGE: Final = 2
DERIVED: Final = 3
"""Of `audit verify`: the records are whole and sealed, a file that can be made again from them is not."""
INTERRUPTED: Final = 130


class BadUsage(Exception):
    """The command line is wrong in a way that its parser cannot see; the text says how."""


def print_json(value: Any) -> None:
    """One line."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be: nothing is cut off, also in a pipe."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_fields(fields: Mapping[str, Any]) -> None:
    """Names and values, one pair a line."""
    width = max(map(len, fields))
    words = {True: "yes", False: "no", None: "-"}
    for name, value in fields.items():
        print(f"{name:<{width}}  {words[value] if value is None or isinstance(value, bool) else value}")


def note(text: str) -> None:
    """For the person at the terminal, not for a pipe."""
    print(text, file=sys.stderr)


def report(error: HsmError, otherwise: str, *, as_json: bool) -> int:
    """Print an expected error; returns the exit code. `otherwise` is what to do if the error doesn't know."""
    what = str(error).removesuffix(error.hint).rstrip()
    code = BAD_USAGE if isinstance(error, ConfigurationError) else FAILED
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


def report_usage(what: str, next_step: str, *, as_json: bool) -> int:
    """Print that the command line itself is wrong; returns the exit code."""
    fault = {"type": "UsageError", "message": what, "hint": next_step, "retryable": False, "exitCode": BAD_USAGE}
    _print_error(fault, as_json=as_json)
    return BAD_USAGE


def _print_error(fault: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stderr.write(orjson.dumps({"error": fault}).decode() + "\n")
        return
    note(f"hsmcore: {fault['message']}")
    if fault["hint"]:
        note(f"  next: {fault['hint']}")


def show(fields: Mapping[str, Any], *, as_json: bool) -> None:
    """A result, for programs or for people."""
    if as_json:
        print_json(fields)
    else:
        print_fields({name: ", ".join(v) if isinstance(v, list) else v for name, v in fields.items()})
