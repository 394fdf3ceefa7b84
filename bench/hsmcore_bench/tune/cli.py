"""The `tune` command."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hsmcore.cli.output import BadUsage, note, print_json, print_table
from hsmcore.cli.recorded import recorded
from hsmcore.cli.settings import ConfigOption, JsonOption, StateOption, load_config, locate
from hsmcore_bench.harness.signals import raising

if TYPE_CHECKING:
    from hsmcore.config import Config, Provider
    from hsmcore_bench.tune.sweep import Found, Report

    Results = Mapping[str, tuple[Provider, Found]]

app = typer.Typer()


@app.command()
def tune(
    path: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="Configuration file (default: that of --config).")
    ] = None,
    member: Annotated[
        str | None, typer.Option("--member", metavar="NAME", help="Only this one: its name, type or level.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.05, max=60, help="Of signing with each number of sessions.")] = 1.0,
    most: Annotated[int, typer.Option(min=1, max=512, help="Try no more sessions than this.")] = 128,
    write: Annotated[bool, typer.Option("--write", help="Write the number into the configuration.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw rate and latency over sessions (SVG).")
    ] = None,
    config_path: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find how many sessions a device can use, and write the number into the configuration.

    It signs on the real device with the configured key: 1, 2, 4, … sessions, until more of them add nothing. The knee
    is the best rate, divided by what each session makes where the rate is last below 90 % of its best. More sessions
    only wait in the device. The messages are probes, which are no transactions. Without --write nothing is changed.

    Run it at a quiet hour: a signer on the same device disturbs it and is disturbed. Exit code: 0, 1 (the device
    failed), 2 (the configuration is wrong, has no sessions, or changed during the run).

    Examples:

      hsmcore tune sequencer.json

      hsmcore tune sequencer.json --member secondary --write --picture knee.svg

      hsmcore tune sequencer.json --json | jq '.members[].knee'
    """
    if path is not None and state is not None:
        raise BadUsage("give CONFIG or --state, not both")
    file = path or locate(config_path, state)
    before = file.read_bytes() if file.is_file() else b""
    config = load_config(file, None)
    if picture is not None and not picture.resolve().parent.is_dir():
        raise BadUsage(f"--picture: there is no folder {picture.resolve().parent}")
    if write and not os.access(file.resolve().parent, os.W_OK):
        raise BadUsage(f"--write: {file.resolve().parent} is a folder that you may not write")
    with raising(lambda _number: KeyboardInterrupt(), signal.SIGTERM, signal.SIGHUP):
        results = _measured(config, member, most, seconds)
    changes = _changes(results)
    if picture is not None:
        _draw(picture, results)
    if write:
        _write(file, before, changes)
    if as_json:
        print_json(_as_json(file, results, changes, written=write))
    else:
        _print(file, results, changes, written=write)


def _measured(config: Config, name: str | None, most: int, seconds: float) -> Results:
    """Sweep each member in turn. Raises HsmError."""
    from hsmcore.manager.rotation.pinned import as_started
    from hsmcore_bench.suite.child.tasks import event_loop
    from hsmcore_bench.tune.device import room, signers, tunable, with_sessions
    from hsmcore_bench.tune.sweep import PASSES, VISIT_SIGNATURES, Sweep, visits_at_most

    tunable(config, name)  # before anything is opened
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        config, _ = runner.run(as_started(config))
        running = runner.run(signers(config))
    if running:
        note(f"hsmcore: {running} key manager(s) run on this state store: they and the sweep disturb each other")
    found: dict[str, tuple[Provider, Found]] = {}
    signatures = 0
    members = tunable(config, name)
    names = ", ".join(provider.name for _, provider in members)
    with recorded(config.key_manager, "tune", members=names) as entry:
        for level, provider in members:
            free, used = room(level, provider, config)
            if used:
                note(f"hsmcore: {provider.name}: {used} sessions of the token are in use; they are left alone")
            limit = min(most, free)
            bound = visits_at_most(limit)
            note(
                f"{provider.name}: signs at most {bound * VISIT_SIGNATURES:,} probes on the real device, in up to "
                f"{bound} stretches of about {seconds / PASSES:.2g} s; a service that bills signatures bills them"
            )
            with _progress(provider.name) as report, asyncio.Runner(loop_factory=event_loop()) as runner:
                sweep = Sweep(partial(with_sessions, level, provider, config), limit, seconds, report)
                try:
                    found[provider.name] = (provider, runner.run(sweep.run()))
                finally:
                    signatures += sweep.signatures
                    entry["signatures"] = signatures
    return found


