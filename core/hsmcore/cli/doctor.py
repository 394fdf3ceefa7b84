"""The `doctor` command."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final

import orjson
import typer

from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import BadUsage, print_table

if TYPE_CHECKING:
    from rich.status import Status

    from hsmcore.base.receipt import LevelName
    from hsmcore.config import Config, Provider
    from hsmcore.doctor.report import DoctorReport, Step
    from hsmcore.doctor.subject import CheckBegun
    from hsmcore.gateway import Client

    Members = tuple[tuple[LevelName, Provider], ...]

MARKS: Final = {"ok": "✔", "known": "i", "warn": "!", "fail": "✘", "skipped": "–"}
_NAME_WIDTH: Final = 21


def doctor(
    cli: Invocation,
    provider: Annotated[str | None, "NAME: Only this one: its name, type or level."] = None,
    timeout: Annotated[float, "S: Seconds that one check may take.", {"min": 1.0, "max": 600.0}] = 10.0,
    force_login: Annotated[bool, "Present the PIN even if a wrong one would lock the token."] = False,
    schema: Annotated[bool, "Print the JSON Schema of --json, and check nothing."] = False,
) -> None:
    """Check every provider of a configuration, step by step: module, token, login, key, signature.

    Each PIN is presented once at most. Nothing is changed on any token. Vendor modules are loaded into a process of
    their own, so one that hangs or crashes is reported and not waited for. Exit code 0: nothing failed (warnings may
    have been given), 1: something failed, 2: the configuration is wrong or incomplete.

    With --gateway: connect to a running gateway as a client, and show as whom it knows this user and what it offers.

    Examples:

      hsmcore doctor --config sequencer.json

      hsmcore doctor --provider primary --timeout 30

      hsmcore doctor --gateway unix:/run/hsmcore/sign.sock

      hsmcore doctor --json | jq '.providers[].steps[] | select(.outcome == "fail")'
    """
    from hsmcore.config.loading import warn_of
    from hsmcore.doctor.doctor import diagnose
    from hsmcore.doctor.report import DoctorReport
    from hsmcore.doctor.subject import Options

    if schema:
        sys.stdout.write(orjson.dumps(DoctorReport.model_json_schema(), option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    if cli.gateway is not None:
        cli.show(cli.on_gateway(cli.gateway, _told))
        return
    config = cli.loaded()
    members = _chosen(config.key_manager.members(), provider)
    warn_of([config], reported=tuple(f"{member.where}.config" for _, member in members))
    options = Options(timeout=timeout, force_login=force_login)
    if cli.as_json:
        report = diagnose(config, options, members=members)
        cli.show(report.model_dump(mode="json", by_alias=True))
    else:
        report = _shown(config, options, members)
    raise typer.Exit(report.exit_code)


async def _told(client: Client) -> dict[str, object]:
    return client.describe()


def _chosen(members: Members, name: str | None) -> Members:
    if name is None:
        return members
    chosen = tuple((level, member) for level, member in members if name in (member.name, member.type, level))
    if not chosen:
        names = ", ".join(dict.fromkeys(f'"{member.name}"' for _, member in members))
        raise BadUsage(f"--provider: the configuration has none of that name, type or level; it has {names}")
    return chosen


def _shown(config: Config, options: object, members: Members) -> DoctorReport:
    """Print each step when it is complete; on a terminal, the last line shows the step in progress."""
    from rich.console import Console

    from hsmcore.doctor.doctor import diagnose
    from hsmcore.doctor.report import Step

    console = Console(stderr=True)
    skipped: list[Step] = []
    with console.status("") as status:
        if not console.is_terminal:
            status.stop()

        def watch(level: LevelName, member: Provider, event: Step | CheckBegun | None) -> None:
            one = event if isinstance(event, Step) and event.outcome == "skipped" else None
            if skipped and (one is None or one.found != skipped[0].found):
                _print_skipped(skipped, status)
                skipped.clear()
            if one is not None:
                skipped.append(one)
            elif event is None:
                _print(f"\n{level}: {member.name}", status)
            elif isinstance(event, Step):
                _print_step(event, status)
            else:
                status.update(f"{member.name}: {event.name} …")

        report = diagnose(config, options, members=members, watch=watch)  # type: ignore[arg-type]  # lazily imported
        if skipped:
            _print_skipped(skipped, status)
    _print_identities(report)
    _print_verdict(report)
    return report


def _print(text: str, status: Status) -> None:
    status.stop()
    print(text, flush=True)
    if sys.stderr.isatty():
        status.start()


def _print_step(step: Step, status: Status) -> None:
    lines = [f"  {MARKS[_kind(step)]} {step.name:<{_NAME_WIDTH - 1}} {step.found}"]
    if step.hint and step.outcome in ("warn", "fail"):
        lines.append(f"    {'':<{_NAME_WIDTH}}→ {step.hint}")
    _print("\n".join(lines), status)


def _print_skipped(steps: list[Step], status: Status) -> None:
    """Print what several have in common once."""
    names = steps[0].name if len(steps) == 1 else f"{steps[0].name} … {steps[-1].name} ({len(steps)})"
    _print_step(steps[0].model_copy(update={"name": names}), status)


def _kind(step: Step) -> str:
    """The outcome as people see it: an issue of a module that is told without a warning is not good either."""
    return "known" if step.outcome == "ok" and "issue" in step.data else step.outcome


def _print_identities(report: DoctorReport) -> None:
    rows = []
    for member in report.providers:
        key, algorithm, shown = member.identity, "-", "unknown: see above"
        if key is not None:
            algorithm, shown = key.algorithm, key.address or key.public_key or "unknown"
            shown = shown if key.fixed else "none before it is needed, another one each time"
        rows.append((member.level, member.name, algorithm, shown))
    print("\nidentities")
    print_table(("LEVEL", "PROVIDER", "ALGORITHM", "PUBLIC KEY"), rows)


def _print_verdict(report: DoctorReport) -> None:
    counts: Counter[str] = Counter(_kind(step) for member in report.providers for step in member.steps)
    words = (
        ("ok", "good"),
        ("known", "known issues"),
        ("warn", "warnings"),
        ("fail", "failed"),
        ("skipped", "skipped"),
    )
    print("\n" + ", ".join(f"{count} {word}" for outcome, word in words if (count := counts[outcome])))
