"""`hsmcore notices`: the targets of notices, tried."""

from __future__ import annotations

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import table
from hsmcore.cli.settings import misconfigured

app = typer.Typer()
_BODY = "This is a test: `hsmcore notices test` has sent it. Nothing has happened."


@command(app, "Send a test notice to each target.")
def test(cli: Invocation) -> None:
    """Send one test notice to each of `notices.targets`, whatever their `kinds`, and say which of them took it.

    It waits for each service, some seconds at most. No address is shown. Exit code 0: every target took it, 1: one did
    not, 2: the configuration is wrong.

    Example: hsmcore notices test --config sequencer.json
    """
    from hsmcore.config.targets import send

    rules = cli.config.key_manager.notices
    if rules is None:
        raise misconfigured(f"{cli.config.key_manager.where}.notices", "is not set", "Name its targets.")
    found = []
    for target in rules.targets:
        problem = send(target, "hsmcore: a test", _BODY)
        found.append({"path": target.where, "taken": not problem, "problem": problem})
    cli.show(found, table("TARGET path, TAKEN taken, PROBLEM problem"), ok=all(one["taken"] for one in found))