@contextmanager
def _progress(name: str) -> Iterator[Report]:
    """Show on a terminal where a sweep stands."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)

        def report(done: int, total: int, doing: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{name}: {doing}")

        yield report


def _changes(results: Results) -> dict[str, int]:
    """Return what is to be written, by the JSON path of the provider: what its largest member can use."""
    changes: dict[str, int] = {}
    for provider, found in results.values():
        changes[provider.where] = max(found.knee, changes.get(provider.where, 0))
    return changes


def _write(file: Path, before: bytes, changes: Mapping[str, int]) -> None:
    from hsmcore_bench.tune.document import replace, with_sessions

    text = before.decode()
    for where, sessions in changes.items():
        text = with_sessions(text, where, sessions)
    found = ", ".join(f"{where}.config.sessions {sessions}" for where, sessions in changes.items())
    replace(file, before, text.encode(), f"What was found: {found}. Write it yourself, or tune again.")


def _draw(file: Path, results: Results) -> None:
    from hsmcore_bench.tune.picture import picture

    try:
        file.write_text(picture({name: found for name, (_, found) in results.items()}), encoding="utf-8")
    except OSError as error:
        raise BadUsage(f"--picture {file}: {error.strerror}") from None


def _as_json(file: Path, results: Results, changes: Mapping[str, int], *, written: bool) -> dict[str, Any]:
    members = [
        {
            "member": name,
            "where": provider.where,
            "configured": _configured(provider),
            "knee": found.knee,
            "rate": found.at_knee.rate,
            "shareOfBest": found.at_knee.rate / found.best,
            "spread": max(point.spread for point in found.points),
            "growing": found.growing,
            "stopped": found.stopped,
            "signatures": found.signatures,
            "points": [
                {
                    "sessions": point.sessions,
                    "rate": point.rate,
                    "lowest": point.low,
                    "highest": point.high,
                    "p50Ns": point.p50_ns,
                    "p99Ns": point.p99_ns,
                }
                for point in found.points
            ],
        }
        for name, (provider, found) in results.items()
    ]
    paths = {f"{where}.config.sessions": sessions for where, sessions in changes.items()}
    return {"config": str(file), "members": members, "sessions": paths, "written": written}


def _print(file: Path, results: Results, changes: Mapping[str, int], *, written: bool) -> None:
    from hsmcore_bench.harness.figures import duration, figures
    from hsmcore_bench.tune.picture import sentence

    for name, (_, found) in results.items():
        print(f"{name}: {sentence(found)}\n")
        rows = [
            (
                f"{'→ ' if point.sessions == found.knee else '  '}{point.sessions}",
                f"{figures(point.rate)}/s",
                f"{point.rate / found.best:.0%}",
                f"± {point.spread:.0%}",
                duration(point.p50_ns),
                duration(point.p99_ns),
            )
            for point in found.points
        ]
        print_table(("  SESSIONS", "RATE", "OF BEST", "SPREAD", "P50", "P99"), rows)
        print(f"\n{found.signatures:,} signatures were made; times are those in the module.")
        if found.stopped is not None:
            print(f"It went no further: {found.stopped}")
        if found.growing:
            print("The rate still grows at the most sessions that were tried: the knee may lie beyond.")
    configured = {provider.where: _configured(provider) for provider, _ in results.values()}
    for where, sessions in changes.items():
        print(f"{file}: {where}.config.sessions: {configured[where] or 'default'} → {sessions}")
    print("written" if written else "not written: repeat with --write")


def _configured(provider: Provider) -> int | None:
    """Return the number in the configuration; None: it has none."""
    settings: Any = provider.config
    return settings.sessions if "sessions" in settings.model_fields_set else None
