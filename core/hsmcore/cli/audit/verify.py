"""The `audit` commands that judge a plain copy of a log. A configuration only names their default log. Those that read
its records are in records.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from hsmcore.cli.files import read
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import DERIVED, FAILED, BadUsage, fields, note, progress_bar
from hsmcore.cli.recorded import spooled
from hsmcore.errors import BadArgument, HsmError, SystemFailure

if TYPE_CHECKING:
    from hsmcore.audit.check.findings import Report
    from hsmcore.audit.layout import Layout
    from hsmcore.tlog.checkpoint import Checkpoint
    from hsmcore.tlog.note import VerifierKey

T = TypeVar("T")
app = typer.Typer()
TAKES: Final = "config state as_json"
"""All key managers of a configuration have one log."""

LOG: Final[dict[str, Any]] = {"readable": False}
"""A log's file is not looked at while the command line is read: a running writer may rename it in that moment."""
FolderArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FOLDER]", help="The log, or the folder it lies in (default: the configuration's log).", **LOG
    ),
]
KeyOption = Annotated[list[str] | None, "VKEY: A key to trust instead of the folder's own; may be given again."]
RetentionOption = Annotated[
    str | None,
    "DAYS|SEQ: Records that retention may have deleted: those older than so many days, such as 90d, or those up to a "
    "sequence number. Default: none, or the configuration's retainDays where it names the log.",
]
AdoptedOption = Annotated[int, "RECORDS: So many records were in the log before its first checkpoint.", {"min": 0}]
_REPORT: Final = "log origin, records, not yet sealed unsealed, kept as hashes only pruned, checkpoints, root, seconds"


@command(app, "Find what was changed in a log.", takes=TAKES)
def verify(
    cli: Invocation,
    folder: FolderArgument = None,
    key: KeyOption = None,
    against: Annotated[
        list[Path] | None, "CHECKPOINT: A checkpoint kept from before: the log may only have grown."
    ] = None,
    witness: Annotated[
        list[str] | None, "VKEY: A witness whose cosignature a checkpoint of the log, or of --against, must carry."
    ] = None,
    witness_within: Annotated[
        float | None, "SECONDS: Each witness must have cosigned in the last so many seconds.", {"min": 0}
    ] = None,
    proof: Annotated[Path | None, "FILE: Check a proof of `audit prove` instead of a log."] = None,
    expect_retention: RetentionOption = None,
    expect_adopted: AdoptedOption = 0,
) -> None:
    """Find every record that was changed, removed, inserted, moved or cut off, and say where.

    Exit code 0: nothing was changed. 1: something was changed, or the log cannot be read. 2: wrong usage. 3: the
    records are whole and sealed, but an index or a tile is wrong. That is no evidence; `hsmcore audit mend` makes it
    again.

    Keep a copy of a checkpoint elsewhere and give it with --against: only that reveals an older copy in the place of
    the log, or a log that was written again with a stolen key. --witness does the same by the word of somebody who
    has seen the log grow; a running key manager keeps the cosignatures of its configuration's witnesses beside the log.

    Records that retention deleted, or that a key manager adopted without a checkpoint, are findings until they are
    expected: --expect-retention 90d where retainDays is 90, --expect-adopted with the number that the finding names.

    Example: hsmcore audit verify /mnt/copy/audit --key "$(cat audit.vkey)" --against last-week.checkpoint
    """
    from hsmcore.audit.check.trust import Trust
    from hsmcore.audit.check.verify import verify

    keys, witnesses = _keys(key), _keys(witness)
    if proof is not None:
        _check_proof(cli, proof, keys, folder)
        return
    layout, days = log_and_retention(cli, folder)
    known = [checkpoint_of(path).note for path in against or []]
    trust = Trust(keys, witnesses, known, *_retention(expect_retention, days), expect_adopted, witness_within)
    with progress_bar(cli.as_json) as progress:
        report = reading(lambda: verify(layout, trust, progress))
    _conclude(cli, report, layout)


@command(app, "Make index and tiles again from the records.", takes=TAKES)
def mend(
    cli: Invocation,
    folder: FolderArgument = None,
    key: KeyOption = None,
    expect_retention: RetentionOption = None,
    expect_adopted: AdoptedOption = 0,
) -> None:
    """Verify a log; if only files that are made from the records are wrong, make them again. The exit codes are those
    of `audit verify`. Nothing is changed if the records are not whole, or while a key manager writes the log: a key
    manager completes a short index when it starts.

    Example: hsmcore audit mend /var/lib/hsmcore/audit.log
    """
    from hsmcore.audit.check.mend import mend
    from hsmcore.audit.check.trust import Trust

    keys = _keys(key)
    layout, days = log_and_retention(cli, folder)
    retain_days, pruned = _retention(expect_retention, days)
    trust = Trust(keys, retain_days=retain_days, pruned=pruned, adopted=expect_adopted)
    with progress_bar(cli.as_json) as progress:
        report = reading(lambda: mend(layout, trust, progress))
    _conclude(cli, report, layout)


