"""The `bench` command. What works on results that are there already is in `results_cli.py`."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from hsmcore.cli.output import FAILED, INTERRUPTED, BadUsage, note
from hsmcore.errors import MemberDown
from hsmcore.members.control.curves import ALGORITHMS
from hsmcore_bench.harness import environment, locate
from hsmcore_bench.harness.process import ChildError
from hsmcore_bench.harness.signals import raising
from hsmcore_bench.suite import results_cli
from hsmcore_bench.suite.catalogue import entries, expand
from hsmcore_bench.suite.failover import CASES
from hsmcore_bench.suite.model import HsmToken, Options
from hsmcore_bench.suite.report import markdown, print_result
from hsmcore_bench.suite.resilience import RECOVERY_CASES
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.results import to_json
from hsmcore_bench.suite.runner import Progress, run

NAME = "hsmcore-bench"
QUICK = (3, 0.2, 0, 1, 0.0)  # rounds, seconds, patience, kills of each kind, budget
PIPE_COLUMNS = 300
TOLD_SECONDS = 30.0
"""Between two lines about the progress, where no terminal shows it."""
FULL = (15, 0.25, 2, None, None)

app = typer.Typer(name="bench", rich_markup_mode=None)
results_cli.add_to(app)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="3 rounds of 0.2 s, none repeated, and no curves: 3 to 4 minutes.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, max=1000, help="Slices per contender.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.02, max=60, help="Length of a slice.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=0, max=100, help="Repeat a slice that other processes disturbed so often.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0, max=86_400, help="Seconds for more rounds of undecided targets (default: a quarter of the run)."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="PATTERN,…", help="Scenarios or contenders (see --list), beginnings of names, patterns."),
    ] = None,
    scenario: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A scenario file of your own; may be given again. Form: docs/BENCHMARKS.md."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON, HTML, markdown and SVG files go.")] = Path("bench-results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")] = False,
    token: Annotated[str | None, typer.Option(help="Sign on this token instead of a new SoftHSM one.")] = None,
    module: Annotated[str, typer.Option(help="The PKCS#11 module of --token.")] = locate.SOFTHSM_MODULE,
    label: Annotated[str | None, typer.Option(help="The label of the private key on --token.")] = None,
    algorithm: Annotated[str, typer.Option(help=f"Of that key: {', '.join(ALGORITHMS)}.")] = "ed25519",
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a target is missed.")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Print scenarios and contenders, and end.")] = False,
) -> None:
    """Measure signing: hsmcore beside a raw C loop, python-pkcs11 and PyKCS11, in turn on the same key.

    Without --token it makes a SoftHSM token in a temporary directory and removes it. With --token, the PIN is read from
    the environment variable HSM_PIN. Exit code: 0, 1 (a contender broke, or --check failed), 2 (bad usage).

    Examples:

      hsmcore bench --quick

      hsmcore bench --only raw,sign-64,pkcs11-executor --rounds 15

      hsmcore bench --only audit,batch

      hsmcore bench --only resilience

      hsmcore bench --scenario mine.toml --only mine

      HSM_PIN=… hsmcore bench --token sequencer --label sequencer-key --out results

      hsmcore bench compare before.json after.json
    """
    if context.invoked_subcommand is not None:
        return
    files = tuple(str(path) for path in scenario or ())
    try:
        if show_list:
            _print_list(files)
            return
        entries(files)
    except ValueError as error:
        raise BadUsage(str(error)) from None
    default_rounds, default_seconds, default_patience, breaks, default_budget = QUICK if quick else FULL
    options = Options(
        rounds=rounds or default_rounds,
        seconds=seconds or default_seconds,
        only=only,
        budget=default_budget if budget is None else budget,
        quick=quick,
        files=files,
        patience=default_patience if patience is None else patience,
        breaks=breaks,
        token=_token(token, module, label, algorithm),
    )
    ended: list[int] = []

    def end(number: int) -> BaseException:
        ended.append(128 + number)
        return KeyboardInterrupt()

    try:
        with raising(end, signal.SIGTERM):
            result = _run(options)
    except KeyboardInterrupt:
        if ended:
            raise SystemExit(*ended) from None
        raise
    except ValueError as error:
        raise BadUsage(str(error)) from None
    except ChildError as error:
        raise MemberDown(str(error), hint="Name a token that works with --token, or leave it out.") from error
    _write(result, out)
    if as_json:
        sys.stdout.write(to_json(result).decode())
    else:
        print_result(result, _console())
    if result.interrupted:
        note("hsmcore: interrupted; the figures are those of the rounds so far")
        raise typer.Exit(ended[0] if ended else INTERRUPTED)
    if result.failed or (check and any(verdict.met is False for verdict in result.targets)):
        raise typer.Exit(FAILED)


def _console() -> Console:
    """As wide as the terminal; a pipe has no width, and nothing is cut off for it."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, PIPE_COLUMNS))


def _run(options: Options) -> Result:
    """Measure under a progress bar on standard error, or, where that is no terminal, with a line twice a minute."""
    console, told = Console(stderr=True), -math.inf

    def tell(progress: Progress) -> None:
        nonlocal told
        if (now := time.monotonic()) - told >= TOLD_SECONDS:
            told = now
            note(f"hsmcore: {progress.done} of {progress.total}: {progress.doing}")

    if not console.is_terminal:
        return run(options, tell)
    columns = (TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total, description=progress.doing)

        return run(options, report)


def _write(result: Result, out: Path) -> None:
    """The files; no picture where nothing was measured."""
    from hsmcore_bench.harness.svg import STYLE
    from hsmcore_bench.suite.html import page
    from hsmcore_bench.suite.picture import picture

    notes = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}.json").write_bytes(to_json(result))
    (out / f"{NAME}.md").write_text(markdown(result), encoding="utf-8")
    (out / f"{NAME}.html").write_text(page(result), encoding="utf-8")
    written = [".json", ".md", ".html"]
    try:
        (out / f"{NAME}.svg").write_text(picture(result, STYLE.read_text()), encoding="utf-8")
        written.append(".svg")
    except ValueError as error:
        notes.print(f"no SVG: {error}", style="yellow", markup=False)
    notes.print(f"written: {out}/{NAME}{', '.join(written)}", style="dim", markup=False)


def _print_list(files: tuple[str, ...]) -> None:
    console = Console()

    def say(name: str, what: str) -> None:
        console.print(f"{name:26} {what}", markup=False, soft_wrap=True, highlight=False)

    listed = list(entries(files))
    for entry in listed:
        quick = "" if entry.said.quick else " (not in --quick)"
        say(entry.name, f"{entry.said.title}{quick}")
        for contender, _ in expand(entry, environment.cores()):
            say(f"  {contender.name}", contender.title)
        if entry.said.event:
            cases = [
                case.title for case in (RECOVERY_CASES if entry.said.kill else CASES if entry.said.failure else ())
            ]
            say(f"  {entry.said.event}", "; ".join(cases) or entry.said.about)
    for word in dict.fromkeys(word for entry in listed for word in entry.said.words):
        say(word, f"stands for {', '.join(entry.name for entry in listed if word in entry.said.words)}")


def _token(token: str | None, module: str, label: str | None, algorithm: str) -> HsmToken | None:
    """The token that the options name, or None for one of our own."""
    if algorithm not in ALGORITHMS:
        raise BadUsage(f"--algorithm {algorithm}: expected one of {', '.join(ALGORITHMS)}")
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
