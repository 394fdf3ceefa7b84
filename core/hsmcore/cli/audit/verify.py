"""The `audit` commands that work on a plain copy of a log. A configuration only names their default log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hsmcore.cli.audit import shared as support
from hsmcore.cli.audit import ship as audit_running
from hsmcore.cli.output import BadUsage, print_fields, print_json
from hsmcore.cli.settings import ConfigOption, JsonOption, StateOption
from hsmcore.errors import SystemFailure

app = typer.Typer(name="audit", help="Verify, prove and search the audit log.", no_args_is_help=True)

FolderArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[FOLDER]", help="The log, or the folder it lies in (default: the configuration's log)."),
]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", "-f", metavar="PATH", help="The log, or the folder it lies in.")
]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", metavar="PATH", help="Default: standard output.")]
KeyOption = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="VKEY", help="A key to trust instead of the folder's own; may be given again."),
]

RetentionOption = Annotated[
    str | None,
    typer.Option(
        "--expect-retention",
        metavar="DAYS|SEQ",
        help="Records that retention may have deleted: those older than so many days, such as 90d, or those up to a "
        "sequence number. Default: none, or the configuration's retainDays where it names the log.",
    ),
]
AdoptedOption = Annotated[
    int,
    typer.Option(
        "--expect-adopted",
        metavar="RECORDS",
        min=0,
        help="So many records were in the log before its first checkpoint.",
    ),
]


@app.command(short_help="Find what was changed in a log.")
def verify(
    folder: FolderArgument = None,
    key: KeyOption = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against", metavar="CHECKPOINT", help="A checkpoint kept from before: the log may only have grown."
        ),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(
            "--witness",
            metavar="VKEY",
            help="A witness whose cosignature a checkpoint of the log, or of --against, must carry.",
        ),
    ] = None,
    proof: Annotated[
        Path | None, typer.Option("--proof", metavar="FILE", help="Check a proof of `audit prove` instead of a log.")
    ] = None,
    expect_retention: RetentionOption = None,
    expect_adopted: AdoptedOption = 0,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find every record that was changed, removed, inserted, moved or cut off, and say where.

    Exit code 0: nothing was changed. 1: something was changed, or the log cannot be read. 2: wrong usage. 3: the
    records are whole and sealed, but an index or a tile is wrong. That is no evidence; `hsmcore audit mend` makes it
    again.

    Keep a copy of a checkpoint elsewhere and give it with --against: only that reveals an older copy in the place of
    the log, or a log that was written again with a stolen key.

    Records that retention deleted, or that a key manager adopted without a checkpoint, are findings until they are
    expected: --expect-retention 90d where retainDays is 90, --expect-adopted with the number that the finding names.

    Example: hsmcore audit verify /mnt/copy/audit --key "$(cat audit.vkey)" --against last-week.checkpoint
    """
    from hsmcore.audit.check.trust import Trust
    from hsmcore.audit.check.verify import verify

    keys, witnesses = support.keys(key), support.keys(witness)
    if proof is not None:
        support.check_proof(proof, keys, folder, as_json=as_json)
        return
    layout, days = support.log_and_retention(folder, config, state)
    known = [support.checkpoint(path).note for path in against or []]
    retain_days, pruned = support.retention(expect_retention, days)
    trust = Trust(keys, witnesses, known, retain_days, pruned, expect_adopted)
    with support.progress_bar(as_json) as progress:
        report = support.reading(lambda: verify(layout, trust, progress))
    support.conclude(report, layout, as_json=as_json)