@command(app, "Go on with a log whose checkpoints are missing.", takes=TAKES)
def adopt(cli: Invocation, folder: FolderArgument = None) -> None:
    """Let the next key manager go on with a log whose checkpoints are missing. It takes the records as they are and
    records that as `audit-adopted`, which `audit verify` reports until it gets --expect-adopted. Without this command
    the start is refused, because an attacker that changes records deletes the checkpoints first. Keys and tiles of
    before are kept in the log's folder, below lost/.

    Example: hsmcore audit adopt /var/lib/hsmcore/audit.log
    """
    from hsmcore.audit.check.adopt import Adopted, adopt

    layout, _ = log_and_retention(cli, folder)

    def work() -> Adopted:
        with spooled(layout, "audit adopt"):
            return adopt(layout)

    done = reading(work)
    text = f"the next start of the key manager adopts {done.records} records; keys and tiles are in {done.kept}"
    cli.show({"records": done.records, "kept": str(done.kept)}, text)


def log_and_retention(cli: Invocation, folder: Path | None) -> tuple[Layout, int | None]:
    """Return a log, and the configuration's `retainDays` if the configuration names the log."""
    from hsmcore.audit.layout import Layout

    path: str | Path | None = folder
    days = None
    if path is None:
        rules = next(iter(cli.configs.values())).key_manager  # all have one log
        path, days = rules.audit_log_file, None if rules.audit is None else rules.audit.retain_days
    if path is None:
        raise BadUsage("the configuration has no auditLogFile; name the log's folder")
    try:
        return Layout.find(path), days
    except BadArgument as error:
        raise BadUsage(str(error)) from None


def _retention(text: str | None, default: int | None) -> tuple[int | None, int]:
    """Return the days after which retention may delete records, and the last record that it may have deleted whatever
    its age. `default`: the days where `text` says nothing."""
    if text is None:
        return default, 0
    found = re.fullmatch(r"([0-9]{1,18})(d?)", text)
    if found is None:
        raise BadUsage(f"--expect-retention: {text!r} is neither days, such as 90d, nor a sequence number")
    return (int(found[1]), 0) if found[2] else (None, int(found[1]))


def _keys(texts: list[str] | None) -> list[VerifierKey]:
    from hsmcore.tlog.note import NoteError, VerifierKey

    try:
        return [VerifierKey.parse(text) for text in texts or []]
    except NoteError as error:
        raise BadUsage(str(error)) from None


def checkpoint_of(path: Path) -> Checkpoint:
    from hsmcore.tlog.checkpoint import Checkpoint
    from hsmcore.tlog.note import NoteError

    try:
        return Checkpoint.parse(read(path))
    except NoteError as error:
        raise BadUsage(f"{path}: {error}") from None


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


def _conclude(cli: Invocation, report: Report, layout: Layout) -> None:
    """Print what was found and the next step. Raises typer.Exit unless nothing was found."""
    derived = report.status == "derived"
    next_step = f"hsmcore audit mend {layout.log}" if derived else None
    cli.show(report.as_dict() | {"next": next_step}, _print_report)
    if not report.ok:
        raise typer.Exit(DERIVED if derived else FAILED)


def _print_report(shown: dict[str, Any]) -> None:
    fields(_REPORT)(shown)
    for key_text in shown["keys"]:
        print(f"key  {key_text}")
    for finding in shown["findings"]:
        where = f"  ({finding['where']})" if finding["where"] else ""
        print(f"{finding['kind'].upper()}  {finding['text']}{where}")
    count = len(shown["findings"])
    if shown["ok"]:
        print("OK: nothing was changed")
    elif shown["next"] is None:
        print(f"FAILED: {count} finding(s)")
    else:
        print(f"DERIVED: the records are whole and sealed; {count} finding(s) in files made from them")
        note(f"  next: {shown['next']} makes these files again (not while a key manager writes the log)")
    for text in shown["notes"]:
        note(f"note: {text}")


def _check_proof(cli: Invocation, path: Path, keys: list[VerifierKey], folder: Path | None) -> None:
    from hsmcore.audit.check.prove import check_inclusion
    from hsmcore.audit.recover import read_keys

    if not keys:
        if folder is None:
            raise BadUsage("a proof needs the log's key: give --key")
        keys = read_keys(log_and_retention(cli, folder)[0])
    proven = reading(lambda: check_inclusion(read(path), keys))
    about, record = proven.checkpoint, proven.line.decode("utf-8", "replace")
    cli.show({"ok": True, "seq": proven.seq, "origin": about.origin, "size": about.size, "record": record}, record)
    if not cli.as_json:
        note(f"OK: record {proven.seq} is in the log {about.origin} of {about.size} records")
