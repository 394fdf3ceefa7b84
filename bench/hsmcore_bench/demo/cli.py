"""The `demo` command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hsmcore.cli.output import FAILED, note, print_json
from hsmcore.cli.settings import ConfigOption, JsonOption, StateOption, load_config, locate

app = typer.Typer()


@app.command()
def demo(
    transactions: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Transactions to sign and execute.")
    ] = 20_000,
    in_flight: Annotated[int, typer.Option(min=1, max=4096, help="Signatures in flight.")] = 64,
    failover: Annotated[
        bool, typer.Option("--failover/--no-failover", help="The second act, on two SoftHSM tokens of its own.")
    ] = True,
    rotation: Annotated[
        bool, typer.Option("--rotation/--no-rotation", help="The third act, on one of those tokens.")
    ] = True,
    fleet: Annotated[
        bool, typer.Option("--fleet", help="Two sequencers on a private PostgreSQL, instead of all else.")
    ] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run an example sequencer: real Solana transfers, signed by the HSM, executed by LiteSVM.

    Makes a SoftHSM token, key and configuration first if the state folder has none. LiteSVM verifies every signature;
    at the end it has to refuse one with a flipped bit. A raw C loop with the same key is measured in turn. Exit code 1
    if a transaction is lost, fails or is refused.

    In a second act two SoftHSM tokens with one key are made; one is pulled while it signs, and put back. In a third,
    the key is rotated while it signs: the new key is backed up and takes over the old one's lamports and mint, and what
    the old one signed in advance has to be refused.

    --fleet: two sequencers share a key and a database; the one that signs is stopped, and killed, and the other goes
    on. Exit code 1 if a transaction or a block comes twice, or one is missing. Needs PostgreSQL and SoftHSM.

    Examples:

      hsmcore demo

      hsmcore demo --transactions 2000 --json

      hsmcore demo --no-failover --no-rotation --config sequencer.json

      hsmcore demo --fleet
    """
    if fleet:
        _fleet(as_json=as_json)
        return
    path = locate(config, state)
    if config is None or state is not None:
        _make_state(path.parent, quiet=as_json)
    loaded = load_config(config, state)

    from hsmcore_bench.demo.report import text
    from hsmcore_bench.demo.run import run

    with _progress(transactions) as advance:
        result = run(loaded, transactions, in_flight, advance)
    if not as_json:
        print(text(result))
    if failover or rotation:
        acts = _later_acts(failover=failover, rotation=rotation, quiet=as_json)
        result |= acts
        result["ok"] = result["ok"] and all(played["ok"] for played in acts.values())
    if as_json:
        print_json(result)
    if not result["ok"]:
        raise typer.Exit(FAILED)


def _fleet(*, as_json: bool) -> None:
    from hsmcore_bench.demo.fleet import run_fleet
    from hsmcore_bench.demo.report import fleet_text

    played = run_fleet((lambda _line: None) if as_json else partial(print, flush=True))
    if as_json:
        print_json(played)
    else:
        print(fleet_text(played))
    if not played["ok"]:
        raise typer.Exit(FAILED)


def _later_acts(*, failover: bool, rotation: bool, quiet: bool) -> dict[str, Any]:
    """Empty: there is no SoftHSM to play them on."""
    from hsmcore.errors import ModuleMissing
    from hsmcore_bench.demo.acts import run_acts

    try:
        return run_acts((lambda _line: None) if quiet else print, failover=failover, rotation=rotation)
    except ModuleMissing as error:
        note(f"no later acts: {error}")
        return {}


def _make_state(folder: Path, *, quiet: bool) -> None:
    from hsmcore.members.control.softhsm import StateFolder

    if StateFolder(folder).create() is not None and not quiet:
        note(f"made a SoftHSM token, a key and a configuration in {folder}")


@contextmanager
def _progress(transactions: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error. It draws itself only when it hears of progress: a thread of its own would compete with
    the signatures that are being measured."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("signing and executing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, auto_refresh=False, transient=not console.is_terminal) as bar:
        task = bar.add_task("", total=transactions)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if done % 500 == 0 or done == transactions:
                bar.update(task, completed=done, refresh=True)

        yield advance
