"""The `audit` commands that read the records of a plain copy of a log."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from hsmcore.cli.audit.verify import LOG, TAKES, app, checkpoint_of, log_and_retention, reading
from hsmcore.cli.files import OutputOption, deliver
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import BadUsage, print_json, when
from hsmcore.errors import SystemFailure

FolderOption = Annotated[Path | None, "-f PATH: The log, or the folder it lies in.", LOG]


@command(app, "Write a proof that stands alone.", takes=TAKES)
def prove(
    cli: Invocation,
    seq: Annotated[int | None, typer.Argument(metavar="SEQ", help="The record's sequence number.")] = None,
    since: Annotated[Path | None, "CHECKPOINT: Prove instead that the log only grew since a checkpoint."] = None,
    output: OutputOption = None,
    folder: FolderOption = None,
) -> None:
    """Write a proof that a record is in the log (C2SP tlog-proof, with the record in it). Its reader needs only the
    log's key.

    Example: hsmcore audit prove 1234 --output 1234.tlog-proof
    """
    from hsmcore.audit.check.prove import consistency_proof, inclusion_proof

    if (seq is None) == (since is None):
        raise BadUsage("give either SEQ or --since")
    layout, _ = log_and_retention(cli, folder)
    if since is not None:
        old = checkpoint_of(since)
        data = reading(lambda: consistency_proof(layout, old))
    else:
        data = reading(lambda: inclusion_proof(layout, seq or 0))
    shown = {"seq": seq, "output": None if output is None else str(output), "proof": data.decode()}
    deliver(cli, data, output, shown, f"{len(data)} bytes")


@command(app, "Search the records.", takes=TAKES)
def query(
    cli: Invocation,
    since: Annotated[str | None, "TIME: From: ISO 8601 (UTC if no zone), or 90s, 15m, 2h, 7d ago."] = None,
    until: Annotated[str | None, "TIME: Up to, in the same forms."] = None,
    operation: Annotated[str | None, "Only this operation, such as sign or login."] = None,
    key: Annotated[str | None, "Only this key id (CKA_ID in hexadecimal)."] = None,
    where: Annotated[list[str] | None, "FIELD=VALUE: Only where a field has a value. Or via.pid=VALUE."] = None,
    limit: Annotated[int | None, "At most so many, the latest.", {"min": 1}] = None,
    folder: FolderOption = None,
) -> None:
    """Print the records that match, oldest first. They are not verified; `audit verify` does that.

    Example: hsmcore audit query --since 1h --operation sign --where result=error --json
    """
    from hsmcore.audit.query import Query

    match = dict(map(_condition, where or []))
    match |= {name: value for name, value in (("operation", operation), ("key_id", key)) if value is not None}
    layout, _ = log_and_retention(cli, folder)
    search = Query(layout, _moment(since, "--since"), _moment(until, "--until"), match)

    def show() -> None:
        for block in search.blocks() if limit is None else [search.latest(limit)]:
            for record in block:
                print_json(record) if cli.as_json else print(_in_words(record))

    reading(show)


@command(app, "Print the newest checkpoint.", takes=TAKES)
def checkpoint(cli: Invocation, output: OutputOption = None, folder: FolderOption = None) -> None:
    """Print the newest checkpoint, a signed note. Store it where the log's host cannot write, and have it time-stamped
    or cosigned: `audit verify --against` needs it.

    Example: hsmcore audit checkpoint --output /mnt/worm/today.checkpoint
    """
    from hsmcore.audit.check.prove import latest

    newest = latest(log_and_retention(cli, folder)[0])
    shown = {"origin": newest.origin, "size": newest.size, "root": newest.root.hex(), "note": newest.note.decode()}
    deliver(cli, newest.note, output, shown, f"checkpoint over {newest.size} records")


@command(app, "Say what a log consists of, or print a record.", takes=TAKES)
def show(
    cli: Invocation,
    seq: Annotated[int | None, typer.Argument(metavar="[SEQ]", help="Print this record instead.")] = None,
    folder: FolderOption = None,
) -> None:
    """Summarize a log; with a sequence number, print that record.

    Example: hsmcore audit show 1234
    """
    from hsmcore.audit.check.overview import overview
    from hsmcore.audit.query import find

    layout, _ = log_and_retention(cli, folder)
    if seq is None:
        cli.show(reading(lambda: overview(layout)))
        return
    line = reading(lambda: find(layout, seq))
    if line is None:
        raise SystemFailure(f"audit log {layout.log}: record {seq} is not there", hint="See `hsmcore audit show`.")
    sys.stdout.write(line.decode("utf-8", "replace") + "\n")


def _moment(text: str | None, option: str) -> datetime | None:
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


def _condition(text: str) -> tuple[str, Any]:
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


def _in_words(record: dict[str, Any]) -> str:
    moment = when(record["time_ns"], "milliseconds") or "-"
    shown = [moment, str(record["seq"]), str(record.get("operation")), str(record.get("result", "-"))]
    names = ("error", "key_id", "member", "message_sha256", "tag", "trace_id")
    shown += [f"{name}={record[name]}" for name in names if record.get(name) is not None]
    return "  ".join(shown)
