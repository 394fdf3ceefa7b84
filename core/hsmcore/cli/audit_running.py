"""The `audit` commands that need a configuration: they reach out to where records are copied to, and to devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from hsmcore.cli import audit_support as support
from hsmcore.cli.output import FAILED, note, print_json
from hsmcore.cli.settings import ConfigOption, JsonOption, StateOption, load_config
from hsmcore.errors import AuditUnavailable, ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.audit.layout import Layout
    from hsmcore.config import Config


def add_to(app: typer.Typer) -> None:
    """Add them to the `audit` commands."""
    app.command(short_help="Ship what is left to CloudWatch Logs and syslog.")(ship)


def ship(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Copy to CloudWatch Logs and syslog what a key manager left there to be copied, then end. The log is only read.

    A running key manager does that itself; where it does, this command refuses. Exit code 1 if a destination did not
    take everything; it says how many records are left.

    Example: hsmcore audit ship --config hsm.json --json
    """
    from hsmcore.audit.shipping import destinations

    loaded = load_config(config, state)
    layout = log_of(loaded)
    places = destinations(loaded.key_manager)
    if not places:
        where = loaded.key_manager.where
        raise ConfigurationError.of(
            [ConfigFault(where, "has neither cloudWatchLogs nor audit.syslog: there is nowhere to ship to")]
        )
    shown = {}
    for place in places:
        with support.Bar(as_json) as progress:
            shown[place.kind] = _shipped(layout, place, progress)
    if as_json:
        print_json(shown)
    else:
        for kind, status in shown.items():
            print(f"{kind}: everything up to record {status['sentSeq']} is there")
            if status["error"]:
                note(f"hsmcore: {kind}: {status['lagRecords']} records are left: {status['error']}")
                note("  next: Mend that, then run the command again; nothing is lost.")
    if any(status["error"] for status in shown.values()):
        raise typer.Exit(FAILED)


def _shipped(layout: Layout, place: Any, progress: Any) -> dict[str, Any]:
    from hsmcore.audit.shipping.service import ShipNow

    run = ShipNow(layout, place)
    error = support.reading(lambda: run.run(progress))
    return run.status.as_dict() | {"error": error}


def log_of(config: Config) -> Layout:
    """The audit log of a configuration, which must be there."""
    from hsmcore.audit.layout import Layout

    if config.key_manager.audit_log_file is None:
        raise ConfigurationError.of([ConfigFault(f"{config.key_manager.where}.auditLogFile", "is required")])
    layout = Layout(config.key_manager.audit_log_file)
    if not layout.folder.is_dir():
        raise AuditUnavailable(f"audit log {layout.log}: nothing was recorded yet")
    return layout
