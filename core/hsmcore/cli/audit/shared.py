"""Shared parts of the `audit` commands: finding the log, reading arguments, printing records."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from hsmcore.cli.output import DERIVED, FAILED, BadUsage, note, print_fields, print_json
from hsmcore.cli.settings import load_configs
from hsmcore.errors import BadArgument, HsmError, SystemFailure

if TYPE_CHECKING:
    from hsmcore.audit.check.findings import Report
    from hsmcore.audit.layout import Layout
    from hsmcore.tlog.checkpoint import Checkpoint
    from hsmcore.tlog.note import VerifierKey

T = TypeVar("T")


def layout(folder: Path | None, config: Path | None, state: Path | None) -> Layout:
    return log_and_retention(folder, config, state)[0]


def log_and_retention(folder: Path | None, config: Path | None, state: Path | None) -> tuple[Layout, int | None]:
    """Return a log, and the configuration's `retainDays` if the configuration names the log."""
    from hsmcore.audit.layout import Layout

    path: str | Path | None = folder
    days = None
    if path is None:
        rules = next(iter(load_configs(config, state).values())).key_manager  # all have one log
        path, days = rules.audit_log_file, None if rules.audit is None else rules.audit.retain_days
    if path is None:
        raise BadUsage("the configuration has no auditLogFile; name the log's folder")
    try:
        return Layout.find(path), days
    except BadArgument as error:
        raise BadUsage(str(error)) from None


def retention(text: str | None, default: int | None) -> tuple[int | None, int]:
    """Return the days after which retention may delete records, and the last record that it may have deleted whatever
    its age. `default`: the days where `text` says nothing."""
    if text is None:
        return default, 0
    found = re.fullmatch(r"([0-9]{1,18})(d?)", text)
    if found is None:
        raise BadUsage(f"--expect-retention: {text!r} is neither days, such as 90d, nor a sequence number")
    return (int(found[1]), 0) if found[2] else (None, int(found[1]))


def keys(texts: list[str] | None) -> list[VerifierKey]:
    from hsmcore.tlog.note import NoteError, VerifierKey

    try:
        return [VerifierKey.parse(text) for text in texts or []]
    except NoteError as error:
        raise BadUsage(str(error)) from None


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadUsage(f"{path} cannot be read: {error.strerror}") from None


def checkpoint(path: Path) -> Checkpoint:
    from hsmcore.tlog.checkpoint import Checkpoint
    from hsmcore.tlog.note import NoteError

    try:
        return Checkpoint.parse(read(path))
    except NoteError as error:
        raise BadUsage(f"{path}: {error}") from None


def deliver(data: bytes, output: Path | None, shown: dict[str, Any] | None, what: str) -> None:
    """Write `data` to a file, or to standard output. `shown`: print this as JSON instead of data or confirmation.
    Raises SystemFailure if the file cannot be written."""
    if output is not None:
        try:
            output.write_bytes(data)
        except OSError as error:
            raise SystemFailure(f"{output} cannot be written: {error.strerror}", hint="Name another file.") from None
    if shown is not None:
        print_json(shown)
    elif output is None:
        sys.stdout.write(data.decode())
    else:
        print(f"{what} written to {output}")


def reading(work: Callable[[], T]) -> T:
    """Run `work`, which reads a log. Raises SystemFailure for a damaged or unreadable file."""
    from hsmcore.audit.segment import SegmentError
    from hsmcore.audit.tiles import TileError
    from hsmcore.tlog.proof import ProofError

    try:
        return work()
    except (HsmError, BrokenPipeError):
        raise
    except (ProofError, SegmentError, TileError) as error:
        raise SystemFailure(str(error), hint="Run `hsmcore audit verify` on the log.") from None
    except OSError as error:
        raise SystemFailure(f"{error.filename}: {error.strerror}", hint="Check that the log can be read.") from None


def conclude(report: Report, layout: Layout, *, as_json: bool) -> None:
    """Print what `audit verify` found and the next step. Raises typer.Exit unless nothing was found."""
    _print_report(report, layout, as_json=as_json)
    if not report.ok:
        raise typer.Exit(DERIVED if report.status == "derived" else FAILED)


def _print_report(report: Report, layout: Layout, *, as_json: bool) -> None:
    next_step = f"hsmcore audit mend {layout.log}" if report.status == "derived" else None
    if as_json:
        print_json(report.as_dict() | {"next": next_step})
        return
    print_fields(
        {
            "log": report.origin,
            "records": report.records,
            "not yet sealed": report.unsealed,
            "kept as hashes only": report.pruned,
            "checkpoints": report.checkpoints,
            "root": report.root.hex() or "-",
            "seconds": f"{report.seconds:.2f}",
        }
    )
    for key_text in report.keys:
        print(f"key  {key_text}")
    for finding in report.findings:
        print(f"{finding.kind.upper()}  {finding.text}" + (f"  ({finding.where})" if finding.where else ""))
    if report.ok:
        print("OK: nothing was changed")
    elif next_step is None:
        print(f"FAILED: {len(report.findings)} finding(s)")
    else:
        print(f"DERIVED: the records are whole and sealed; {len(report.findings)} finding(s) in files made from them")
        note(f"  next: {next_step} makes these files again (not while a key manager writes the log)")
    for text in report.notes:
        note(f"note: {text}")


def check_proof(path: Path, keys: list[VerifierKey], folder: Path | None, *, as_json: bool) -> None:
    from hsmcore.audit.check.prove import check_inclusion
    from hsmcore.audit.recover import read_keys

    if not keys:
        if folder is None:
            raise BadUsage("a proof needs the log's key: give --key")
        keys = read_keys(layout(folder, None, None))
    proven = reading(lambda: check_inclusion(read(path), keys))
    if as_json:
        print_json(
            {
                "ok": True,
                "seq": proven.seq,
                "origin": proven.checkpoint.origin,
                "size": proven.checkpoint.size,
                "record": proven.line.decode("utf-8", "replace"),
            }
        )
    else:
        print(proven.line.decode("utf-8", "replace"))
        note(f"OK: record {proven.seq} is in the log {proven.checkpoint.origin} of {proven.checkpoint.size} records")


def moment(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    if ago := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[ago[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadUsage(f"{option}: {text!r} is no time; use 2026-01-31T12:00:00Z, or 2h for two hours ago") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def condition(text: str) -> tuple[str, Any]:
    import orjson

    name, separator, value = text.partition("=")
    if not name or not separator:
        raise BadUsage(f"--where: {text!r} is not FIELD=VALUE")
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value
    # An id stays text even if it has only digits; in the log other values of digits are numbers.
    return name, value if name.endswith("_id") or isinstance(parsed, (dict, list)) else parsed


def in_words(record: dict[str, Any]) -> str:
    moment = datetime.fromtimestamp(record["time_ns"] / 1e9, UTC).isoformat(timespec="milliseconds")
    shown = [moment, str(record["seq"]), str(record.get("operation")), str(record.get("result", "-"))]
    names = ("error", "key_id", "member", "message_sha256", "tag")
    shown += [f"{name}={record[name]}" for name in names if record.get(name) is not None]
    return "  ".join(shown)


def plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show progress on standard error while the block runs; it gets None if `quiet`, or if that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("records")
        yield lambda done, total: bar.update(task, completed=done, total=total)