@app.command(short_help="Make index and tiles again from the records.")
def mend(
    folder: FolderArgument = None,
    key: KeyOption = None,
    expect_retention: RetentionOption = None,
    expect_adopted: AdoptedOption = 0,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a log; if only files that are made from the records are wrong, make them again. The exit codes are those
    of `audit verify`. Nothing is changed if the records are not whole, or while a key manager writes the log: a key
    manager completes a short index when it starts.

    Example: hsmcore audit mend /var/lib/hsmcore/audit.log
    """
    from hsmcore.audit.check.mend import mend
    from hsmcore.audit.check.trust import Trust

    keys = support.keys(key)
    layout, days = support.log_and_retention(folder, config, state)
    retain_days, pruned = support.retention(expect_retention, days)
    trust = Trust(keys, retain_days=retain_days, pruned=pruned, adopted=expect_adopted)
    with support.progress_bar(as_json) as progress:
        report = support.reading(lambda: mend(layout, trust, progress))
    support.conclude(report, layout, as_json=as_json)


@app.command(short_help="Go on with a log whose checkpoints are missing.")
def adopt(
    folder: FolderArgument = None,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the next key manager go on with a log whose checkpoints are missing. It takes the records as they are and
    records that as `audit-adopted`, which `audit verify` reports until it gets --expect-adopted. Without this command
    the start is refused, because an attacker that changes records deletes the checkpoints first. Keys and tiles of
    before are kept in the log's folder, below lost/.

    Example: hsmcore audit adopt /var/lib/hsmcore/audit.log
    """
    from hsmcore.audit.check.adopt import Adopted, adopt
    from hsmcore.cli.recorded import spooled

    layout = support.layout(folder, config, state)

    def work() -> Adopted:
        with spooled(layout, "audit adopt"):
            return adopt(layout)

    done = support.reading(work)
    if as_json:
        print_json({"records": done.records, "kept": str(done.kept)})
    else:
        print(f"the next start of the key manager adopts {done.records} records; keys and tiles are in {done.kept}")


@app.command(short_help="Write a proof that stands alone.")
def prove(
    seq: Annotated[int | None, typer.Argument(metavar="SEQ", help="The record's sequence number.")] = None,
    since: Annotated[
        Path | None,
        typer.Option("--since", metavar="CHECKPOINT", help="Prove instead that the log only grew since a checkpoint."),
    ] = None,
    output: OutputOption = None,
    folder: FolderOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a proof that a record is in the log (C2SP tlog-proof, with the record in it). Its reader needs only the
    log's key.

    Example: hsmcore audit prove 1234 --output 1234.tlog-proof
    """
    from hsmcore.audit.check.prove import consistency_proof, inclusion_proof

    if (seq is None) == (since is None):
        raise BadUsage("give either SEQ or --since")
    layout = support.layout(folder, config, state)
    if since is not None:
        old = support.checkpoint(since)
        data = support.reading(lambda: consistency_proof(layout, old))
    else:
        number = seq or 0
        data = support.reading(lambda: inclusion_proof(layout, number))
    shown = {"seq": seq, "output": None if output is None else str(output), "proof": data.decode()}
    support.deliver(data, output, shown if as_json else None, f"{len(data)} bytes")


@app.command(short_help="Search the records.")
def query(
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="From: ISO 8601 (UTC if no zone), or 90s, 15m, 2h, 7d ago."),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Up to, in the same forms.")] = None,
    operation: Annotated[str | None, typer.Option(help="Only this operation, such as sign or login.")] = None,
    key: Annotated[str | None, typer.Option(help="Only this key id (CKA_ID in hexadecimal).")] = None,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="FIELD=VALUE", help="Only where a field has a value.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many, the latest.")] = None,
    folder: FolderOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the records that match, oldest first. They are not verified; `audit verify` does that.

    Example: hsmcore audit query --since 1h --operation sign --where result=error --json
    """
    from hsmcore.audit.query import Query

    match = dict(support.condition(text) for text in where or [])
    match |= {name: value for name, value in (("operation", operation), ("key_id", key)) if value is not None}
    search = Query(
        support.layout(folder, config, state), support.moment(since, "--since"), support.moment(until, "--until"), match
    )

    def show() -> None:
        for block in search.blocks() if limit is None else [search.latest(limit)]:
            for record in block:
                print_json(record) if as_json else print(support.in_words(record))

    support.reading(show)


@app.command(short_help="Print the newest checkpoint.")
def checkpoint(
    output: OutputOption = None,
    folder: FolderOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the newest checkpoint, a signed note. Store it where the log's host cannot write, and have it time-stamped
    or cosigned: `audit verify --against` needs it.

    Example: hsmcore audit checkpoint --output /mnt/worm/today.checkpoint
    """
    from hsmcore.audit.check.prove import latest

    newest = latest(support.layout(folder, config, state))
    shown = {"origin": newest.origin, "size": newest.size, "root": newest.root.hex(), "note": newest.note.decode()}
    support.deliver(newest.note, output, shown if as_json else None, f"checkpoint over {newest.size} records")


@app.command(short_help="Say what a log consists of, or print a record.")
def show(
    seq: Annotated[int | None, typer.Argument(metavar="[SEQ]", help="Print this record instead.")] = None,
    folder: FolderOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Summarize a log; with a sequence number, print that record.

    Example: hsmcore audit show 1234
    """
    from hsmcore.audit.check.overview import overview
    from hsmcore.audit.query import find

    layout = support.layout(folder, config, state)
    if seq is None:
        summary = support.reading(lambda: overview(layout))
        print_json(summary) if as_json else print_fields({k: support.plain(v) for k, v in summary.items()})
        return
    line = support.reading(lambda: find(layout, seq))
    if line is None:
        raise SystemFailure(f"audit log {layout.log}: record {seq} is not there", hint="See `hsmcore audit show`.")
    sys.stdout.write(line.decode("utf-8", "replace") + "\n")


audit_running.add_to(app)
