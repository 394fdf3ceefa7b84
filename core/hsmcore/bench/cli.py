"""The `bench` command."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from hsmcore.bench import environment, locate
from hsmcore.bench.contenders import GROUPS, MEMORY, contenders
from hsmcore.bench.failover import CASES, FAILOVER
from hsmcore.bench.model import Algorithm, HsmToken, Options, Result
from hsmcore.bench.process import ChildError
from hsmcore.bench.report import markdown, print_result, to_json
from hsmcore.bench.resilience import RECOVERY, RECOVERY_CASES
from hsmcore.bench.runner import Progress, run
from hsmcore.cli.output import FAILED, BadUsage
from hsmcore.errors import MemberDown

NAME = "hsmcore-bench"
QUICK = (3, 0.3, 0, 1)  # rounds, seconds, patience, kills of each kind
FULL = (15, 0.25, 2, None)


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="3 rounds of 0.3 s, none repeated, instead of 15 of 0.25 s.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, max=1000, help="Slices per contender.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.02, max=60, help="Length of a slice.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=0, max=100, help="Repeat a slice that other processes disturbed so often.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN,…", help="Names (see --list), beginnings of names, or patterns.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON, markdown and PNG files go.")] = Path("bench-results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")] = False,
    token: Annotated[str | None, typer.Option(help="Sign on this token instead of a new SoftHSM one.")] = None,
    module: Annotated[str, typer.Option(help="The PKCS#11 module of --token.")] = locate.SOFTHSM_MODULE,
    label: Annotated[str | None, typer.Option(help="The label of the private key on --token.")] = None,
    algorithm: Annotated[str, typer.Option(help=f"Of that key: {', '.join(get_args(Algorithm))}.")] = "ed25519",
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a target is missed.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Print the contenders and end.")] = False,
) -> None:
    """Measure signing: hsmcore beside a raw C loop, python-pkcs11 and PyKCS11, in turn on the same key.

    Without --token it makes a SoftHSM token in a temporary directory and removes it. With --token, the PIN is read from
    the environment variable HSM_PIN. Exit code: 0, 1 (a contender broke, or --check failed), 2 (bad usage).

    Examples:

      hsmcore bench --quick

      hsmcore bench --only raw,sign-64,pkcs11-executor --rounds 15

      hsmcore bench --only noop,cache,memory

      hsmcore bench --only resilience

      hsmcore bench --only failover

      HSM_PIN=… hsmcore bench --token sequencer --label sequencer-key --out results
    """
    if show_list:
        _print_list()
        return
    default_rounds, default_seconds, default_patience, breaks = QUICK if quick else FULL
    options = Options(
        rounds=rounds or default_rounds,
        seconds=seconds or default_seconds,
        only=only,
        patience=default_patience if patience is None else patience,
        breaks=breaks,
        token=_token(token, module, label, algorithm),
    )
    try:
        with _terminate_cleanly():
            result = _run(options)
    except ValueError as error:
        raise BadUsage(str(error)) from None
    except ChildError as error:
        raise MemberDown(str(error), hint="Name a token that works with --token, or leave it out.") from error
    _write(result, out)
    if as_json:
        sys.stdout.write(to_json(result).decode())
    else:
        print_result(result, Console())
    if result.failed or (check and any(verdict.met is False for verdict in result.targets)):
        raise typer.Exit(FAILED)


def _run(options: Options) -> Result:
    """Measure under a progress bar on standard error."""
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, description=progress.doing)

        return run(options, report)


def _write(result: Result, out: Path) -> None:
    """The files; the picture only where matplotlib is installed."""
    notes = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}.json").write_bytes(to_json(result))
    (out / f"{NAME}.md").write_text(markdown(result))
    try:
        from hsmcore.bench.picture import draw

        draw(result, out / f"{NAME}.png")
    except ImportError:
        notes.print("no picture: matplotlib is not installed (pip install 'hsmcore[bench]')", style="yellow")
    except ValueError as error:
        notes.print(f"no picture: {error}", style="yellow", markup=False)
    notes.print(f"written: {out}/{NAME}.json, .md, .png", style="dim", markup=False)


def _print_list() -> None:
    console = Console()
    for contender in contenders(environment.cores()):
        console.print(f"{contender.name:19} {contender.group}: {contender.title}", markup=False, soft_wrap=True)
    console.print(f"{MEMORY:19} resident memory while signing two million times on the no-op module", markup=False)
    console.print(f"{RECOVERY:19} kills under load: {', '.join(case.title for case in RECOVERY_CASES)}", markup=False)
    console.print(f"{FAILOVER:19} primary fails: {', '.join(case.title for case in CASES)}", markup=False)
    for word, patterns in GROUPS.items():
        console.print(f"{word:19} stands for {', '.join(patterns)}", markup=False)


def _token(token: str | None, module: str, label: str | None, algorithm: str) -> HsmToken | None:
    """The token that the options name, or None for one of our own."""
    if algorithm not in get_args(Algorithm):
        raise BadUsage(f"--algorithm {algorithm}: expected one of {', '.join(get_args(Algorithm))}")
    if token is None:
        if label is not None:
            raise BadUsage("--label needs --token")
        return None
    if label is None:
        raise BadUsage("--token needs --label")
    if "HSM_PIN" not in os.environ:
        raise BadUsage("--token needs the PIN in the environment variable HSM_PIN")
    if not Path(module).is_file():
        raise BadUsage(f"--module {module}: no such file")
    return HsmToken(module, token, {algorithm: label})


@contextmanager
def _terminate_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that the token and the children go away."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
